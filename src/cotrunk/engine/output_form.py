"""The form of a denoiser's output, for a first call in which no row is computed."""

import sys
from typing import Any

import torch
from diffusers.utils.torch_utils import unwrap_module

from ..pipelines.class_tables import OUTPUT_FORMS


def blank_output(module: torch.nn.Module, named: dict[str, Any]) -> Any | None:
    """Return zeros in the form that the module would return for this call; None unless the form is certain.

    It is certain for the classes in `OUTPUT_FORMS`: their output has the shape of the sample, except for the number of
    channels, which their config gives.

    Args:
        module: a denoiser, compiled or not.
        named: the arguments of the call by name.
    """
    module = unwrap_module(module)
    form = OUTPUT_FORMS.get(type(module).__name__)
    config = getattr(module, "config", None)
    if form is None or config is None:
        return None
    sample = named.get(form.sample)
    if not isinstance(sample, torch.Tensor) or sample.ndim != form.dimensions:
        return None
    patch = config.get("patch_size") or 1
    sides = patch if isinstance(patch, tuple | list) else [patch] * (sample.ndim - 2)
    if not form.is_packed and any(size % side for size, side in zip(sample.shape[2:], sides, strict=True)):
        return None  # the module drops pixels that do not fill a patch
    shape = list(sample.shape)
    channels = config.get("out_channels") or config["in_channels"]
    shape[-1 if form.is_packed else 1] = channels * (patch**2 if form.is_packed else 1)
    zeros = sample.new_zeros(shape)
    if not named.get("return_dict", True):
        return (zeros,)
    return getattr(sys.modules[type(module).__module__], form.output)(sample=zeros)
