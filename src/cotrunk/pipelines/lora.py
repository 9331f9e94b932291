"""Load a LoRA into a pipeline, and remove it again.

Most pipelines of diffusers read LoRAs in diffusers' own format (`pipe.load_lora_weights`). Some cannot, such as those
of PixArt. Their denoisers get a LoRA from peft alone, in peft's format, as in `PeftModel.from_pretrained`.
"""

import importlib.util
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CotrunkError, first_line
from .hub import is_file, is_folder, is_here
from .weighted_lora import WeightedLora, loras_of

PEFT_PREFIX = "base_model.model."  # of all names in a file of peft's
PEFT_NAME = "default"  # of the only adapter while it is loaded
HUB_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json")


def check_lora(lora: WeightedLora) -> None:
    """Check that a LoRA exists, on disk or on the hub, before the model is loaded.

    Raises:
        CotrunkError: it does not exist.
    """
    if is_file(lora.name) or is_folder(lora.name):
        return
    if Path(lora.name).suffix.lower() in (".safetensors", ".bin", ".pt"):
        raise CotrunkError(f"There is no LoRA {lora.name}: check the name of the file.")
    is_here(lora.name, *HUB_FILES, embedded="a file", what="LoRA")


def load_lora(pipe: Any, lora: Any) -> dict[str, Any]:
    """Load a LoRA, or the weighted sum of several, into a pipeline.

    The denoiser's part is fused into its weights, so that it costs nothing per row but cannot be switched off. The text
    encoders' part stays as diffusers loads it.

    Args:
        lora: one or a list, in any form that `loras_of` takes. Each is a folder that `cotrunk train` wrote, a file, or
            a hub id. For a pipeline without `load_lora_weights`, a folder or hub id in peft's format.

    Returns:
        The original values of the changed weights, on the CPU, for `remove_lora`.

    Raises:
        CotrunkError: there is no LoRA, it is for another model, or peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise CotrunkError("Loading a LoRA needs peft: pip install peft.")
    log = logging.getLogger("diffusers.loaders.lora_base")
    log.addFilter(_is_not_about_text_encoders)
    loras = loras_of(lora)
    try:
        return _load_from_diffusers(pipe, loras) if reads_diffusers_loras(pipe) else _load_from_peft(pipe, loras)
    finally:
        log.removeFilter(_is_not_about_text_encoders)


@contextmanager
def _reading(pipe: Any, lora: WeightedLora) -> Iterator[None]:
    """Remove all LoRA layers if reading this LoRA fails, and raise one sentence about it.

    Raises:
        CotrunkError: it is for another model, is damaged, or its weights are not finite.
    """
    try:
        with warnings.catch_warnings():
            # peft warns about a second LoRA
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
            yield
        if not _is_finite_lora(pipe):
            raise CotrunkError(
                f"{lora.name} contains weights that are not finite, because its training diverged. Train it again with "
                "a lower learning rate."
            )
    except CotrunkError:
        _unload(pipe)
        raise
    except Exception as error:  # several libraries raise their own types for missing files, keys and shapes
        _unload(pipe)
        raise CotrunkError(
            f"{lora.name} cannot be loaded as a LoRA for this {type(pipe).__name__} ({first_line(error)}): choose "
            "another LoRA."
        ) from error


def _wrong_model(pipe: Any, lora: WeightedLora) -> CotrunkError:
    kind = type(pipe).__name__
    return CotrunkError(f"{lora.name} is a LoRA for another model, not for this {kind}: choose another LoRA.")


def _load_from_diffusers(pipe: Any, loras: Sequence[WeightedLora]) -> dict[str, Any]:
    """Load LoRAs with the pipeline's own methods. See `load_lora`."""
    from .compatibility import denoisers_of

    names = list[str]()
    for lora in loras:
        with _reading(pipe, lora):
            before = pipe.get_list_adapters()
            taken = {name for adapters in before.values() for name in adapters}
            name = next(name for number in itertools.count() if (name := f"lora_{number}") not in taken)
            pipe.load_lora_weights(lora.name, adapter_name=name)
            if pipe.get_list_adapters() == before:
                # diffusers ignores the keys of another model and only logs a message
                raise _wrong_model(pipe, lora)
            names.append(name)
    pipe.set_adapters(names, [lora.weight for lora in loras])
    changed: dict[str, Any] = {}
    for name in denoisers_of(pipe):
        changed |= _fuse(name, getattr(pipe, name))
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


def _load_from_peft(pipe: Any, loras: Sequence[WeightedLora]) -> dict[str, Any]:
    """Load LoRAs in peft's format into the only denoiser of a pipeline, one after another. See `load_lora`."""
    from diffusers.utils import set_weights_and_activate_adapters

    from .compatibility import denoisers_of

    names = denoisers_of(pipe)
    if len(names) != 1:
        kind = type(pipe).__name__
        raise CotrunkError(f"{kind} has {len(names)} denoisers and no load_lora_weights: leave out the LoRA.")
    denoiser, changed = getattr(pipe, names[0]), dict[str, Any]()
    for lora in loras:
        try:
            with _reading(pipe, lora):
                _add_from_peft(pipe, denoiser, lora)
        except CotrunkError:
            _restore(pipe, changed)
            raise
        set_weights_and_activate_adapters(denoiser, [PEFT_NAME], [lora.weight])
        changed = {**_fuse(names[0], denoiser), **changed}
    return changed


def _add_from_peft(pipe: Any, denoiser: Any, lora: WeightedLora) -> None:
    """Add the layers of a LoRA in peft's format to a denoiser.

    Raises:
        CotrunkError: it does not fit the denoiser.
    """
    from peft import PeftConfig, inject_adapter_in_model
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(lora.name)
    weights = load_peft_weights(lora.name, device="cpu")
    own = {name.removeprefix(PEFT_PREFIX): weight for name, weight in weights.items()}
    config.inference_mode = True
    inject_adapter_in_model(config, denoiser, PEFT_NAME)
    found = set_peft_model_state_dict(denoiser, own, PEFT_NAME)
    missing = [name for name in found.missing_keys if ".lora_" in name]
    if missing or found.unexpected_keys:
        raise _wrong_model(pipe, lora)


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
    _restore(pipe, changed)


def _restore(pipe: Any, changed: dict[str, Any]) -> None:
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
