"""Load a LoRA into a pipeline, and remove it again.

Most pipelines of diffusers read LoRAs in diffusers' own format (`pipe.load_lora_weights`). Some cannot, such as those
of PixArt. Their denoisers get a LoRA from peft alone, in peft's format, as in `PeftModel.from_pretrained`.
"""

import importlib.util
import logging
from pathlib import Path
from typing import Any

from ..errors import CotrunkError, first_line

PEFT_PREFIX = "base_model.model."  # of all names in a file of peft's


def load_lora(pipe: Any, folder: Path | str) -> dict[str, Any]:
    """Load a LoRA into a pipeline.

    The denoiser's part is fused into its weights, so that it costs nothing per row but cannot be switched off. The text
    encoders' part stays as diffusers loads it.

    Args:
        folder: a folder that `cotrunk train` wrote, a file, or a hub id. For a pipeline without `load_lora_weights`, a
            folder or hub id in peft's format.

    Returns:
        The original values of the changed weights, on the CPU, for `remove_lora`.

    Raises:
        CotrunkError: there is no LoRA, it is for another model, or peft is not installed.
    """
    kind = type(pipe).__name__
    if importlib.util.find_spec("peft") is None:
        raise CotrunkError("Loading a LoRA needs peft: pip install peft.")
    from .compatibility import denoisers_of

    lists_adapters = hasattr(pipe, "get_list_adapters")
    before = pipe.get_list_adapters() if lists_adapters else {}
    warnings = logging.getLogger("diffusers.loaders.lora_base")
    warnings.addFilter(_is_not_about_text_encoders)
    changed: dict[str, Any] = {}
    try:
        if reads_diffusers_loras(pipe):
            pipe.load_lora_weights(folder)
        else:
            _load_from_peft(pipe, folder)
        if lists_adapters and pipe.get_list_adapters() == before:
            # diffusers ignores the keys of another model and only logs a message
            raise CotrunkError(f"{folder} is a LoRA for another model, not for this {kind}: choose another LoRA.")
        if not _is_finite_lora(pipe):
            _unload(pipe)
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


def reads_diffusers_loras(pipe: Any) -> bool:
    """Return whether the pipeline reads and writes LoRAs in diffusers' format; else peft's is used."""
    return hasattr(type(pipe), "load_lora_weights") and hasattr(type(pipe), "save_lora_weights")


def add_adapter(denoiser: Any, config: Any) -> None:
    """Add a new LoRA to a denoiser of any class, named "default".

    Args:
        config: peft's configuration of the LoRA.
    """
    if hasattr(denoiser, "add_adapter"):
        denoiser.add_adapter(config)
    else:
        from peft import inject_adapter_in_model

        inject_adapter_in_model(config, denoiser)


def unload_adapters(denoiser: Any) -> None:
    """Remove all LoRA layers from a denoiser of any class; weights into which a LoRA was fused stay as they are."""
    if hasattr(denoiser, "unload_lora"):
        denoiser.unload_lora()
        return
    from diffusers.utils import recurse_remove_peft_layers

    recurse_remove_peft_layers(denoiser)
    if hasattr(denoiser, "peft_config"):
        del denoiser.peft_config


def _load_from_peft(pipe: Any, folder: Path | str) -> None:
    """Add a LoRA in peft's format to the only denoiser of a pipeline.

    Raises:
        CotrunkError: it does not fit the denoiser.
    """
    from peft import PeftConfig, inject_adapter_in_model
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    from .compatibility import denoisers_of

    kind, names = type(pipe).__name__, denoisers_of(pipe)
    if len(names) != 1:
        raise CotrunkError(f"{kind} has {len(names)} denoisers and no load_lora_weights: leave out the LoRA.")
    denoiser, config = getattr(pipe, names[0]), PeftConfig.from_pretrained(str(folder))
    weights = load_peft_weights(str(folder), device="cpu")
    own = {name.removeprefix(PEFT_PREFIX): weight for name, weight in weights.items()}
    config.inference_mode = True
    try:
        inject_adapter_in_model(config, denoiser)
        found = set_peft_model_state_dict(denoiser, own)
        missing = [name for name in found.missing_keys if ".lora_" in name]
        if missing or found.unexpected_keys:
            raise CotrunkError(f"{folder} is a LoRA for another model, not for this {kind}: choose another LoRA.")
    except BaseException:
        unload_adapters(denoiser)
        raise


def _unload(pipe: Any) -> None:
    """Remove all LoRA layers from a pipeline."""
    if reads_diffusers_loras(pipe):
        pipe.unload_lora_weights()
        return
    from .compatibility import denoisers_of

    for name in denoisers_of(pipe):
        unload_adapters(getattr(pipe, name))


def _is_finite_lora(pipe: Any) -> bool:
    """Return whether all LoRA weights on the pipeline are finite."""
    import torch

    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    weights = [weight for part in parts for name, weight in part.named_parameters() if ".lora_" in name]
    return all(bool(weight.isfinite().all()) for weight in weights)


def remove_lora(pipe: Any, changed: dict[str, Any]) -> None:
    """Undo `load_lora` exactly, with the weights that it returned."""
    _unload(pipe)  # of the text encoders
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
        for part in layers.values():
            part.merge()
        unload_adapters(denoiser)  # removes the adapter layers, not the fused weights
    return before
