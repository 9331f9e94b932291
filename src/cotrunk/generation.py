"""The main job: many prompts through the user's own pipeline, in batches, on one plan."""

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .checks import seeds_of, whole
from .engine.call import StepEvent
from .errors import CotrunkError
from .execution import SPARED, Batch, Run, merged_output
from .pipelines.arguments import PerPrompt, needed_arguments
from .pipelines.companions import companions, runs_apart
from .pipelines.compatibility import check_folds, check_pipeline
from .pipelines.cost import argument, guidance_rows, timesteps_of
from .pipelines.noise_schedule import read_schedule
from .pipelines.tokenizers import condition_keys
from .planning.embedding import Encoder, from_prompt_embeds, pipeline_encoder, sentence_encoder
from .planning.grouping import check_size
from .planning.plan import Cost, Plan
from .planning.prompts import checked
from .planning.sharing import make_plan
from .planning.threshold import auto_threshold
from .settings import (
    DEFAULT_BATCHING,
    DEFAULT_SETTINGS,
    DEFAULT_SHARING,
    Batching,
    Settings,
    Sharing,
    Skipping,
    settings_of,
)

WARM_STEPS = 4  # of `warm_up`, at most
FROM_EMBEDDINGS = "prompt_embeds"  # among a plan's settings: it was made without texts


@dataclass(frozen=True)
class Result:
    """Everything of a run; `result.images` (or `.audios`, `.frames`) are the pipeline's, in prompt order.

    Attributes:
        output: the pipeline's own output object, over all images.
        plan: what was shared; `plan.save(path)`, and `generate(pipe, plan=...)` gives the same images again.
        cost: denoiser rows, counted while running: `cost.used`, `cost.independent`, `cost.saving`.
        spared: rows not computed, by what spared them: "sharing", "guidance", "skipping".
        made: indices of the images in `output`, in its order: all of them, unless a callback interrupted the run.
        failed: indices of images whose latents or decoded values held a NaN or an infinity, or that were interrupted
            before their last step; they are worthless.
        flagged: indices of images that the pipeline's own safety checker replaced by black ones.
        seconds: "embed", "denoise", "decode", "total".
    """

    output: Any
    plan: Plan
    cost: Cost
    spared: dict[str, int]
    made: tuple[int, ...]
    failed: tuple[int, ...]
    flagged: tuple[int, ...]
    seconds: dict[str, float]

    def __getattr__(self, name: str) -> Any:
        output = vars(self).get("output", {})  # not there yet while a copy is being made
        if not name.startswith("_") and name in output:
            return output[name]
        raise AttributeError(f"the output of this pipeline has no {name!r}, only {', '.join(output)}")


