"""Load a LoRA into a pipeline, and take it off again."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

from ..errors import CotrunkError
from .hub import first_line


def load_lora(pipe: Any, folder: Path | str) -> dict[str, Any]:
    """Give a pipeline a LoRA. Its part for the denoiser is fused into the weights, where it costs nothing at a row, and
    cannot be switched off any more; its part for text encoders stays as diffusers loads it.

    Args:
        folder: that `cotrunk train` wrote, a file, or a hub id.

    Returns:
        The weights that were changed, as they were, on the CPU: for `take_off_lora`.

    Raises:
        CotrunkError: no LoRA there, one of another model, or no peft to load it with.
    """
    kind = type(pipe).__name__
    if not hasattr(pipe, "load_lora_weights"):
        raise CotrunkError(f"{kind} takes no LoRA.")
    if importlib.util.find_spec("peft") is None:
        raise CotrunkError("A LoRA needs peft: pip install peft.")
    from .compatibility import denoisers_of

    lists_adapters = hasattr(pipe, "get_list_adapters")
    before = pipe.get_list_adapters() if lists_adapters else {}
    remarks = logging.getLogger("diffusers.loaders.lora_base")
    remarks.addFilter(_is_no_remark_on_text_encoders)
    changed: dict[str, Any] = {}
    try:
        pipe.load_lora_weights(folder)
        if lists_adapters and pipe.get_list_adapters() == before:
            # keys of another model are left out with a remark that nobody sees
            raise CotrunkError(f"{folder} holds no LoRA for this {kind}: it is of another model.")
        if not _is_finite_lora(pipe):
            pipe.unload_lora_weights()
            raise CotrunkError(
                f"{folder} holds weights that are not finite: the training that made it diverged. Train it again, at a "
                "lower learning rate."
            )
        for name in denoisers_of(pipe):
            changed |= _fuse(name, getattr(pipe, name))
    except CotrunkError:
        raise
    except Exception as error:  # a missing file, foreign keys, other shapes: in the words of several libraries
        raise CotrunkError(f"{folder} holds no LoRA for this {kind} ({first_line(error)}): choose another.") from error
    finally:
        remarks.removeFilter(_is_no_remark_on_text_encoders)
    return changed


def _is_finite_lora(pipe: Any) -> bool:
    """Whether all LoRA weights on the pipeline are finite."""
    import torch

    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    weights = [weight for part in parts for name, weight in part.named_parameters() if ".lora_" in name]
    return all(bool(weight.isfinite().all()) for weight in weights)


def take_off_lora(pipe: Any, changed: dict[str, Any]) -> None:
    """Undo `load_lora`, to the last bit: what it returned."""
    pipe.unload_lora_weights()  # of text encoders
    for name, weight in changed.items():
        part, _, layer = name.partition(".")
        getattr(pipe, part).get_submodule(layer).weight.data.copy_(weight)


def _is_no_remark_on_text_encoders(record: logging.LogRecord) -> bool:
    return "No LoRA keys associated to" not in record.getMessage()


def _fuse(name: str, denoiser: Any) -> dict[str, Any]:
    """Fuse the LoRA of a denoiser, if it has one. Returns the weights that this changed, as they were."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {f"{name}.{layer}": part for layer, part in denoiser.named_modules() if isinstance(part, BaseTunerLayer)}
    before = {layer: part.get_base_layer().weight.detach().to("cpu", copy=True) for layer, part in layers.items()}
    if layers:
        denoiser.fuse_lora()
        denoiser.unload_lora()  # what is left is an ordinary denoiser
    return before
