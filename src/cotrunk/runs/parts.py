"""The parts of a job: prompts that may run in one call of the pipeline, each part as a job of its own.

A call of a pipeline has one size, one number of steps and one guidance scale, one strength, one set of LoRAs, and its
class takes certain input images. So prompts that differ in one of them run in different parts, and never share. Prompts
of one part may have their own negative prompts, input images, seeds and numbers of images.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from ..pipelines.prompt_weights import parse_weights
from ..pipelines.weighted_lora import loras_of
from ..planning.prompt_row import PromptRow
from ..planning.sharing import derived_seed
from ..planning.weighted_rows import check_weights
from .job import Job
from .row_inputs import inputs_of

# what divides prompts, for reports
DIFFERENCES = "size, steps, guidance, input images or LoRAs"
# what the prompts of a part have in common
_COMMON = ("images", "steps", "guidance_scale", "width", "height", "strength", "lora")


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
    """Check that the weights in prompts can be read.

    Raises:
        CotrunkError: they cannot.
    """
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
    apart: bool = False,
) -> list[Part]:
    """Divide a job into its parts, in the order of their first prompts.

    Args:
        steps, guidance_scale: the pipeline's own, which a job without a number means.
        lengths: tokens of the embeddings of each prompt, if they are encoded before the call. Padding changes images.
        first: leave out the prompts before this one.
        apart: whether prompts with different input images need calls of their own.
    """
    found: dict[Hashable, list[int]] = {}
    for i, row in enumerate(job.prompts):
        key = (
            _first(row.steps, job.settings.steps, steps),
            _first(row.guidance_scale, job.guidance_scale, guidance_scale),
            *size_of_row(job, row),
            inputs_of(job, row).files if apart else (),
            class_and_weights(job, row),
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
    return derived_seed("retry", seed, attempts)


def class_and_weights(job: Job, row: PromptRow) -> Hashable:
    """Return what a prompt needs of a pipeline apart from size, steps and guidance: its class, LoRAs and strength."""
    inputs = inputs_of(job, row)
    # a pipeline may treat "no negative prompt" in another way than an empty one
    has_no_negative = row.negative_prompt is None and job.negative_prompt is None
    return inputs.kinds, inputs.strength, job.lora if row.lora is None else loras_of(row.lora), has_no_negative


def size_of_row(job: Job, row: PromptRow) -> tuple[int | None, int | None]:
    """Return width and height of the images of a prompt; None for the pipeline's own.

    They are the ones that are asked for, or those of its input image.
    """
    own = inputs_of(job, row).size or (None, None)
    return _first(row.width, job.width, own[0]), _first(row.height, job.height, own[1])


def part_of_rows(job: Job, rows: Sequence[int]) -> Part:
    """Return the part with these prompts, which may run in one call."""
    first = job.prompts[rows[0]]
    copies = tuple(job.images_per_prompt if (count := job.prompts[i].images) is None else count for i in rows)
    prompts = tuple(_shared_fields_removed(job.prompts[i]) for i in rows)
    width, height = size_of_row(job, first)
    own = replace(
        job,
        prompts=prompts,
        settings=replace(job.settings, steps=_first(first.steps, job.settings.steps)),
        guidance_scale=_first(first.guidance_scale, job.guidance_scale),
        width=width,
        height=height,
        strength=_first(first.strength, job.strength),
        lora=job.lora if first.lora is None else loras_of(first.lora),
        images_per_prompt=max(copies),
    )
    return Part(tuple(rows), own, copies)


def _shared_fields_removed(row: PromptRow) -> PromptRow:
    none: dict[str, Any] = dict.fromkeys(_COMMON)
    return replace(row, **none)


def copies_of(job: Job) -> list[int]:
    """Return the number of images of each prompt."""
    return [job.images_per_prompt if row.images is None else row.images for row in job.prompts]


def first_images(job: Job) -> list[int]:
    """Return the number of the first image of each prompt: images are counted prompt by prompt."""
    return list(accumulate(copies_of(job), initial=0))[:-1]


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
