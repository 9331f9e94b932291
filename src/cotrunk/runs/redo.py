"""Generate images again from their recipes, unchanged or with other settings.

An image depends on its group: its trunk is the mean of the group's prompts. But forward passes of another size round
differently, so unchanged images run with their whole batch, which gives the same bits. Changed ones run with their
groups alone.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..engine.call_state import StepEvent
from ..errors import CotrunkError
from ..execution import Batch, Run
from ..files import check_folder
from ..generation import plan as plan_prompts
from ..generation import prepare
from ..lock import held
from ..pipelines import loading
from ..planning.plan import Cost, Plan
from ..planning.replayed import Replayed
from ..planning.tree import Branch, leaf
from .arm import Arm
from .changes import Changes
from .events import BatchDone, Denoising, DenoisingDone, Loading, OnEvent, StepDone, Unlocked, ignore
from .images import ImageFiles
from .job import Job
from .job_plan import job_plan
from .output import SUFFIXES
from .part_pipelines import PartPipelines, check_parts
from .part_run import arguments_of
from .recipe import Recipe, part_of
from .row_inputs import checked_inputs
from .runner import facts_of, load_pipeline_of


@dataclass(frozen=True)
class Original:
    """An image to generate again.

    Attributes:
        recipe: how it was generated.
        name: of its new file, without a suffix; a slash makes folders.
        file: the original, to compare with.
    """

    recipe: Recipe
    name: str
    file: Path


@dataclass(frozen=True)
class Redone:
    """An image that was generated again.

    Attributes:
        path: its file; None if it failed.
        flagged: whether the safety checker replaced it.
        difference: the largest difference from the original, in levels of 255; None if it cannot be compared.
    """

    path: Path | None
    flagged: bool
    difference: int | None


@dataclass(frozen=True)
class _Task:
    """A batch, with those of its images that are wanted: index in its plan -> original."""

    job: Job
    recipe: Recipe
    wanted: dict[int, Original]


def redo(
    originals: Sequence[Original],
    changes: Changes,
    out: Path,
    *,
    on_event: OnEvent = ignore,
    load: Callable[[Job], Any] = load_pipeline_of,
) -> tuple[list[Redone], Cost]:
    """Generate images again into the folder `out`. Return them in the order of the batches, and the rows that it took.

    Args:
        originals: the images.
        changes: what differs from their recipes.
        out: a folder that holds no files with these names.
        on_event: called with each event (see `events`).
        load: returns the pipeline of a job.

    Raises:
        CotrunkError: bad input, or a folder that cannot be written.
    """
    tasks = _tasks(originals, changes)
    check_folder(out)
    paths = dict[Path, Path]()
    for task in tasks:
        loading.check_names(task.job.device, task.job.dtype, task.job.scheduler, task.job.offload)
        if load is load_pipeline_of:
            _check_model(task.job)
        for original in task.wanted.values():
            path = out / f"{original.name}.{SUFFIXES[task.job.output.format]}"
            if path.exists():
                raise CotrunkError(f"{path} exists already: choose another --out.")
            if (other := paths.setdefault(path, original.file)) != original.file:
                raise CotrunkError(
                    f"{other} and {original.file} would both be {path}: redo them into different folders."
                )
    redone, cost = list[Redone](), Cost(0, 0)
    with held(out, "**/") as lock:
        if not lock.is_kept:
            on_event(Unlocked(out))
        pipe, loaded = None, None
        for task in sorted(tasks, key=lambda task: repr(_model_of(task.job))):
            if pipe is None or loaded != _model_of(task.job):
                pipe = None  # frees its memory before the next one is loaded
                on_event(Loading(task.job.model))
                pipe, loaded = PartPipelines(load(task.job), task.job), _model_of(task.job)
            own = pipe.of(task.job)
            for arm, batch, wanted in _batches(own, task, changes, on_event):
                cost += batch.cost
                lock.check()
                redone += _written(out, arm, batch, task.job, wanted, own, changes)
    return redone, cost


def _check_model(job: Job) -> None:
    """Raise `CotrunkError` if the model or a LoRA of a recipe does not exist any more."""
    try:
        loading.check_model(job.source, job.lora)
    except CotrunkError as error:
        why = str(error).rstrip(".")
        raise CotrunkError(f"{why}. The recipe names it: say where it is now with --model or --lora.") from None
    check_parts(job)


def _model_of(job: Job) -> tuple[object, ...]:
    kept = (job.device, job.dtype, job.offload, job.vae_tiling, job.compiled)
    return job.source, job.lora, job.scheduler, job.controlnet, *kept


def _tasks(originals: Sequence[Original], changes: Changes) -> list[_Task]:
    tasks = dict[str, _Task]()
    for original in originals:
        recipe = original.recipe
        key = recipe.of(0, 0).to_text()  # equal for the images of one batch
        if key not in tasks:  # reads its input images
            job = checked_inputs(changes.applied(recipe.job, recipe.pipeline.dtype))
            tasks[key] = _Task(job, recipe, {})
        tasks[key].wanted[recipe.image] = original
    return list(tasks.values())


def _batches(
    pipe: Any, task: _Task, changes: Changes, on_event: OnEvent
) -> Iterator[tuple[Arm, Batch, dict[int, Original]]]:
    """Run the batch of a task, or the groups of its wanted images. Yield the batches with their wanted images."""
    job, plan, wanted = task.job, task.recipe.plan, task.wanted
    is_whole = changes.keeps_images and not changes.alone
    if not changes.keeps_images:
        plan = _changed_plan(pipe, job, plan)
    if not is_whole:
        trees = [tree for tree in plan.trees if not wanted.keys().isdisjoint(tree.images)]
        images = [image for tree in trees for image in tree.images]
        plan = part_of(plan, images)
        job = replace(job, prompts=tuple(job.prompts[image] for image in images))
        wanted = {place: wanted[image] for place, image in enumerate(images) if image in wanted}
    run = prepare(pipe, job.texts, job.settings, plan=plan, **arguments_of(job, job.prompts, pipe))
    arm = Arm("redo", plan, ".", job_plan(job, [(range(len(job.prompts)), plan)]).parts[0], output=job.output)
    on_event(Denoising(plan.cost.used, len(plan), 0, 0))
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # NaN in images, which is reported
            for batch in _run(run, is_whole, lambda event: on_event(StepDone(event.rows))):
                yield arm, batch, wanted
                on_event(BatchDone("redo", batch.images, batch.cost.used))
    finally:
        on_event(DenoisingDone())


def _run(run: Run, is_whole: bool, on_step: Callable[[StepEvent], None]) -> Iterator[Batch]:
    if is_whole:
        yield run.run(run.plan.trees, on_step=on_step)
    else:
        yield from run.batches(on_step=on_step)


def _changed_plan(pipe: Any, job: Job, plan: Plan) -> Plan:
    """Return the plan of the same images and noise for another number of steps, or without sharing."""
    settings = replace(job.settings, sharing=None)
    found = plan_prompts(pipe, job.texts, settings=settings, **arguments_of(job, job.prompts, pipe))
    if job.settings.sharing is None:
        return replace(found, seeds=plan.seeds)
    order = getattr(pipe.scheduler, "order", 1)
    trees = [new for tree in plan.trees for new in _rescaled(tree, plan.timesteps, found.timesteps, order)]
    trunks = [new for trunk in plan.trunks if (new := _longer(trunk, plan.timesteps, found.timesteps, order))]
    stops = {tree.images: tree.stop for tree in trees}  # a tree whose trunk has no step left is several trees now
    return replace(
        plan,
        trees=tuple(sorted(trees, key=lambda tree: tree.images)),
        steps=found.steps,
        timesteps=found.timesteps,
        guidance_rows=found.guidance_rows,
        trunks=tuple(trunk for trunk in trunks if trunk.stop <= stops.get(trunk.images, 0)),
    )


def _longer(trunk: Replayed, before: int, timesteps: int, order: int) -> Replayed | None:
    """Return what images replay in another number of timesteps; None if no step is left. See `_rescaled`."""
    steps, stop = (count * timesteps // before // order * order for count in (trunk.recipe.steps, trunk.stop))
    return replace(trunk, recipe=replace(trunk.recipe, steps=steps), stop=stop) if stop else None


def _rescaled(tree: Branch, before: int, timesteps: int, order: int, start: int = 0) -> list[Branch]:
    """Return a tree with another number of timesteps; its branches, if none of its own steps are left.

    Args:
        tree: its old version.
        before, timesteps: the old and the new number.
        order: evaluations per step: a tree branches between whole steps.
        start: where it starts.
    """
    if not tree.children:
        return [leaf(tree.images[0], start, timesteps)]
    stop = max(start, tree.stop * timesteps // before // order * order)
    children = tuple(new for child in tree.children for new in _rescaled(child, before, timesteps, order, stop))
    return [replace(tree, start=start, stop=stop, children=children)] if stop > start else list(children)


def _written(
    out: Path, arm: Arm, batch: Batch, job: Job, wanted: dict[int, Original], pipe: Any, changes: Changes
) -> Iterator[Redone]:
    """Write the wanted images of a batch."""
    files, suffix = ImageFiles(out), SUFFIXES[job.output.format]
    names = {image: f"{original.name}.{suffix}" for image, original in wanted.items()}
    digests = files.write(arm, batch, job, facts_of(pipe), names)
    for image, digest in zip(batch.images, digests, strict=True):
        if image not in wanted:
            continue
        path = None if digest is None else out / names[image]
        can_compare = path is not None and changes.keeps_images and job.output.is_lossless
        difference = _difference(wanted[image].file, path) if can_compare and path is not None else None
        yield Redone(path, image in batch.flagged, difference)


def _difference(one: Path, other: Path) -> int | None:
    """Return the largest difference between two images in levels of 255; None if they cannot be compared."""
    try:
        with Image.open(one) as first, Image.open(other) as second:
            if first.format == "JPEG" or first.size != second.size or first.mode != second.mode:
                return None
            return int(np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int)).max())
    except Exception:  # Pillow raises many types for a damaged file
        return None
