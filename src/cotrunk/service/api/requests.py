"""From a request to the images that it asks for, within the limits of the service and of the model."""

import secrets
from collections.abc import Sequence
from typing import Any

from ...checks import LARGEST_SEED
from ..shapes import ImageSettings, ModelFacts
from ..store import ImageRequest
from .errors import ApiError, wrong
from .limits import Limits
from .schemas.jobs import JobRequest, PromptItem
from .schemas.sampling import Sampling

ROWS_PER_STEP = 2  # with guidance; without it, the estimate is too high by half
STEPS = 50  # assumed for the estimate until the worker says how many its model takes
DRAWN_BITS = 48  # of a seed that the client does not give: every JSON reader keeps it exact
LONGEST_SHOWN = 10**12  # numbers beyond it are not repeated in messages
SIDE_STEP = 8  # no pipeline takes sides that are not multiples of it


class Reader:
    """Turns requests into images.

    Args:
        limits: of the service.
        model: the name of the model.
        facts: what the worker says about the model; None until it is ready.
    """

    def __init__(self, limits: Limits, model: str, facts: ModelFacts | None) -> None:
        self.limits, self.model, self.facts = limits, model, facts

    def images(self, asked: Sampling, prompt: str) -> list[ImageRequest]:
        """Return the images of one prompt.

        Raises:
            ApiError: a value beyond a limit, or one that the model does not take.
        """
        return [*self._of_item(asked, PromptItem(prompt=prompt), "prompt")]

    def job(self, asked: JobRequest) -> list[ImageRequest]:
        """Return the images of a list of prompts.

        Raises:
            ApiError: a value beyond a limit, or one that the model does not take.
        """
        self.most("prompts", len(asked.prompts), self.limits.prompts, what="has {value:,} entries")
        items = [PromptItem(prompt=each) if isinstance(each, str) else each for each in asked.prompts]
        count = sum(item.n or asked.n or 1 for item in items)
        self.most("n", count, self.limits.images, what="asks for {value:,} images")
        return [image for number, item in enumerate(items) for image in self._of_item(asked, item, f"prompts.{number}")]

    def _of_item(self, asked: Sampling, item: PromptItem, place: str) -> Sequence[ImageRequest]:
        """Return the images of one prompt, whose own settings go before those of the list."""

        def value(name: str) -> Any:
            own = getattr(item, name)
            return getattr(asked, name) if own is None else own

        def named(name: str) -> str:
            return name if place == "prompt" or getattr(item, name) is None else f"{place}.{name}"

        if asked.model not in (None, self.model):
            sentence = f"The model {asked.model!r} is not loaded here: use {self.model!r}, or leave it out."
            raise ApiError(404, sentence, "model_not_found", param="model")
        count = value("n") or 1
        self.most(named("n"), count, self.limits.n)
        steps, guidance, negative = value("steps"), value("guidance_scale"), value("negative_prompt") or None
        self.most(named("steps"), steps, self.limits.steps)
        self.most(named("guidance_scale"), guidance, self.limits.guidance_scale)
        self.most("wait_ms", asked.wait_ms, self.limits.wait_ms)
        self.most(place, len(item.prompt), self.limits.prompt, what="has {value:,} characters")
        if negative is not None:
            self.most(named("negative_prompt"), len(negative), self.limits.prompt, what="has {value:,} characters")
            if self.facts is not None and not self.facts["negative_prompt"]:
                sentence = "This model does not take a negative prompt: leave it out."
                raise wrong(named("negative_prompt"), sentence)
        width, height = self.size(value("size"), named("size"))
        if asked.output_compression is not None and asked.output_format in (None, "png"):
            raise wrong("output_compression", "png has no quality: leave output_compression out, or use jpeg or webp.")
        first = secrets.randbits(DRAWN_BITS) if value("seed") is None else value("seed")
        if first + count - 1 > LARGEST_SEED:
            raise wrong(named("seed"), f"seed {first} is too large for {count} images: use a smaller one.")
        settings: ImageSettings = {
            "model": self.model,
            "width": width,
            "height": height,
            "steps": steps,
            "guidance_scale": None if guidance is None else float(guidance),
            "negative_prompt": negative,
            "output": {
                "format": asked.output_format or "png",
                # OpenAI's begins at 0, Pillow's at 1
                "quality": None if asked.output_compression is None else max(1, asked.output_compression),
                "partials": asked.partial_images or 0,
            },
        }
        return [
            ImageRequest(
                prompt=item.prompt,
                settings={**settings},
                seed=first + number,
                group=asked.group,
                wait_ms=asked.wait_ms,
                rows=self._rows(steps, guidance),
                custom_id=item.custom_id,
            )
            for number in range(count)
        ]

    def _rows(self, steps: int | None, guidance: float | None) -> int:
        """Return the rows that an image takes without sharing and skipping."""
        facts = self.facts
        steps = steps or (facts["steps"] if facts is not None else STEPS)
        if guidance is None:
            guidance = facts["guidance_scale"] if facts is not None else None
        return steps * (1 if guidance is not None and guidance <= 1 else ROWS_PER_STEP)

    def size(self, size: str | None, param: str) -> tuple[int | None, int | None]:
        """Return width and height; None for those of the model.

        Raises:
            ApiError: the size is beyond a limit, or the model cannot make it.
        """
        if size is None or size == "auto":
            return None, None
        width, height = map(int, size.split("x"))
        multiple = self.facts["multiple"] if self.facts is not None else SIDE_STEP
        most = self.limits
        if width % multiple or height % multiple:
            raise wrong(param, f"size {size!r} does not fit the model: use multiples of {multiple}.")
        if max(width, height) > most.side:
            raise wrong(param, f"size {size!r} is too large: this service makes at most {most.side} pixels per side.")
        if width * height > most.pixels:
            raise wrong(param, f"size {size!r} is too large: this service makes at most {most.pixels:,} pixels.")
        return width, height

    def most(self, param: str, value: float | None, most: float, what: str = "{value:g} is too large") -> None:
        """Check a number against a limit of the service.

        Raises:
            ApiError: it is larger.
        """
        if value is not None and value > most:
            # a longer number is not printed: JSON has whole numbers beyond every float
            found = what.format(value=value) if value < LONGEST_SHOWN else "is too large"
            raise wrong(param, f"{param} {found}: this service takes {most:,} at most.")