def prepare(
    pipe: Any,
    prompts: Sequence[str] | str | None = None,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    seed: int | Sequence[int] = 0,
    num_images_per_prompt: int = 1,
    plan: Plan | None = None,
    **arguments: Any,
) -> Run:
    """Everything before the first denoiser row: check, embed, group, plan. Arguments as of `generate`."""
    begin = time.perf_counter()
    sharing, skipping, guidance_interval = settings.sharing, settings.skipping, settings.guidance_interval
    batching = settings.batching
    num_images_per_prompt = whole("num_images_per_prompt", num_images_per_prompt)
    seed = seeds_of(seed)
    if not isinstance(plan, Plan | None):
        raise CotrunkError(f"plan is a {type(plan).__name__}: give Plan.load(path).")
    if getattr(pipe, "_cotrunk", None) is not None:
        raise CotrunkError(f"Skipping is applied to this {type(pipe).__name__}: call cotrunk.remove(pipe) first.")
    check_pipeline(pipe, max_rows=batching.max_rows, alone=skipping is not None or guidance_interval is not None)
    arguments = {**needed_arguments(pipe), **arguments}
    if settings.steps is not None:
        if "num_inference_steps" in arguments:
            raise CotrunkError("settings.steps and num_inference_steps are both given: give one of them.")
        arguments["num_inference_steps"] = settings.steps
    if skipping is not None:
        read_schedule(pipe.scheduler, ())
    if "prompt" in arguments and prompts is None:  # as the pipelines call it
        prompts = arguments.pop("prompt")
    elif "prompt" in arguments:
        raise CotrunkError("prompts and prompt are both given: give one of them.")
    if plan is not None and arguments.get("prompt_embeds") is None:
        if plan.settings.get(FROM_EMBEDDINGS):  # its prompts are numbers, not texts to draw
            raise CotrunkError("The plan was made from prompt_embeds, which are not in it: give the same ones again.")
        prompts = plan.prompts if prompts is None else prompts
    if prompts is not None:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        for i, prompt in enumerate(prompts):
            checked(prompt, f"prompt {i}")
    if (prompts is None) == (arguments.get("prompt_embeds") is None):
        raise CotrunkError("Give either prompts or prompt_embeds (with what else the pipeline wants beside them).")
    count = len(arguments["prompt_embeds"] if prompts is None else prompts)
    if count == 0:
        raise CotrunkError("There are no prompts: give at least one.")
    if prompts is not None:
        arguments = {"prompt": prompts, **arguments}
    own = PerPrompt(pipe, count, arguments)
    if guidance_interval is not None:
        _check_has_interval(pipe, guidance_rows(pipe, arguments), argument(pipe, arguments, "guidance_scale"))
    if plan is None:
        plan = plan_of(pipe, own, sharing, seed=seed, images_per_prompt=num_images_per_prompt)
    else:
        _check_replays(plan, pipe, own)
    limited = batching.max_rows is not None or batching.row_sizes is not None
    shares = any(len(tree.images) > 1 for tree in plan.trees)
    if shares or limited or skipping is not None or guidance_interval is not None:
        check_folds(pipe)
    if why := runs_apart(pipe, own.arguments):
        settings = replace(settings, batching=replace(batching, batch_size=1))
        if own.prompts > 1 and sharing is not None:
            warnings.warn(f"{why}: each image runs by itself, and nothing is shared.", stacklevel=3)
    seconds = {"embed": time.perf_counter() - begin}
    together = companions(pipe, own)
    return Run(pipe, plan, own, settings, seconds, together)


def plan_of(
    pipe: Any, own: PerPrompt, sharing: Sharing | None, *, seed: int | Sequence[int] = 0, images_per_prompt: int = 1
) -> Plan:
    """What is to be shared in a call with these arguments. Asks the pipeline for its text encoders, its scheduler and
    what its denoiser's config says, so that a plan can be made without a denoiser."""
    arguments, prompts = own.arguments, own.arguments.get("prompt")
    conditions = None
    if sharing is not None:
        check_size(own.prompts)
        # only who shares must know which prompts read alike
        conditions = None if prompts is None else condition_keys(pipe, prompts, arguments)
    steps, timesteps = timesteps_of(pipe, arguments)
    vectors, threshold = vectors_of(pipe, prompts, sharing, arguments)
    plan = make_plan(
        [f"prompt {i}" for i in range(own.prompts)] if prompts is None else prompts,
        vectors,
        sharing,
        threshold,
        steps=steps,
        timesteps=timesteps,
        order=getattr(pipe.scheduler, "order", 1),
        guidance_rows=guidance_rows(pipe, arguments),
        seed=seed,
        images_per_prompt=images_per_prompt,
        identities=own.identities(prompts),
        conditions=conditions,
        keys=own.keys(),
        companions=companions(pipe, own),
    )
    return plan if prompts is not None else replace(plan, settings={**plan.settings, FROM_EMBEDDINGS: True})


