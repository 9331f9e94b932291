"""Find out which prompts may run in one call of a pipeline without changing each other's images."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import CotrunkError
from .arguments import PerPrompt
from .class_tables import APART, UNMASKED
from .cost import argument
from .tokenizers import token_counts


def runs_apart(pipe: Any, arguments: Mapping[str, Any]) -> str | None:
    """Return why each image needs a call of its own; None if images may run together."""
    kind = type(pipe).__name__
    if why := next((why for name, why in APART.items() if kind.startswith(name)), None):
        return f"{kind} {why}"
    if arguments.get("padding_mask_crop") is not None:
        return f"{kind} takes one image per call with padding_mask_crop"
    return None


def companions(pipe: Any, own: PerPrompt) -> list[Hashable]:
    """Return a key per prompt: prompts with equal keys may run in one call of the pipeline, and may share.

    Raises:
        CotrunkError: input images have different sizes, and the output is an array, which can hold only one size.
    """
    if runs_apart(pipe, own.arguments):
        return list(range(own.prompts))
    sizes = [_sizes(own, prompt) for prompt in range(own.prompts)]
    output = argument(pipe, own.arguments, "output_type")
    if len(set(sizes)) > 1 and output != "pil":
        found = ", ".join(sorted({f"{width} x {height}" for each in sizes for width, height in each}))
        raise CotrunkError(
            f"The input images have different sizes ({found}), and output_type={output!r} makes one array of all "
            "results: use output_type='pil', or run each size by itself."
        )
    return list(zip(sizes, text_lengths(pipe, own), strict=True))


def _sizes(own: PerPrompt, prompt: int) -> tuple[tuple[int, int], ...]:
    """Return (width, height) of each input image of a prompt."""
    found = []
    for name, value in own.own.items():
        if "image" not in name or name in own.repeated or "embed" in name:
            continue
        image: Any = None if own.networks and name == own.control else value[prompt]
        if hasattr(image, "size") and isinstance(image.size, tuple):  # PIL
            found.append(image.size)
        elif isinstance(image, torch.Tensor | np.ndarray) and image.ndim >= 2:
            found.append((int(image.shape[-1]), int(image.shape[-2])))
    return tuple(found)


def text_lengths(pipe: Any, own: PerPrompt) -> list[Hashable]:
    """Return the numbers of tokens of each prompt's texts, if they change the images of other prompts in the call."""
    if not type(pipe).__name__.startswith(UNMASKED):
        return [None] * own.prompts
    lengths = []
    for name in ("prompt", "negative_prompt"):
        texts = own.own.get(name)
        if isinstance(texts, Sequence) and not isinstance(texts, str) and len(texts) == own.prompts:
            template = getattr(pipe, "prompt_template", "{}")
            lengths.append(token_counts(pipe, [template.format(text) for text in texts], own.arguments))
    return list(zip(*lengths, strict=True)) if lengths else [None] * own.prompts
