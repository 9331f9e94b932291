"""Plan a job without denoising."""

from pathlib import Path
from typing import Any

from ..pipelines import loading
from ..planning.vector_files import VectorFiles
from .events import Embedded, Loading, OnEvent, Planned, Planning, ignore
from .job import Job
from .job_plan import JobPlan, job_plan
from .part_pipelines import PartPipelines, check_parts
from .part_run import divided, plan_part
from .parts import check_rows
from .row_inputs import checked_inputs


def plan_job(job: Job, *, on_event: OnEvent = ignore, vectors: Path | None = None) -> JobPlan:
    """Return the plan of a job: what it would share and save. Nothing is denoised, and only vectors are written.

    Args:
        job: the job.
        on_event: called with each event (see `events`).
        vectors: a folder that keeps the vectors of the prompts, so that planning can be stopped and continued.

    Raises:
        CotrunkError: bad input.
    """
    loading.check_names("auto", "auto", job.scheduler)
    check_rows(job)
    job = checked_inputs(job)
    check_parts(job)
    files = None if vectors is None else VectorFiles(vectors, lambda done, count: on_event(Embedded(done, count)))
    pipe = load_for_planning(job, on_event)
    on_event(Planning(len(job.prompts)))
    pipelines, parts = PartPipelines(pipe, job, denoiser=False), divided(job, pipe)
    plan = job_plan(job, [(part.rows, plan_part(pipelines.of(part.job), part, files)) for part in parts])
    on_event(Planned(plan))
    return plan


def load_for_planning(job: Job, on_event: OnEvent) -> Any:
    """Load the pipeline of a job without its denoiser, which planning does not need.

    Args:
        job: the job.
        on_event: called before loading.
    """
    on_event(Loading(job.model, has_denoiser=False))
    return loading.load_pipeline(
        job.model,
        "auto",
        config=job.config,
        revision=job.revision,
        variant=job.variant,
        scheduler=job.scheduler,
        denoiser=False,
    )