def _check_replays(plan: Plan, pipe: Any, own: PerPrompt) -> None:
    """Raise `CotrunkError` if a call with these arguments cannot follow the plan."""
    prompts, keys = own.arguments.get("prompt"), list(zip(own.keys(), companions(pipe, own), strict=True))
    _, timesteps = timesteps_of(pipe, own.arguments)
    rows = guidance_rows(pipe, own.arguments)
    if len(plan.prompts) != own.prompts or (prompts is not None and list(plan.prompts) != prompts):
        raise CotrunkError("The plan is for other prompts: give the prompts it was made with, or make a new plan.")
    if plan.timesteps != timesteps:
        raise CotrunkError(
            f"The plan is for {plan.timesteps} timesteps, this call would take {timesteps}: "
            f"use num_inference_steps={plan.steps} and the plan's scheduler, or make a new plan."
        )
    if plan.guidance_rows != rows:
        raise CotrunkError(
            f"The plan counts {plan.guidance_rows} rows an evaluation, this call takes {rows}: "
            "use the guidance it was made with, or make a new plan."
        )
    if any(len({keys[plan.prompt_of(image)] for image in tree.images}) > 1 for tree in plan.trees):
        raise CotrunkError(
            "The plan shares between prompts that differ in another argument now (a negative prompt, say): "
            "make a new plan."
        )


def generate(
    pipe: Any,
    prompts: Sequence[str] | str | None = None,
    *,
    sharing: Sharing | None = DEFAULT_SHARING,
    skipping: Skipping | None = None,
    guidance_interval: tuple[float, float] | None = None,
    batching: Batching = DEFAULT_BATCHING,
    settings: Settings | None = None,
    seed: int | Sequence[int] = 0,
    num_images_per_prompt: int = 1,
    plan: Plan | None = None,
    on_batch: Callable[[Batch], None] | None = None,
    on_step: Callable[[StepEvent], None] | None = None,
    **arguments: Any,
) -> Result:
    """Make an image of every prompt with the user's pipeline; similar prompts share their early steps.

    The pipeline is used as it stands (scheduler, LoRA, ControlNet, offload, compiled or not) and left as it was.

    Args:
        pipe: any diffusers pipeline with a `unet` or `transformer` and a `scheduler`.
        prompts: the prompts; or leave them out and give `prompt_embeds=` (and what belongs to it).
        sharing: how prompts share; None for independent sampling, bit for bit what the pipeline gives when called
            with one generator per image. (Two exceptions: noise that a pipeline draws from the global generator,
            because it forgets to hand its own to a stochastic flow scheduler or an encoder, comes from the image's
            seed here. docs/sharing.md lists these pipelines.)
        seed: one for the run or one per prompt. A group starts from one noise, so an image depends on the prompts of
            its group; but for rounding it does not depend on their order nor on anything else in the run.
        num_images_per_prompt: images of each prompt, every one from another trunk.
        plan: replay this plan instead of making one (`sharing`, `seed` and `num_images_per_prompt` are the plan's).
        skipping: let every image leave out evaluations where its own trajectory is smooth (SADA); comes on top of
            sharing. None computes all.
        guidance_interval: guidance is on between these fractions of the steps, and off (one row instead of two) before
            and after (Kynkaanniemi et al. 2024). None for all steps.
        batching: how many images and denoiser rows run at once.
        settings: all of these in one object (and the steps), instead of one by one.
        on_batch: called with every finished `Batch`.
        on_step: called after every scheduler step with a `StepEvent`.
        **arguments: anything the pipeline takes. A list (or tensor) with one entry a prompt goes along with the
            prompts; prompts that differ in one (negative prompt, control image) do not share.

    Returns:
        `Result`: images in prompt order, all images of a prompt one after another; plan; cost; seconds.

    Raises:
        CotrunkError: bad arguments, or a pipeline that cotrunk cannot handle; always before any denoising.
    """
    begin = time.perf_counter()
    settings = settings_of(settings, sharing, skipping, guidance_interval, batching)
    run = prepare(
        pipe, prompts, settings, seed=seed, num_images_per_prompt=num_images_per_prompt, plan=plan, **arguments
    )
    batches = []
    for batch in run.batches(on_step=on_step):
        batches.append(batch)
        if on_batch is not None:
            on_batch(batch)
    made = tuple(sorted(image for batch in batches for image in batch.images))
    if stopped := [batch for batch in batches if batch.is_interrupted]:
        warnings.warn(
            f"The run was interrupted by a callback: {sum(len(batch.images) for batch in stopped)} images were stopped "
            f"before their last step (result.failed), and {len(run.plan) - len(made)} of {len(run.plan)} were not "
            "begun (result.made lists the images in the output).",
            stacklevel=2,
        )
    seconds = {name: sum(batch.seconds[name] for batch in batches) for name in ("embed", "denoise", "decode")}
    seconds["embed"] += run.seconds["embed"]
    return Result(
        output=merged_output(batches),
        plan=run.plan,
        cost=sum((batch.cost for batch in batches), Cost(0, 0)),
        spared={what: sum(batch.spared[what] for batch in batches) for what in SPARED},
        made=made,
        failed=tuple(sorted(image for batch in batches for image in batch.failed)),
        flagged=tuple(sorted(image for batch in batches for image in batch.flagged)),
        seconds={**seconds, "total": time.perf_counter() - begin},
    )


