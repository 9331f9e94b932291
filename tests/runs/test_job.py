"""A job in Python, without the command line: run, interrupted, resumed, planned; and its JSON."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import PROMPTS, ROUNDING, no_model, pipeline, pixels

from cotrunk import CotrunkError
from cotrunk.runs import events
from cotrunk.runs.job import Job
from cotrunk.runs.plan_job import plan_job
from cotrunk.runs.report import RunReport
from cotrunk.runs.runner import run_job
from cotrunk.settings import Batching, Settings, Sharing, Skipping

SETTINGS = Settings(Sharing.published(share=0.4), steps=3, batching=Batching(batch_size=3))
JOB = Job(tuple(PROMPTS), SETTINGS, guidance_scale=3.0, seed=5)


class StoppedError(Exception):
    """The error that a service raises to stop a job."""


@pytest.mark.usefixtures("model")
def test_a_job_runs_without_printing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = list[events.Event]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = run_job(JOB, tmp_path / "run", on_event=found.append)
    assert capfd.readouterr() == ("", "")
    assert report == RunReport.load(tmp_path / "run")
    assert (report.status, report.job, report.rows.used) == ("done", JOB, 30)
    assert all((tmp_path / "run" / image.file).exists() for image in report.images)
    kinds = list(dict.fromkeys(type(event) for event in found))
    assert kinds == [
        *(events.Loading, events.Planning, events.Planned),
        *(events.Denoising, events.StepDone, events.BatchDone, events.DenoisingDone),
    ]
    finished = [event for event in found if isinstance(event, events.BatchDone)]
    assert sorted(image for event in finished for image in event.images) == list(range(6))
    assert sum(event.rows for event in finished) == 30


@pytest.mark.usefixtures("model")
def test_a_job_resumes_after_it_was_stopped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_job(JOB, whole)

    def stop(event: events.Event) -> None:
        if isinstance(event, events.BatchDone):
            raise StoppedError

    with pytest.raises(StoppedError):
        run_job(JOB, cut, on_event=stop)
    assert RunReport.load(cut).status == "running"
    kept = {path: path.stat().st_mtime_ns for path in (cut / "images").iterdir()}
    assert len(kept) == 3
    with pytest.raises(CotrunkError, match="already holds a run"):
        run_job(JOB, cut)
    with pytest.raises(CotrunkError, match="started with seed 5, not 6"):
        run_job(replace(JOB, seed=6), cut, resume=True)

    report = run_job(JOB, cut, resume=True)

    assert report.status == "done"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for image in report.images:
        difference = pixels(whole / image.file).astype(int) - pixels(cut / image.file)
        assert np.abs(difference).max() <= ROUNDING
    found = list[events.Event]()
    assert run_job(JOB, cut, resume=True, on_event=found.append) == report
    assert found == [events.AlreadyFinished()]
    assert capfd.readouterr() == ("", "")


def test_a_service_brings_its_own_pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_model(monkeypatch)
    loaded = list[Job]()
    job = replace(JOB, prompts=JOB.prompts[:1])
    report = run_job(job, tmp_path, load=lambda asked: loaded.append(asked) or pipeline())
    assert (report.status, loaded) == ("done", [job])


@pytest.mark.usefixtures("model")
def test_a_job_compares(tmp_path: Path) -> None:
    found = list[events.Event]()
    job = replace(JOB, prompts=JOB.prompts[:2], compare=True)
    report = run_job(job, tmp_path, on_event=found.append)
    assert list(report.compare) == ["independent", "equal_cost"]
    assert report.compare["equal_cost"].rows <= report.rows.used
    assert events.WarmingUp(compiles=False) in found
    done = {event.arm for event in found if isinstance(event, events.BatchDone)}
    assert done == {"shared", "independent", "equal_cost"}


def test_a_plan_needs_no_denoiser(model: pytest.MonkeyPatch) -> None:
    model.setattr(pipeline().unet, "forward", lambda *_, **__: pytest.fail("denoised"))
    found = list[events.Event]()
    plan = plan_job(JOB, on_event=found.append)
    assert [part.rows for part in plan.parts] == [tuple(range(6))]
    assert (plan.cost.used, plan.cost.independent) == (30, 36)
    assert events.Loading("mini", has_denoiser=False) in found


@pytest.mark.parametrize(
    "job",
    [
        Job(("a cat",)),
        JOB,
        Job(
            ("a cat", "a dog"),
            Settings(None, Skipping(tolerance=0.1), (0.1, 0.8), 12, Batching(8, 4, (2, 4))),
            model="mini-dit",
            lora="lora",
            scheduler="ddim",
            negative_prompt="grey",
            images_per_prompt=2,
            compare=True,
            compiled=True,
        ),
    ],
)
def test_a_job_survives_json(job: Job) -> None:
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    assert list(job.differences(job)) == []


def test_a_job_from_json_takes_defaults() -> None:
    assert Job.from_json({"prompts": ["a cat"]}) == Job(("a cat",))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompts": []}, "has no prompts"),
        ({"prompts": "a cat"}, "has no prompts"),
        ({"prompts": [3]}, "prompt 0: the prompt is of type int"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"seed": True}, "seed True is out of range"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan is out of range"),
        ({"images_per_prompt": 0}, "images_per_prompt 0 is out of range"),
        ({"compare": 1}, "compare 1 is not a truth value"),
        ({"model": ""}, "model '' is not a name"),
        ({"lora": 3}, "lora 3 is not a LoRA"),
        ({"settings": {"steps": 0}}, "steps 0 is out of range"),
        ({"settings": {"step": 3}}, "settings has the unknown key 'step'"),
        ({"settings": None}, "settings is a NoneType"),
        ({"sed": 3}, "unknown key 'sed'"),
    ],
)
def test_an_invalid_job_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(CotrunkError, match=said):
        Job.from_json({"prompts": ["a cat"], **changed})


def test_a_report_that_is_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CotrunkError, match=r"holds no readable run\.json"):
        RunReport.load(tmp_path)
    for content in ("{", "[]", "{}", '{"format": 1}', '{"format": 1, "job": {}}'):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(CotrunkError, match="run"):
            RunReport.load(tmp_path)
