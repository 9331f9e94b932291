"""Fill the stems of a trunk cache: the list of trunks that the operator makes, and that all owners may use."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import CotrunkError
from ..pipelines import loading
from ..trunks.computing import places_of
from ..trunks.filling import filled, missing, with_single_prompts
from .events import Loading, OnEvent, Planning, ignore
from .job import Job
from .part_pipelines import PartPipelines, check_parts, has_own_loras
from .part_run import divided, prepare_part
from .parts import check_rows
from .row_inputs import checked_inputs
from .runner import load_pipeline_of
from .trunk_cache import trunks_of


@dataclass
class Warmed:
    """What was done.

    Attributes:
        stored: trunks that were computed and stored.
        there: trunks that were stored before.
        lost: trunks that were computed and not kept, because of the limits of the cache.
        groups: trunks with two or more members, of all of these.
        rows: denoiser rows that were computed.
        steps: the most timesteps that an image can replay, and all timesteps of an image.
        seconds: the time of planning and computing.
    """

    stored: int = 0
    there: int = 0
    lost: int = 0
    groups: int = 0
    rows: int = 0
    steps: tuple[int, int] = (0, 0)
    seconds: float = 0.0


def warm_trunks(
    job: Job,
    database: str | None = None,
    *,
    on_event: OnEvent = ignore,
    on_trunks: Callable[[int, int], None] = lambda done, of: None,
    load: Callable[[Job], Any] = load_pipeline_of,
) -> Warmed:
    """Group the prompts of a job, and compute and store the trunks that are not stored yet. No image is made.

    A prompt that is similar to no other makes a trunk of its own.

    Args:
        job: with its folder of trunks; with `database`, it may be a URL. A later run replays the trunks if everything
            that can change a row is equal.
        database: of the index of trunks that several machines share, as for `Trunks`.
        on_event: called with each event (see `events`).
        on_trunks: called with the number of trunks of a part that are computed, and of those that will be.
        load: returns the pipeline of a job.

    Raises:
        CotrunkError: bad input, a folder that cannot be used, or a call whose trunks cannot be stored.
    """
    if job.trunks is None:
        raise CotrunkError("The folder of the trunk cache is missing: give trunks.")
    check_rows(job)
    loading.check_names(job.device, job.dtype, job.scheduler, job.offload)
    job = checked_inputs(job)
    if load is load_pipeline_of:
        check_parts(job)
    trunks = trunks_of(job, database)
    assert trunks is not None
    stems = trunks.for_stems()
    on_event(Loading(job.model))
    pipe = load(replace(job, lora=()) if has_own_loras(job) else job)
    pipelines, warmed, begin = PartPipelines(pipe, job), Warmed(), time.perf_counter()
    on_event(Planning(len(job.prompts)))
    for part in divided(job, pipe):
        run = prepare_part(pipelines.of(part.job), part, None, trunks=stems)
        assert run.cache is not None  # prepared with stems
        plan = with_single_prompts(run.plan, run.cache)
        trunks_of_plan = set(map(places_of(plan, run.arguments, run.cache), plan.trunks))
        recipes = [recipe for _, recipe in trunks_of_plan]
        new, computed = len(missing(plan, run.arguments, run.cache)), 0
        warmed.there += len(recipes) - new
        warmed.groups += sum(len(recipe.members) > 1 for recipe in recipes)
        warmed.steps = max(warmed.steps, (max((recipe.steps for recipe in recipes), default=0), plan.timesteps))
        on_trunks(0, new)
        for call in filled(run.pipe, plan, run.arguments, run.settings, run.cache, run.companions):
            warmed.stored, warmed.rows = warmed.stored + call.stored, warmed.rows + call.rows
            warmed.lost += call.computed - call.stored
            computed += call.computed
            on_trunks(computed, new)
    warmed.seconds = time.perf_counter() - begin
    return warmed