def warm_up(pipe: Any, prompts: Sequence[str] | None, settings: Settings = DEFAULT_SETTINGS, **arguments: Any) -> None:
    """Run a short, untimed first batch: the first forward passes of a process are slow and would distort timings.

    It shares nothing and takes a few steps; the rest of `settings` and `arguments` holds, as in `prepare`."""
    few = {**arguments, "output_type": "latent"}
    if settings.steps is not None:
        few["num_inference_steps"] = settings.steps
    with suppress(CotrunkError):  # fewer steps than the scheduler or a `strength` allows: take all of them
        steps = min(WARM_STEPS, timesteps_of(pipe, few)[0])
        timesteps_of(pipe, {**few, "num_inference_steps": steps})
        few["num_inference_steps"] = steps
    next(prepare(pipe, prompts, replace(settings, sharing=None, steps=None), **few).batches())


def encoder_of(pipe: Any, name: str) -> Encoder:
    """The encoder that `Sharing.encoder` names."""
    return pipeline_encoder(pipe) if name == "pipeline" else sentence_encoder(name)


def vectors_of(
    pipe: Any, prompts: Sequence[str] | None, sharing: Sharing | None, arguments: dict[str, Any] | None = None
) -> tuple[np.ndarray, float]:
    """Unit vectors (n, d) of the prompts, or of the `prompt_embeds` among the arguments, and the threshold that
    belongs to their encoder."""
    if sharing is None:
        return np.zeros((0, 0), dtype=np.float32), 1.0
    if prompts is not None:
        encoder = encoder_of(pipe, sharing.encoder)
        threshold = auto_threshold(encoder) if sharing.similarity == "auto" else sharing.similarity
        return encoder.encode(prompts), float(threshold)
    if sharing.similarity == "auto":
        raise CotrunkError("similarity='auto' is measured on texts: give a number with prompt_embeds.")
    arguments = arguments or {}
    masks = [arguments.get(name) for name in ("prompt_attention_mask", "prompt_embeds_mask", "attention_mask")]
    mask = next((value for value in masks if value is not None), None)
    pooled = arguments.get("pooled_prompt_embeds")
    return from_prompt_embeds(arguments["prompt_embeds"], pooled, mask), float(sharing.similarity)


def _check_has_interval(pipe: Any, rows: int, scale: Any) -> None:
    """Guidance can be off at a step where it is a second row beside the first."""
    kind = type(pipe).__name__
    if rows > 2:
        raise CotrunkError(f"{kind} guides by {rows} rows, and guidance_interval is for two: leave it out.")
    if rows == 1 and scale is not None and scale > 1:
        raise CotrunkError(
            f"Guidance costs {kind} no row of its own with these arguments: leave guidance_interval out."
        )
