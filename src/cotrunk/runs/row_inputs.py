"""The input images of each prompt of a job: its own, or those of the whole run."""

from dataclasses import dataclass, replace
from typing import Any

from ..errors import CotrunkError
from ..pipelines.image_inputs import ImageInputs, control_argument
from ..planning.prompt_row import PromptRow
from ..planning.tree import counted
from .input_images import LazyImages, check_same, digests_of, size_of
from .job import Job

MULTIPLE = 16  # of the sizes of images: transformers take patches of 2 latents, each of 8 pixels


@dataclass(frozen=True)
class RowInputs:
    """The input images of one prompt.

    Attributes:
        image, mask_image: files.
        control_image: a file per ControlNet.
        strength: how far the image is changed; None for the pipeline's default.
    """

    image: str | None
    mask_image: str | None
    control_image: tuple[str, ...]
    strength: float | None

    @property
    def kinds(self) -> ImageInputs:
        """Which inputs there are."""
        return ImageInputs(
            self.image is not None, self.mask_image is not None, bool(self.control_image), self.strength is not None
        )

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(path for path in (self.image, self.mask_image, *self.control_image) if path is not None)

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the output without other wishes: those of the image, or of the control image."""
        if not self.files:
            return None
        width, height = size_of(self.files[0])
        return max(width // MULTIPLE, 1) * MULTIPLE, max(height // MULTIPLE, 1) * MULTIPLE


def inputs_of(job: Job, row: PromptRow) -> RowInputs:
    """Return the input images of one prompt of a job."""
    return RowInputs(
        image=job.image if row.image is None else row.image,
        mask_image=job.mask_image if row.mask_image is None else row.mask_image,
        control_image=job.control_image if row.control_image is None else (row.control_image,),
        strength=job.strength if row.strength is None else row.strength,
    )


def checked_inputs(job: Job) -> Job:
    """Check the input images of a job, and return the job with their digests.

    Raises:
        CotrunkError: an image is missing, damaged, or not the one that the job's digests say; or a prompt has a mask
            or a strength without an image, or another number of control images than there are ControlNets.
    """
    places = []
    for i, row in enumerate(job.prompts):
        own, who = inputs_of(job, row), f"prompt {i}"
        if own.mask_image is not None and own.image is None:
            raise CotrunkError(f"{who} has a mask image ({own.mask_image}) and no image: give --image too.")
        if own.strength is not None and own.image is None:
            raise CotrunkError(f"{who} has a strength ({own.strength:g}) and no image: give --image too.")
        if job.controlnet and len(own.control_image) != len(job.controlnet):
            nets, images = counted(len(job.controlnet), "ControlNet"), counted(len(own.control_image), "control image")
            raise CotrunkError(f"{who} has {images} for {nets}: give --control-image once per --controlnet.")
        places += [(who, path) for path in own.files]
    found = digests_of(places)
    check_same(found, job.digests)
    return replace(job, digests=found)


def image_arguments(kind: type, rows: list[RowInputs], size: tuple[int, int] | None) -> dict[str, Any]:
    """Return the arguments of a pipeline's call for the input images of these prompts.

    An image that all prompts have in common is passed once.

    Args:
        kind: the class of the pipeline.
        rows: the inputs of each prompt, all of the same kinds and with the same strength.
        size: width and height to which images are scaled; None keeps their own.
    """
    control = control_argument(kind)
    columns: dict[str, list[str]] = {}
    if rows[0].image is not None:
        columns["image"] = [str(row.image) for row in rows]
    if rows[0].mask_image is not None:
        columns["mask_image"] = [str(row.mask_image) for row in rows]
    arguments: dict[str, Any] = {name: _images(paths, size, name) for name, paths in columns.items()}
    if control is not None and rows[0].control_image:
        nets = [_images(list(paths), size, control) for paths in zip(*(row.control_image for row in rows), strict=True)]
        arguments[control] = nets[0] if len(nets) == 1 else nets
    if rows[0].strength is not None:
        arguments["strength"] = rows[0].strength
    return arguments


def _images(paths: list[str], size: tuple[int, int] | None, name: str) -> Any:
    files = LazyImages(paths, size, is_mask=name == "mask_image")
    return files[0] if len(set(paths)) == 1 else files
