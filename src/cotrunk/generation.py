"""The main functions: generate images of many prompts with the user's pipeline, stream their batches, or only plan."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from .checks import seeds_of, whole
from .engine.call_state import StepEvent
from .engine.progress import run_bar
from .errors import CotrunkError
from .execution import SPARED, Batch, Run
from .pipelines.arguments import needed_arguments
from .pipelines.automatic import why_not_skipped
from .pipelines.batch_compatibility import runs_apart
from .pipelines.compatibility import check_folds, check_pipeline
from .pipelines.cost import timesteps_of
from .pipelines.noise_schedule import read_schedule
from .pipelines.outputs import merged
from .planning.plan import Cost, Plan
from .planning.request import Request
from .planning.trunk_store import TrunkStore
from .planning.vector_files import VectorFiles
from .result import Result
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
from .trunks.lookup import Seeding
from .trunks.use import connected

WARM_STEPS = 4  # most steps of `warm_up`


def generate(
    pipe: Any,
    prompts: Sequence[str] | str | None = None,
    *,
    sharing: Sharing | None = DEFAULT_SHARING,
    skipping: Skipping | Literal["auto"] | None = "auto",
    guidance_interval: tuple[float, float] | None = None,
    batching: Batching = DEFAULT_BATCHING,
    settings: Settings | None = None,
    seed: int | Sequence[int] = 0,
    num_images_per_prompt: int = 1,
    plan: Plan | None = None,
    trunks: TrunkStore | None = None,
    on_batch: Callable[[Batch], None] | None = None,
    on_step: Callable[[StepEvent], None] | None = None,
    **arguments: Any,
) -> Result:
    """Generate an image of each prompt with the user's pipeline; similar prompts share their early steps.

    The pipeline keeps its scheduler, LoRA, ControlNet, offloading and compilation, and is unchanged afterwards.

    Args:
        pipe: any diffusers pipeline with a `unet` or `transformer` and a `scheduler`.
        prompts: the prompts; or omit them and give `prompt_embeds=` (and the other embeddings that the pipeline needs).
            With both, the embeddings make the images, and the texts tell which prompts are similar.
        sharing: how prompts share; None for independent sampling. With `sharing=None, skipping=None` the images are bit
            for bit what the pipeline gives when called with one generator per image. (One exception: some pipelines do
            not pass their generators to a stochastic flow scheduler or an encoder, which then uses the global
            generator. Here that noise comes from the image's seed. docs/sharing.md lists these pipelines.)
        skipping: each image skips evaluations where its own trajectory is smooth (SADA), in addition to sharing. "auto"
            is `Skipping()` where pipeline and scheduler allow it; elsewhere nothing is skipped, and a warning says why.
            None computes all.
        guidance_interval: guidance is on between these fractions of the steps, and off (one row instead of two) before
            and after (Kynkaanniemi et al. 2024). None for all steps.
        batching: how many images and denoiser rows run at once.
        settings: all of the above in one object, and the number of steps, instead of one by one.
        seed: one for the run or one per prompt. A group shares steps, and its noise unless `sharing` says otherwise, so
            an image depends on the prompts of its group. Apart from rounding, it depends neither on their order nor on
            anything else in the run.
        num_images_per_prompt: images of each prompt, each from a different trunk.
        plan: replay this plan instead of making one; it determines `sharing`, `seed` and `num_images_per_prompt`.
        trunks: a trunk cache (`Trunks(folder)`): similar prompts share their early steps even if they arrive at
            different times (docs/trunks.md). The plan holds what each image replays, so it gives the same images
            without the cache.
        on_batch: called with each finished `Batch`.
        on_step: called after each scheduler step with a `StepEvent`.
        **arguments: anything the pipeline takes. A list (or tensor) with one entry per prompt is divided among the
            prompts; prompts that differ in one (negative prompt, control image) do not share.

    Returns:
        `Result`: images in prompt order, all images of a prompt one after another; plan; cost; seconds.

    Raises:
        CotrunkError: bad arguments, or a pipeline that cotrunk cannot handle; before any denoising,
            except for what only the first denoiser call shows.
    """
    begin = time.perf_counter()
    settings = settings_of(settings, sharing, skipping, guidance_interval, batching)
    given: dict[str, Any] = {
        "seed": seed,
        "num_images_per_prompt": num_images_per_prompt,
        "plan": plan,
        "trunks": trunks,
    }
    run = prepare(pipe, prompts, settings, **given, **arguments)
    _warn_if_nothing_is_skipped(run)
    batches = []
    with run_bar(pipe, run.plan.cost.used, len(run.plan)) as bar:
        for batch in run.batches(on_step=bar.also(on_step)):
            batches.append(batch)
            bar.batch(batch.cost.used + batch.spared["skipping"] + batch.spared["guidance"], len(batch.images))
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
        output=merged([batch.output for batch in batches], [image for batch in batches for image in batch.images]),
        plan=run.plan,
        cost=sum((batch.cost for batch in batches), Cost(0, 0)),
        spared={what: sum(batch.spared[what] for batch in batches) for what in SPARED},
        made=made,
        failed=tuple(sorted(image for batch in batches for image in batch.failed)),
        flagged=tuple(sorted(image for batch in batches for image in batch.flagged)),
        seconds={**seconds, "total": time.perf_counter() - begin},
    )


def stream(
    pipe: Any,
    prompts: Sequence[str] | str | None = None,
    *,
    sharing: Sharing | None = DEFAULT_SHARING,
    skipping: Skipping | Literal["auto"] | None = "auto",
    guidance_interval: tuple[float, float] | None = None,
    batching: Batching = DEFAULT_BATCHING,
    settings: Settings | None = None,
    seed: int | Sequence[int] = 0,
    num_images_per_prompt: int = 1,
    plan: Plan | None = None,
    trunks: TrunkStore | None = None,
    on_step: Callable[[StepEvent], None] | None = None,
    **arguments: Any,
) -> Iterator[Batch]:
    """Generate like `generate`, but yield each `Batch` as soon as it is finished.

        for batch in stream(pipe, prompts):
            for index, image in zip(batch.images, batch.output.images):
                image.save(f"{index}.png")

    Image `i` belongs to prompt `i // num_images_per_prompt`. Batches need not come in the order of the prompts. The
    arguments are checked and the plan is made at once; denoising begins with the first batch that is asked for.

    Raises:
        CotrunkError: as `generate`.
    """
    settings = settings_of(settings, sharing, skipping, guidance_interval, batching)
    given: dict[str, Any] = {
        "seed": seed,
        "num_images_per_prompt": num_images_per_prompt,
        "plan": plan,
        "trunks": trunks,
    }
    run = prepare(pipe, prompts, settings, **given, **arguments)
    _warn_if_nothing_is_skipped(run)
    return run.batches(on_step=on_step)


def plan(
    pipe: Any,
    prompts: Sequence[str] | str | None = None,
    *,
    sharing: Sharing | None = DEFAULT_SHARING,
    settings: Settings | None = None,
    seed: int | Sequence[int] = 0,
    num_images_per_prompt: int = 1,
    trunks: TrunkStore | None = None,
    vectors: VectorFiles | None = None,
    **arguments: Any,
) -> Plan:
    """Decide what `generate` would share, without denoising: `plan(pipe, prompts).cost` gives the saving.

    The pipeline may lack its denoiser: `load_pipeline(model, denoiser=False)` reads only its config. The saving
    from skipping is known only after a run, so of `settings` only sharing and steps matter. Other arguments are for the
    pipeline, as in `generate`, which also takes the plan (`plan=`). `vectors` keeps the vectors of the prompts in a
    folder, so that planning many prompts can be stopped and continued.

    Raises:
        CotrunkError: bad arguments, or prompts that cannot be embedded.
    """
    settings = settings_of(settings, sharing)
    request = Request(pipe, prompts, _arguments(pipe, settings, arguments), vectors=vectors)
    seed, images = seeds_of(seed), whole("num_images_per_prompt", num_images_per_prompt)
    made = request.plan(settings.sharing, seed=seed, images_per_prompt=images)
    return connected(request, made, trunks, resolved(pipe, settings)[0], Seeding(seed, images))[0]


def prepare(
    pipe: Any,
    prompts: Sequence[str] | str | None = None,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    seed: int | Sequence[int] = 0,
    num_images_per_prompt: int = 1,
    plan: Plan | None = None,
    trunks: TrunkStore | None = None,
    seeding: Seeding | None = None,
    **arguments: Any,
) -> Run:
    """Do everything before the first denoiser row: check, embed, group, plan. The arguments are those of `generate`.

    Args:
        seeding: where the seeds of `plan` come from, to choose its trunks now. None replays the plan as it is.
    """
    begin = time.perf_counter()
    batching = settings.batching
    skips_rows = settings.skipping not in (None, "auto") or settings.guidance_interval is not None
    if not isinstance(plan, Plan | None):
        raise CotrunkError(f"plan is a {type(plan).__name__}: give Plan.load(path).")
    if getattr(pipe, "_cotrunk", None) is not None:
        raise CotrunkError(f"Skipping is applied to this {type(pipe).__name__}: call cotrunk.remove(pipe) first.")
    check_pipeline(pipe, max_rows=batching.max_rows, skips_rows=skips_rows)
    arguments = _arguments(pipe, settings, arguments)
    settings, why_not = resolved(pipe, settings)
    if settings.skipping is not None:
        skips_rows = True
        read_schedule(pipe.scheduler, ())
    if plan is not None and arguments.get("prompt_embeds") is None:
        if plan.from_embeddings:  # its prompts are only names for the embeddings
            raise CotrunkError(
                "The plan was made from prompt_embeds, which are not in it: pass the same prompt_embeds."
            )
        prompts = plan.prompts if prompts is None and "prompt" not in arguments else prompts
    request = Request(pipe, prompts, arguments)
    if settings.guidance_interval is not None:
        request.check_interval()
    if plan is None:
        seed, images = seeds_of(seed), whole("num_images_per_prompt", num_images_per_prompt)
        plan, seeding = request.plan(settings.sharing, seed=seed, images_per_prompt=images), Seeding(seed, images)
    else:
        request.check_replays(plan)
    plan, cache = connected(request, plan, trunks, settings, seeding)
    shares = bool(plan.trunks) or any(len(tree.images) > 1 for tree in plan.trees)
    if shares or skips_rows or batching.max_rows is not None or batching.row_sizes is not None:
        check_folds(pipe)
    if why := runs_apart(pipe, request.arguments.arguments):
        settings = replace(settings, batching=replace(batching, batch_size=1))
        if request.arguments.prompts > 1 and settings.sharing is not None:
            warnings.warn(f"{why}: each image runs by itself, and nothing is shared.", stacklevel=3)
    seconds = {"embed": time.perf_counter() - begin}
    return Run(
        pipe, plan, request.arguments, settings, seconds, request.companions, why_not_skipped=why_not, cache=cache
    )


def warm_up(pipe: Any, prompts: Sequence[str] | None, settings: Settings = DEFAULT_SETTINGS, **arguments: Any) -> None:
    """Run a short, untimed first batch: the first forward passes of a process are slow and would distort timings.

    It shares and skips nothing, and takes a few steps. The other `settings` and `arguments` apply as in `prepare`.
    """
    few = {**arguments, "output_type": "latent"}
    if settings.steps is not None:
        few["num_inference_steps"] = settings.steps
    with suppress(CotrunkError):  # fewer steps than the scheduler or a `strength` allows: take all of them
        steps = min(WARM_STEPS, timesteps_of(pipe, few)[0])
        timesteps_of(pipe, {**few, "num_inference_steps": steps})
        few["num_inference_steps"] = steps
    next(prepare(pipe, prompts, replace(settings, sharing=None, skipping=None, steps=None), **few).batches())


def _warn_if_nothing_is_skipped(run: Run) -> None:
    if run.why_not_skipped is not None:
        text = f"Nothing is skipped: {run.why_not_skipped}. Give skipping=None to say so without this warning."
        warnings.warn(text, stacklevel=3)


def _arguments(pipe: Any, settings: Settings, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call: those that this pipeline needs, the user's, and the steps of the settings."""
    if settings.steps is None:
        return {**needed_arguments(pipe), **arguments}
    if "num_inference_steps" in arguments:
        raise CotrunkError("settings.steps and num_inference_steps are both given: give one of them.")
    return {**needed_arguments(pipe), **arguments, "num_inference_steps": settings.steps}


def resolved(pipe: Any, settings: Settings) -> tuple[Settings, str | None]:
    """Return the settings with a value in place of "auto" for skipping, and why nothing is skipped if that is so."""
    if settings.skipping != "auto":
        return settings, None
    why_not = why_not_skipped(pipe)
    return replace(settings, skipping=Skipping() if why_not is None else None), why_not
