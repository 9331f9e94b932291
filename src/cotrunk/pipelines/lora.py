"""Load a LoRA into a pipeline, and remove it again."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

from ..errors import CotrunkError, first_line


def load_lora(pipe: Any, folder: Path | str) -> dict[str, Any]:
    """Load a LoRA into a pipeline.

    The denoiser's part is fused into its weights, so that it costs nothing per row but cannot be switched off. The text
    encoders' part stays as diffusers loads it.

    Args:
        folder: a folder that `cotrunk train` wrote, a file, or a hub id.

    Returns:
        The original values of the changed weights, on the CPU, for `remove_lora`.

    Raises:
        CotrunkError: there is no LoRA, it is for another model, or peft is not installed.
    """
    kind = type(pipe).__name__
    if not hasattr(pipe, "load_lora_weights"):
        raise CotrunkError(f"{kind} cannot load a LoRA in diffusers: leave out the LoRA, or use another pipeline.")
    if importlib.util.find_spec("peft") is None:
        raise CotrunkError("Loading a LoRA needs peft: pip install peft.")
    from .compatibility import denoisers_of

    lists_adapters = hasattr(pipe, "get_list_adapters")
    before = pipe.get_list_adapters() if lists_adapters else {}
    warnings = logging.getLogger("diffusers.loaders.lora_base")
    warnings.addFilter(_is_not_about_text_encoders)
    changed: dict[str, Any] = {}
    try:
        pipe.load_lora_weights(folder)
        if lists_adapters and pipe.get_list_adapters() == before:
            # diffusers ignores the keys of another model and only logs a message
            raise CotrunkError(f"{folder} is a LoRA for another model, not for this {kind}: choose another LoRA.")
        if not _is_finite_lora(pipe):
            pipe.unload_lora_weights()
            raise CotrunkError(
                f"{folder} contains weights that are not finite, because its training diverged. Train it again with a "
                "lower learning rate."
            )
        for name in denoisers_of(pipe):
            changed |= _fuse(name, getattr(pipe, name))
    except CotrunkError:
        raise
    except Exception as error:  # several libraries raise their own types for missing files, keys and shapes
        raise CotrunkError(
            f"{folder} cannot be loaded as a LoRA for this {kind} ({first_line(error)}): choose another LoRA."
        ) from error
    finally:
        warnings.removeFilter(_is_not_about_text_encoders)
    return changed


def _is_finite_lora(pipe: Any) -> bool:
    """Return whether all LoRA weights on the pipeline are finite."""
    import torch

    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    weights = [weight for part in parts for name, weight in part.named_parameters() if ".lora_" in name]
    return all(bool(weight.isfinite().all()) for weight in weights)


def remove_lora(pipe: Any, changed: dict[str, Any]) -> None:
    """Undo `load_lora` exactly, with the weights that it returned."""
    pipe.unload_lora_weights()  # of the text encoders
    for name, weight in changed.items():
        part, _, layer = name.partition(".")
        getattr(pipe, part).get_submodule(layer).weight.data.copy_(weight)


def _is_not_about_text_encoders(record: logging.LogRecord) -> bool:
    return "No LoRA keys associated to" not in record.getMessage()


def _fuse(name: str, denoiser: Any) -> dict[str, Any]:
    """Fuse the LoRA of a denoiser, if it has one, and return the original values of the changed weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {f"{name}.{layer}": part for layer, part in denoiser.named_modules() if isinstance(part, BaseTunerLayer)}
    before = {layer: part.get_base_layer().weight.detach().to("cpu", copy=True) for layer, part in layers.items()}
    if layers:
        denoiser.fuse_lora()
        denoiser.unload_lora()  # removes the adapter layers, not the fused weights
    return before
