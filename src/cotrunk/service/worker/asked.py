"""What the images of a call are asked to be: from the settings in the database to the arguments of the pipeline."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from ...errors import CotrunkError
from ...execution import EXACT
from ...planning.prompt_row import PromptRow
from ...planning.sharing import derived_seed
from ...runs.job import Job
from ...runs.output import DEFAULT_OUTPUT, Output
from ...settings import Settings
from ..store.records import ALONE, ImageRequest

# of `ImageSettings`; images that differ in one of them cannot run in one call
COMMON = ("width", "height", "steps", "guidance_scale")


def is_alone(request: ImageRequest) -> bool:
    """Return whether an image shares with no other."""
    return request.group == ALONE


def call_of(request: ImageRequest) -> Hashable:
    """Return what the images of one call have in common."""
    asked = request.settings
    # a pipeline may treat "no negative prompt" in another way than an empty one
    return (*(asked.get(name) for name in COMMON), asked.get("negative_prompt") is None, is_alone(request))


def settings_for(request: ImageRequest, settings: Settings) -> Settings:
    """Return the settings of the run of an image: those of the service, or the bare pipeline's.

    Args:
        request: the image.
        settings: of the service.
    """
    steps = request.settings.get("steps")
    own = replace(EXACT, batching=settings.batching) if is_alone(request) else settings
    return own if steps is None else replace(own, steps=steps)


def job_of(requests: Sequence[ImageRequest], settings: Settings, model: str) -> Job:
    """Return the images of one call as a job.

    Args:
        requests: the images; all of them may run in one call.
        settings: of their run.
        model: the name of the loaded model.

    Raises:
        CotrunkError: an image is asked for from another model, or a value is out of its range.
    """
    asked = requests[0].settings
    for request in requests:
        if (other := request.settings.get("model", model)) != model:
            raise CotrunkError(f"The image is asked for from {other}, and this service runs {model} now: ask it again.")
    rows = (PromptRow(request.prompt, request.settings.get("negative_prompt")) for request in requests)
    return Job(
        prompts=tuple(rows),
        settings=settings,
        model=model,
        guidance_scale=asked.get("guidance_scale"),
        width=asked.get("width"),
        height=asked.get("height"),
    )


def seed_of(request: ImageRequest, image: str) -> int:
    """Return the seed of an image: the one that was asked for, or one that is derived from the image's id."""
    return derived_seed("image", image) if request.seed is None else request.seed


def output_of(request: ImageRequest) -> Output:
    """Return the format of the file of an image.

    Raises:
        CotrunkError: an unknown format or quality.
    """
    asked: dict[str, Any] = request.settings.get("output") or {}
    return replace(
        DEFAULT_OUTPUT, format=asked.get("format", "png"), quality=asked.get("quality"), metadata="parameters"
    )


def partials_of(request: ImageRequest) -> int:
    """Return how many previews of an image are asked for."""
    return int((request.settings.get("output") or {}).get("partials") or 0)
