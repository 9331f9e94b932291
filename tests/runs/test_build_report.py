"""The report of a run on a cluster: groups that were given up, and images that were to be generated again."""

from collections.abc import Sequence
from dataclasses import replace

from run_folders import FACTS, JOB, PLAN

from cotrunk.runs.arm import main_arms
from cotrunk.runs.build_report import build_report
from cotrunk.runs.job_plan import job_plan
from cotrunk.runs.journal import Progress
from cotrunk.runs.recipe import part_of
from cotrunk.runs.report import RunReport
from cotrunk.runs.report_figures import FailedGroup

TIGER = replace(part_of(PLAN, (2,)), seeds=(9,))
TWICE = job_plan(JOB, [(range(3), PLAN), ((2,), TIGER)], {1: (2,)})  # the tiger was to be generated again
GIVEN_UP = FailedGroup(2, (2,), "RuntimeError: this group is poison", "failed/wave-2.json")


def report_of(first: Progress, second: Progress, failures: Sequence[FailedGroup] = ()) -> RunReport:
    arms = main_arms(TWICE)
    progress = {arm.name: own for arm, own in zip(arms, (first, second), strict=True)}
    return build_report(JOB, FACTS, TWICE, arms, progress, {}, failures)


def test_an_image_whose_retry_was_given_up_failed() -> None:
    """It was finished, though flagged, by the part before."""
    flagged = Progress(images={0, 1, 2}, flagged={2})
    report = report_of(flagged, Progress(), [GIVEN_UP])
    assert (report.status, report.failures) == ("failed images", (GIVEN_UP,))
    assert [image.failed for image in report.images] == [False, False, True]
    assert report_of(flagged, Progress()).status == "running"


def test_an_image_that_was_given_up_and_then_generated_is_finished() -> None:
    report = report_of(Progress(images={0, 1}), Progress(images={0}), [GIVEN_UP])
    assert (report.failures, [image.failed for image in report.images]) == ((), [False] * 3)
