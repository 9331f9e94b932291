"""The output objects of pipelines: verdicts of their safety checkers, and several outputs as one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

# fields of a pipeline's output with a verdict per image; DeepFloyd IF also blackens images with watermarks
CHECKED = ("nsfw_content_detected", "nsfw_detected", "watermark_detected")


def blackened(output: Any, images: int) -> list[bool]:
    """Return, per image of an output, whether a safety checker replaced it by a black one."""
    verdicts: list[Any] = [getattr(output, name, None) for name in CHECKED]
    found = [verdict for verdict in verdicts if hasattr(verdict, "__len__") and len(verdict) == images]
    return [any(bool(verdict[i]) for verdict in found) for i in range(images)]


def merged(outputs: Sequence[Any], images: Sequence[int]) -> Any:
    """Return several outputs as one, in the order of the images.

    Args:
        images: the indices of the images of all outputs, one output after another.
    """
    order = np.argsort(images)
    first = outputs[0]
    joined: dict[str, Any] = {}
    for name in first:
        values: list[Any] = [output[name] for output in outputs]
        if isinstance(values[0], torch.Tensor):
            joined[name] = torch.cat(values)[torch.from_numpy(order)]
        elif isinstance(values[0], np.ndarray):
            joined[name] = np.concatenate(values)[order]
        elif isinstance(values[0], list):
            flat = [item for value in values for item in value]
            joined[name] = [flat[i] for i in order]
        else:
            joined[name] = values[0]
    # iteration omits fields that are None (without a safety checker, for example), although they are required
    fields = {name: joined.get(name) for name in getattr(type(first), "__dataclass_fields__", joined)}
    return type(first)(**fields)
