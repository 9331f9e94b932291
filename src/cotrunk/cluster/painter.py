"""A painter: loads the pipeline once, and generates one wave after another. There is one per GPU."""

import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..drawing.thumbnails import SIDE, small_file
from ..errors import CotrunkError
from ..execution import Batch, Run
from ..generation import prepare
from ..pipelines.own_defaults import own_guidance
from ..planning.tree import Branch, packed
from ..runs.arm import Arm
from ..runs.facts import PipelineFacts
from ..runs.images import digest_of, encoded_images
from ..runs.job import Job
from ..runs.journal import Line, line_of
from ..runs.large import thumbnail_file
from ..runs.part_pipelines import PartPipelines, has_own_loras
from ..runs.part_run import arguments_of
from ..runs.runner import facts_of, load_pipeline_of
from ..runs.trained_trunk import other_trunk
from ..storage.files import StorageError, StoredFiles
from . import failed
from .attempts import Attempts
from .manifest import Finished, write_part
from .setup import Setup, prepared_here
from .uploads import Uploads
from .waves import Recipe


class Painter:
    """Generates waves. It never raises an error of the input, which Ray would wrap, repeat and print: it returns it.

    Args:
        setup: what to load, and where to write.
        load: returns the pipeline of a job.
    """

    def __init__(self, setup: Setup, load: Callable[[Job], Any] = load_pipeline_of) -> None:
        self.error, self.store = "", StoredFiles(setup.place)
        try:
            job = prepared_here(setup)
            pipe = load(replace(job, lora=()) if has_own_loras(job) else job)
            self.pipelines, self.facts = PartPipelines(pipe, job), facts_of(pipe)
        except CotrunkError as error:
            self.error = f"{error}"

    def __call__(self, wave: Mapping[str, Any]) -> str:
        """Generate a wave. Return an error that concerns the whole run; empty if there is none.

        Args:
            wave: a row of the waves' file.
        """
        if not self.error:
            try:
                self.paint(wave["id"], wave["rows"], Recipe.from_text(wave["recipe"]))
            except CotrunkError as error:
                return f"{error}"
        return self.error

    def paint(self, wave: str, rows: int, recipe: Recipe) -> Finished:
        """Generate a wave, and write its images and its part of the manifest.

        Args:
            wave: its id.
            rows: predicted.
            recipe: of the wave.

        Raises:
            CotrunkError: a file cannot be written. What is wrong with a group goes to `failed/` instead.
        """
        begin = time.perf_counter()
        attempts, given_up, lines, facts = Attempts(self.store, wave), list[str](), list[Line](), self.facts
        numbers = {tree.images: number for tree, number in zip(recipe.plan.trees, recipe.groups, strict=True)}
        arm, run = recipe.own_arm(), None
        todo, done = _packs(recipe, attempts, numbers), set[int]()
        with Uploads(self.store) as uploads:
            while todo:
                trees = [tree for tree in todo.pop(0) if not done.issuperset(tree.images)]
                groups = [numbers[tree.images] for tree in trees]
                if len(trees) == 1 and attempts.is_given_up(groups[0]):
                    given_up.append(failed.write(self.store, wave, recipe, trees[0], groups[0], failed.DIED))
                    continue
                attempts.begin(groups)
                try:
                    if run is None:
                        run = self._run(recipe)
                        facts = self._facts_of(recipe, run)
                    for batch in _batches(run, trees):
                        lines.append(self._write(arm, batch, recipe, run, facts, uploads))
                        done.update(batch.images)
                except Exception as error:
                    if is_of_the_run(error, is_prepared=run is not None):
                        raise
                    attempts.failed(groups)
                    trace = traceback.format_exc()
                    left = [tree for tree in trees if not done.issuperset(tree.images)]
                    for tree in reversed(left):
                        group = numbers[tree.images]
                        if attempts.is_given_up(group):
                            given_up.append(failed.write(self.store, wave, recipe, tree, group, trace))
                        else:
                            todo.insert(0, (tree,))
                    self._recover()
        finished = Finished(
            wave=wave,
            rows=rows,
            seconds=round(time.perf_counter() - begin, 3),
            machine=platform.node(),
            pipeline=facts,
            failed=tuple(given_up),
            lines=tuple(lines),
        )
        write_part(self.store, finished)
        attempts.forget()
        return finished

    def _run(self, recipe: Recipe) -> Run:
        """Return the wave ready to denoise."""
        job = recipe.job
        pipe = self.pipelines.of(job)
        return prepare(pipe, job.texts, job.settings, plan=recipe.plan, **arguments_of(job, job.prompts, pipe))

    def _facts_of(self, recipe: Recipe, run: Run) -> PipelineFacts:
        """Return the facts of the pipeline, with what it means for the wave's part."""
        scale = recipe.job.guidance_scale
        return replace(
            self.facts,
            guidance_scale=own_guidance(self.pipelines.base) if scale is None else scale,
            skipping=run.skipping,
            why_not_skipped=run.why_not_skipped,
            other_trunk=other_trunk(recipe.job.lora, recipe.plan),
        )

    def _write(self, arm: Arm, batch: Batch, recipe: Recipe, run: Run, facts: PipelineFacts, uploads: Uploads) -> Line:
        """Begin to write the images of a batch and return its line for the journal."""
        settings = replace(run.settings, sharing=recipe.plan.sharing, steps=recipe.plan.steps)
        job = replace(recipe.job, settings=settings, guidance_scale=facts.guidance_scale)
        digests = list[str | None]()
        contents = encoded_images(arm, batch, job, facts, batch.images)
        for image, content, made in zip(batch.images, contents, batch.output.images, strict=True):
            name = recipe.files[image]
            if content is not None:
                uploads.put(name, content)
                if arm.has_thumbnails and max(made.size) > SIDE:
                    uploads.put(thumbnail_file(name), small_file(made))
            digests.append(None if content is None else digest_of(content))
        return line_of(arm.name, batch, tuple(digests), recipe.images.__getitem__)

    def _recover(self) -> None:
        """Free memory after a failure, and end this process if its device is broken: Ray starts another one."""
        import torch

        if torch.cuda.is_available():
            try:
                torch.cuda.empty_cache()
                torch.cuda.synchronize()
            except RuntimeError:  # after some errors of a kernel, every further call fails
                os._exit(1)


def is_of_the_run(error: Exception, *, is_prepared: bool) -> bool:
    """Return whether an error concerns the whole run, because every other group would meet it too.

    Args:
        error: what a group raised.
        is_prepared: whether its wave was ready to denoise: before, only bad input is an error of this kind.
    """
    is_storage = isinstance(error, StorageError) or isinstance(error.__cause__, OSError)
    return isinstance(error, CotrunkError) and (not is_prepared or is_storage)


def _packs(recipe: Recipe, attempts: Attempts, numbers: Mapping[tuple[int, ...], int]) -> list[tuple[Branch, ...]]:
    """Return the groups that run together: as many as a batch takes; those with which processes died run alone."""
    alone = [tree for tree in recipe.plan.trees if attempts.runs_alone(numbers[tree.images])]
    others = [tree for tree in recipe.plan.trees if tree not in alone]
    packs = list(packed(others, recipe.job.settings.batching.batch_size))
    return [*packs, *((tree,) for tree in alone)]


def _batches(run: Run, trees: Sequence[Branch]) -> Iterator[Batch]:
    """Generate some groups, in smaller batches if memory runs out."""
    wanted = {tree.images for tree in trees}
    return run.batches(skip=lambda images: tuple(images) not in wanted)
