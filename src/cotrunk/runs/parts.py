"""The parts of a job: prompts that may run in one call of the pipeline, each part as a job of its own.

A call of a pipeline has one size, one number of steps and one guidance scale. So prompts that differ in one of them run
in different parts, and never share. Prompts of one part may have their own negative prompts, seeds and numbers of
images.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from ..errors import CotrunkError
from ..pipelines.prompt_weights import parse_weights
from ..planning.prompt_row import PromptRow
from ..planning.sharing import _digest
from ..planning.weighted_rows import check_weights
from .job import Job

_UNSUPPORTED = ("image", "mask_image", "control_image", "strength", "lora")


@dataclass(frozen=True)
class Part:
    """Prompts of a job that may run in one call.

    Attributes:
        rows: their indices in the prompts of the whole job.
        job: of these prompts alone, with their common steps, guidance scale and size. Its `images_per_prompt` is the
            largest of `copies`.
        copies: the number of images of each prompt.
    """

    rows: tuple[int, ...]
    job: Job
    copies: tuple[int, ...]

    @property
    def planned(self) -> list[PromptRow]:
        """The prompts of the part's plan: each once, or once per image if they have different numbers of images."""
        if len(set(self.copies)) == 1:
            return list(self.job.prompts)
        return [row for row, count in zip(self.job.prompts, self.copies, strict=True) for _ in range(count)]

    def aligned(self) -> Job:
        """Return the job with the prompts of the part's plan: image by image if their numbers of images differ."""
        if len(set(self.copies)) == 1:
            return self.job
        rows = tuple(replace(row, id=None) for row in self.planned)  # an id would be there once per image
        return replace(self.job, prompts=rows, images_per_prompt=1, output=replace(self.job.output, records=()))


def check_rows(job: Job) -> None:
    """Check that runs support the settings of each prompt.

    Raises:
        CotrunkError: they do not support one.
    """
    for i, row in enumerate(job.prompts):
        for name in _UNSUPPORTED:
            if getattr(row, name) is not None:
                raise CotrunkError(f"prompt {i} has its own {name}, which runs do not support: leave it out.")
    if job.weights:
        check_weights((f"prompt {i}", row) for i, row in enumerate(job.prompts))
        if job.negative_prompt is not None:
            parse_weights(job.negative_prompt)


def parts_of(
    job: Job,
    steps: int | None = None,
    guidance_scale: float | None = None,
    lengths: Sequence[int] | None = None,
    *,
    first: int = 0,
) -> list[Part]:
    """Divide a job into its parts, in the order of their first prompts.

    Args:
        steps, guidance_scale: the pipeline's own, which a job without a number means.
        lengths: tokens of the embeddings of each prompt, if they are encoded before the call. Padding changes images.
        first: leave out the prompts before this one.
    """
    found: dict[Hashable, list[int]] = {}
    for i, row in enumerate(job.prompts):
        key = (
            _first(row.steps, job.settings.steps, steps),
            _first(row.guidance_scale, job.guidance_scale, guidance_scale),
            _first(row.width, job.width),
            _first(row.height, job.height),
            # a pipeline may treat "no negative prompt" in another way than an empty one
            row.negative_prompt is None and job.negative_prompt is None,
            None if lengths is None else lengths[i],
        )
        if i >= first:
            found.setdefault(key, []).append(i)
    return [part_of_rows(job, rows) for rows in found.values()]


def again(job: Job, rows: Sequence[int]) -> Job:
    """Return the job of images that are generated again, one image per row. The rows have no seeds."""
    prompts = tuple(replace(job.prompts[i], images=1, id=None, seed=None) for i in rows)
    return replace(job, prompts=prompts, images_per_prompt=1, output=replace(job.output, records=()))


def retry_seed(seed: int, attempts: int) -> int:
    """Return the seed of images that are generated again, after a number of earlier attempts."""
    return _digest("retry", seed, attempts)


def part_of_rows(job: Job, rows: Sequence[int]) -> Part:
    """Return the part with these prompts, which may run in one call."""
    first = job.prompts[rows[0]]
    every = copies_of(job)
    copies = tuple(every[i] for i in rows)
    prompts = tuple(_shared_fields_removed(job.prompts[i]) for i in rows)
    own = replace(
        job,
        prompts=prompts,
        settings=replace(job.settings, steps=_first(first.steps, job.settings.steps)),
        guidance_scale=_first(first.guidance_scale, job.guidance_scale),
        width=_first(first.width, job.width),
        height=_first(first.height, job.height),
        images_per_prompt=max(copies),
    )
    return Part(tuple(rows), own, copies)


def _shared_fields_removed(row: PromptRow) -> PromptRow:
    return replace(row, images=None, steps=None, guidance_scale=None, width=None, height=None)


def copies_of(job: Job) -> list[int]:
    """Return the number of images of each prompt."""
    return [job.images_per_prompt if row.images is None else row.images for row in job.prompts]


def first_images(job: Job) -> list[int]:
    """Return the number of the first image of each prompt: images are counted prompt by prompt."""
    return list(accumulate(copies_of(job), initial=0))[:-1]


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
