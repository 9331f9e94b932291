"""Resume a run: check that its folder holds an earlier part of the same job, and whether anything is left to do.

Which images are finished is read from the journal (`journal.py`).
"""

from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import CotrunkError
from ..lock import FolderLock
from ..planning.tree import Steps, Text
from .arm import Compared, compared_plan, main_arms
from .build_report import build_report
from .distances import with_distances
from .events import AlreadyFinished, OnEvent, Unlocked
from .facts import PipelineFacts
from .folder import RunFolder
from .job import Job
from .job_plan import load_job_plan
from .naming import is_default
from .page import write_page
from .report import RunReport
from .report_figures import Seconds


@dataclass(frozen=True)
class _Compared:
    steps: Steps


@dataclass(frozen=True)
class _Part:
    compare: dict[Compared, Steps]


@dataclass(frozen=True)
class Head:
    """The part of run.json that is read again; the rest follows from the plan and the journal."""

    status: Text
    pipeline: PipelineFacts
    seconds: Seconds
    versions: dict[Text, Text]
    compare: dict[Compared, _Compared] = field(default_factory=dict)
    parts: tuple[_Part, ...] = ()

    @staticmethod
    def read(content: dict[str, Any]) -> "Head | None":
        """Return it from the content of run.json; None if that is damaged."""
        try:
            return _HEAD.validate_python(content)
        except ValidationError:
            return None


_HEAD = TypeAdapter(Head)


def begun(
    folder: RunFolder, lock: FolderLock, job: Job, on_event: OnEvent, *, resume: bool, retry_failed: bool
) -> tuple[bool, RunReport | None]:
    """Begin or resume a run. Return whether it has a plan to continue with, and its report if nothing is left to do.

    Args:
        folder: of the run.
        lock: of the folder.
        job: the job.
        on_event: called if the folder is not locked, and if nothing is left to do.
        resume: whether the folder may hold an earlier part of the job.
        retry_failed: whether images that failed are left to do.

    Raises:
        CotrunkError: the folder cannot be written, or holds another run.
    """
    if not lock.is_kept:
        on_event(Unlocked(folder.path))
    is_resumed = begin_or_resume(folder, job, resume=resume)
    report = finished_report(folder, len(job.prompts)) if is_resumed else None
    if report is None or (report.status != "done" and retry_failed):
        return is_resumed, None
    on_event(AlreadyFinished())
    return is_resumed, report


def begin_or_resume(folder: RunFolder, job: Job, *, resume: bool) -> bool:
    """Make the folder, or check that it holds an earlier part of the same job. Return whether it has a plan to
    continue with.

    Raises:
        CotrunkError: it cannot be written, or holds another run.
    """
    if not folder.make():
        return False
    if not resume:
        raise CotrunkError(
            f"{folder.name} already holds a run ({', '.join(folder.contents())}): choose another --out, or continue "
            "that run with --resume."
        )
    _, before = folder.read()
    if _changed_prompts(before, job):
        raise CotrunkError(
            f"The run in {folder.name} was started with other prompts: keep its prompts as they are, append new ones "
            "after them, or choose another --out."
        )
    if is_default(before.output.name) and is_default(job.output.name) and before.naming.name != job.naming.name:
        raise CotrunkError(
            f"The run in {folder.name} was started with files named {before.naming.name}, and would continue with "
            f"{job.naming.name}: give each new prompt one image, or choose another --out."
        )
    for path, digest in before.digests.items():
        if job.digests.get(path, digest) != digest:
            raise CotrunkError(
                f"The run in {folder.name} was started with another input image {path}: bring back the earlier file, "
                "or choose another --out."
            )
    for name, then, now in before.differences(job):
        if name in ("prompts", "output.records"):  # some were appended
            continue
        short = name.rpartition(".")[2].replace("_", " ")
        if isinstance(then, dict) or isinstance(
            now, dict
        ):  # a part of the settings, such as skipping; None turns it off
            then, now = ("off" if value is None else "on" for value in (then, now))
        else:
            then, now = repr(then), repr(now)
        raise CotrunkError(
            f"The run in {folder.name} was started with {short} {then}, not {now}: resume it with the same settings, "
            "or choose another --out."
        )
    return (folder.path / "plan.json").exists()


def _changed_prompts(before: Job, job: Job) -> bool:
    """Return whether a prompt of the earlier job is missing or different; new ones may follow."""
    count = len(before.prompts)
    same = before.prompts == job.prompts[:count]
    return not same or before.output.records != job.output.records[: len(before.output.records)]


def check_dtype(folder: RunFolder, dtype: str) -> None:
    """Check that a resumed run continues in the precision in which it began, because another changes its images.

    Raises:
        CotrunkError: the precision differs.
    """
    pipeline = folder.read()[0].get("pipeline")
    before = pipeline.get("dtype", dtype) if isinstance(pipeline, dict) else dtype
    if before != dtype:
        raise CotrunkError(
            f"The run in {folder.name} was started in {before} and would continue in {dtype}: add --dtype {before}, or "
            "choose another --out."
        )


def finished_report(folder: RunFolder, prompts: int | None = None) -> RunReport | None:
    """Return the report of a run that is finished, after writing its page again.

    Args:
        folder: of the run.
        prompts: number of prompts of the job that resumes it; None for those of the run.

    Returns None if anything is left to do. This includes a run.json that is damaged: resuming writes it again.
    """
    content, job = folder.read()
    head = Head.read(content)
    if head is None:
        return None
    if prompts not in (None, len(job.prompts)) or head.status == "running" or (job.compare and not head.compare):
        return None
    plan = load_job_plan(folder.path / "plan.json", job)
    if len(plan.parts) != max(len(head.parts), 1):
        return None
    mains = main_arms(plan, job.naming, job.ids)
    arms = list(mains)
    for main in mains:
        steps = head.parts[main.number].compare if head.parts else {n: arm.steps for n, arm in head.compare.items()}
        arms += [main.compared(name, compared_plan(name, main.plan, count)) for name, count in steps.items()]
    report = build_report(job, head.pipeline, plan, arms, folder.progress_of(arms), {})
    if report.status == "running":
        return None
    report = with_distances(replace(report, seconds=head.seconds, versions=head.versions), folder.path)
    write_page(report, folder.path, folder.stored)
    return report
