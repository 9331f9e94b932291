"""What differs from a recipe when an image is generated again."""

from dataclasses import dataclass, fields, replace
from typing import Any

from ..pipelines.weighted_lora import WeightedLora
from ..planning.prompt_row import COLUMNS
from ..settings import Skipping
from .job import Job
from .output import Format, Output


@dataclass(frozen=True)
class Changes:
    """What differs from the recipes; None keeps what they say.

    Attributes:
        steps, guidance_scale, negative_prompt, model, lora, scheduler: as in `Job`.
        exact: neither share nor skip.
        tolerance: of skipping.
        format: of the files.
        device, dtype: as in `Job`; by default those of the recipe.
        alone: run only the groups of the wanted images, and not their whole batches. This is faster, and equal but for
            rounding.
    """

    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    model: str | None = None
    lora: tuple[WeightedLora, ...] | None = None
    scheduler: str | None = None
    exact: bool = False
    tolerance: float | None = None
    format: Format | None = None
    device: str | None = None
    dtype: str | None = None
    alone: bool = False

    @property
    def keeps_images(self) -> bool:
        """Whether the images stay the same, but for rounding."""
        other = ("format", "device", "alone")
        return all(getattr(self, field.name) == field.default for field in fields(self) if field.name not in other)

    def applied(self, job: Job, dtype: str) -> Job:
        """Return the job of a batch with these changes.

        Args:
            dtype: the precision that the batch ran in.
        """
        settings = job.settings
        if self.exact:
            settings = replace(settings, sharing=None, skipping=None)
        if self.steps is not None:
            settings = replace(settings, steps=self.steps)
        if self.tolerance is not None:
            settings = replace(settings, skipping=Skipping(tolerance=self.tolerance))
        named = ("guidance_scale", "negative_prompt", "model", "lora", "scheduler")
        given = {name: value for name in named if (value := getattr(self, name)) is not None}
        if self.model is not None:  # these belong to the model of the recipe
            given |= {"config": None, "revision": None, "variant": None}
        output = job.output
        if self.format is not None and self.format != output.format:
            output = Output(self.format, metadata=output.metadata)
        changed = {*given, *(() if self.steps is None else ("steps",))}
        none: dict[str, Any] = {name: None for name in COLUMNS if name in changed}  # rows may have such values too
        return replace(
            job,
            **given,
            prompts=tuple(replace(row, **none) for row in job.prompts),
            settings=settings,
            output=output,
            device=self.device or job.device,
            dtype=self.dtype or dtype,
        )
