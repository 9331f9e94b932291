"""Plan and prepare one part of a job, and its comparisons."""

import inspect
import time
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

from ..errors import CotrunkError
from ..execution import EXACT, Run
from ..generation import plan as plan_prompts
from ..generation import prepare, warm_up
from ..pipelines.arguments import needed_arguments
from ..pipelines.cost import timesteps_of
from ..pipelines.image_inputs import needs_call_per_image
from ..pipelines.own_defaults import own_guidance, own_steps
from ..pipelines.weighted_prompts import weighted_encoder
from ..planning.own_rows import with_copies, with_other_seeds, with_seeds
from ..planning.plan import Cost, Plan
from ..planning.prompt_row import PromptRow
from ..planning.trunk_store import TrunkStore
from ..planning.vector_files import VectorFiles
from ..trunks.lookup import Seeding
from .arm import ALL_STEPS, EQUAL_COST, INDEPENDENT, Compared
from .job import Job
from .parts import Part, parts_of
from .row_inputs import image_arguments, inputs_of


def arguments_of(job: Job, rows: Sequence[PromptRow], pipe: Any) -> dict[str, Any]:
    """Return the arguments for the pipeline's call that a job gives or leaves to the pipeline, for these prompts of it.

    Those of its settings are not among them, except for a number of steps that the settings leave to the pipeline.
    """
    inputs = [inputs_of(job, row) for row in rows]
    takes = inspect.signature(pipe.__call__).parameters
    arguments: dict[str, Any] = {}
    if job.settings.steps is None:
        arguments["num_inference_steps"] = own_steps(pipe)
    scale = own_guidance(pipe) if job.guidance_scale is None else job.guidance_scale
    if scale is not None:
        arguments["guidance_scale"] = scale
    for name in ("width", "height"):
        # a class without these arguments gives its images the size of the input images, which are scaled
        if getattr(job, name) is not None and (name in takes or not inputs[0].files):
            arguments[name] = getattr(job, name)
    size = None if job.width is None or job.height is None else (job.width, job.height)
    arguments |= image_arguments(type(pipe), inputs, size)
    negatives = [job.negative_of(row) for row in rows]
    if job.weights:
        arguments |= weighted_encoder(pipe, job.lora).arguments([row.prompt for row in rows], negatives)
    if negatives[0] is not None:  # then every prompt of a part has one
        arguments["negative_prompt"] = negatives[0] if len(set(negatives)) == 1 else negatives
    return arguments


def divided(job: Job, pipe: Any, first: int = 0) -> list[Part]:
    """Return the parts of a job for a pipeline, whose own numbers stand for those that are not given.

    Args:
        first: leave out the prompts before this one.
    """
    lengths = None
    if job.weights:
        # the pipeline has no LoRA yet if prompts have their own
        has_own = any(row.lora is not None for row in job.prompts)
        encoder = weighted_encoder(pipe, () if has_own else job.lora)
        lengths = [encoder.length(row.prompt, job.negative_of(row)) for row in job.prompts]
    return parts_of(job, own_steps(pipe), own_guidance(pipe), lengths, apart=needs_call_per_image(pipe), first=first)


def plan_part(pipe: Any, part: Part, vectors: VectorFiles | None = None) -> Plan:
    """Return the plan of a part.

    Args:
        vectors: keeps the vectors of the prompts in files; None to keep none.
    """
    job, rows = part.job, part.job.prompts
    plan = plan_prompts(
        pipe,
        job.texts,
        settings=job.settings,
        seed=job.seed,
        num_images_per_prompt=job.images_per_prompt,
        vectors=vectors,
        **arguments_of(job, rows, pipe),
    )
    return with_copies(with_seeds(plan, [row.seed for row in rows]), part.copies)


def own_plan(pipe: Any, part: Part, taken: Container[tuple[str, int]] = ()) -> Plan:
    """Return the plan of a part of a run that may have earlier parts.

    Args:
        pipe: of the part.
        part: the part.
        taken: prompts of earlier parts with their seeds: an equal prompt gets another one.
    """
    given = frozenset(row.prompt for row in part.job.prompts if row.seed is not None)
    return with_other_seeds(plan_part(pipe, part), taken, given)


def prepare_part(
    pipe: Any,
    part: Part,
    plan: Plan | None,
    taken: Container[tuple[str, int]] = (),
    trunks: TrunkStore | None = None,
) -> Run:
    """Return a part ready to denoise.

    Args:
        plan: of an earlier part of the run; None to make one.
        taken: prompts of earlier parts with their seeds: an equal prompt gets another one.
        trunks: the trunk cache; None for none.
    """
    begin, seeding = time.perf_counter(), None
    if plan is None:
        plan = own_plan(pipe, part, taken)
        fixed = frozenset(i for i, row in enumerate(part.planned) if row.seed is not None)
        seeding = Seeding(part.job.seed, max(part.copies), fixed, taken)
    seconds = {"embed": time.perf_counter() - begin}
    texts = [row.prompt for row in part.planned]
    arguments = arguments_of(part.job, part.planned, pipe)
    run = prepare(pipe, texts, part.job.settings, plan=plan, trunks=trunks, seeding=seeding, **arguments)
    run.seconds["embed"] += seconds["embed"]
    return run


def warm_up_part(pipe: Any, part: Part, plan: Plan) -> None:
    """Warm up with all prompts and with a single one.

    Without it, the first arm of a comparison would seem slower, and compiling would count as denoising.
    """
    job = part.job
    # A compiled denoiser compiles once more for a single row, which an image or a trunk without guidance has.
    has_single_rows = any(plan.rows_of(tree) < plan.guidance_rows for tree in plan.trees)
    half = (0.0, 0.5) if has_single_rows or job.settings.guidance_interval is not None else None
    settings = replace(job.settings, sharing=None, skipping=None, guidance_interval=half)
    for rows, images_each in ((job.prompts, job.images_per_prompt), (job.prompts[:1], 1)):
        texts = [row.prompt for row in rows]
        warm_up(pipe, texts, settings, num_images_per_prompt=images_each, **arguments_of(job, rows, pipe))


def compared_runs(pipe: Any, part: Part, plan: Plan, cost: Cost, *, all_steps: bool) -> dict[Compared, Run]:
    """Return the runs for comparison with a run of this plan.

    Args:
        cost: of that run.
        all_steps: whether one of them shares as that run did, and skips nothing.
    """
    arguments = arguments_of(part.job, part.planned, pipe)
    arguments.pop("num_inference_steps", None)
    needed = {**needed_arguments(pipe), **arguments}
    # the most steps that cost no more rows than the run did
    for steps in range(plan.steps, 0, -1):
        try:
            counts = timesteps_of(pipe, {**needed, "num_inference_steps": steps})
        except CotrunkError:  # too few for this scheduler
            break
        equal = plan.independent(*counts)
        if equal.cost.used <= cost.used:
            break
    arms = [(INDEPENDENT, plan.independent()), *([(ALL_STEPS, plan)] if all_steps else []), (EQUAL_COST, equal)]
    runs, texts = dict[Compared, Run](), [row.prompt for row in part.planned]
    for kind, own in arms:
        settings = replace(EXACT, steps=own.steps, batching=part.job.settings.batching)
        runs[kind] = prepare(pipe, texts, settings, plan=own, **arguments)
    return runs
