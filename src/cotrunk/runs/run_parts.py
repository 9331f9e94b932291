"""The parts of a run, ready to denoise: those of an earlier run, of prompts that were appended, and retries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..execution import Run
from ..planning.trunk_store import TrunkStore
from .arm import Arm, main_arms
from .job import Job
from .job_plan import JobPlan, PartPlan, job_plan
from .part_pipelines import PartPipelines
from .part_run import divided, own_plan, plan_part, prepare_part
from .parts import Part, again, retry_seed


@dataclass(frozen=True)
class PartRun:
    """A part that is ready to denoise, with its main arm."""

    part: Part
    arm: Arm
    run: Run


def prepared(
    pipes: PartPipelines, job: Job, saved: Sequence[PartPlan], trunks: TrunkStore | None = None
) -> tuple[JobPlan, list[PartRun]]:
    """Return the plan of a job, and its parts ready to denoise.

    Args:
        pipes: of the job.
        job: the job.
        saved: the parts of an earlier run with the same first prompts. The other prompts become parts of their own.
        trunks: the trunk cache; None for none.
    """
    new, taken = divided(job, pipes.base, first=prompts_of(saved)), _taken(saved)
    earlier = [(own.part(job), own.plan) for own in saved]
    runs = [prepare_part(pipes.of(part.job), part, plan, trunks=trunks) for part, plan in earlier]
    runs += [prepare_part(pipes.of(part.job), part, None, taken, trunks) for part in new]
    return _together(job, saved, [part.rows for part in new], runs, {})


def planned(pipes: PartPipelines, job: Job, saved: Sequence[PartPlan]) -> JobPlan:
    """Return the plan of a job whose parts other processes prepare; the pipelines need no denoiser.

    Args:
        pipes: of the job.
        job: the job.
        saved: as for `prepared`.
    """
    new, taken = divided(job, pipes.base, first=prompts_of(saved)), _taken(saved)
    plans = [(part.rows, own_plan(pipes.of(part.job), part, taken)) for part in new]
    return job_plan(job, [*((own.rows, own.plan) for own in saved), *plans], _retried(saved))


def planned_retries(pipes: PartPipelines, job: Job, plan: JobPlan, failed: Sequence[int]) -> JobPlan:
    """Return the plan of a job with more parts that generate failed images again, which other processes prepare.

    Args:
        pipes: of the job.
        job: the job.
        plan: its plan so far.
        failed: the run's numbers of the images.
    """
    retries, retried = _retries(pipes, job, plan, failed)
    plans = [(part.rows, plan_part(pipes.of(part.job), part)) for part in retries]
    return job_plan(job, [*((own.rows, own.plan) for own in plan.parts), *plans], {**_retried(plan.parts), **retried})


def with_retries(
    pipes: PartPipelines, job: Job, plan: JobPlan, parts: Sequence[PartRun], failed: Sequence[int]
) -> tuple[JobPlan, list[PartRun]]:
    """Return the plan of a job and its parts, with more parts that generate failed images again.

    Args:
        pipes, job, plan, parts: of the run.
        failed: the run's numbers of the images.
    """
    retries, retried = _retries(pipes, job, plan, failed)
    runs = [*(each.run for each in parts), *(prepare_part(pipes.of(part.job), part, None) for part in retries)]
    return _together(job, plan.parts, [part.rows for part in retries], runs, retried)


def prompts_of(saved: Sequence[PartPlan]) -> int:
    """Return the number of prompts in these parts."""
    return len({row for own in saved for row in own.rows})


def _taken(saved: Sequence[PartPlan]) -> set[tuple[str, int]]:
    """Return the prompts of these parts with their seeds."""
    plans = [own.plan for own in saved]
    return {(plan.prompts[plan.prompt_of(image)], seed) for plan in plans for image, seed in enumerate(plan.seeds)}


def _retried(saved: Sequence[PartPlan]) -> dict[int, tuple[int, ...]]:
    """Return the images of those parts that are retries, by their place."""
    return {number: own.images for number, own in enumerate(saved) if own.is_retry}


def _retries(
    pipes: PartPipelines, job: Job, plan: JobPlan, failed: Sequence[int]
) -> tuple[list[Part], dict[int, tuple[int, ...]]]:
    """Return the parts that generate failed images again, and the images of each by its place in the whole plan."""
    prompts = [part.prompts[image] for part, image in (plan.places[number] for number in failed)]
    attempts = sum(part.is_retry for part in plan.parts)
    retries = divided(replace(again(job, prompts), seed=retry_seed(job.seed, attempts)), pipes.base)
    return retries, {len(plan.parts) + i: tuple(failed[row] for row in part.rows) for i, part in enumerate(retries)}


def _together(
    job: Job,
    saved: Sequence[PartPlan],
    new: Sequence[Sequence[int]],
    runs: Sequence[Run],
    retried: Mapping[int, tuple[int, ...]],
) -> tuple[JobPlan, list[PartRun]]:
    """Return the plan of a job and its parts, from earlier parts, the rows of new ones, and what is ready to denoise.

    Args:
        retried: as for `job_plan`, of the new parts.
    """
    rows = [*(own.rows for own in saved), *new]
    plan = job_plan(job, [(own, run.plan) for own, run in zip(rows, runs, strict=True)], {**_retried(saved), **retried})
    arms = main_arms(plan, job.naming, job.ids)
    return plan, [PartRun(arm.part.part(job), arm, run) for arm, run in zip(arms, runs, strict=True)]
