"""Log a training run to one of `accelerate`'s trackers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

# trackers that accept a list of images -> arguments that describe its form
IMAGE_TRACKERS: dict[str, dict[str, str]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}, "swanlab": {}}


@contextmanager
def tracked(accelerator: Any, tracker: str | None) -> Iterator[None]:
    """Start the tracker, if there is one, and close it even after an interrupt: some write their last steps then."""
    if tracker is None:
        yield
        return
    accelerator.init_trackers("cotrunk")
    try:
        yield
    finally:
        # not accelerator.end_training(): it would also end the process group, and these processes may train again
        for own in accelerator.trackers:
            own.finish()


def log_images(accelerator: Any, images: Sequence[Image.Image], step: int) -> None:
    """Log validation images to the trackers that accept images."""
    for own in accelerator.trackers:
        if own.name in IMAGE_TRACKERS:
            own.log_images({"validation": np.stack([*map(np.asarray, images)])}, step=step, **IMAGE_TRACKERS[own.name])
