"""The size of the images that a pipeline generates."""

from typing import Any

from ..errors import CotrunkError
from .compatibility import denoisers_of


def image_size(pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """Return the height and width of images in pixels: the given ones, or the pipeline's defaults.

    Raises:
        CotrunkError: a size is not given, and the pipeline has no default.
    """
    side = getattr(getattr(pipe, denoisers_of(pipe)[0]).config, "sample_size", None)
    default = side * pipe.vae_scale_factor if isinstance(side, int) else None
    height, width = height or default, width or default
    if height is None or width is None:
        raise CotrunkError(f"{type(pipe).__name__} has no default image size: set height and width.")
    return height, width
