"""Digests of a pipeline, which differ if the pipelines would generate different images."""

import hashlib
from typing import Any

import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model

from .compatibility import DENOISERS


def model_digest(pipe: Any) -> str:
    """Return a digest of the weights and dtypes of denoiser, decoder and text encoders, including a loaded LoRA."""
    found = hashlib.sha256()
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, torch.nn.Module) and (name in (*DENOISERS, "vae") or name.startswith("text_encoder")):
            found.update(f"{name} {getattr(part, 'dtype', '')} {weights_digest(part)}\n".encode())
    return found.hexdigest()[:12]


def scheduler_facts(scheduler: Any) -> list[Any]:
    """Return a scheduler's class name and its settings, sorted by name."""
    # names with an underscore are diffusers' notes on where the settings came from
    settings = sorted((name, value) for name, value in scheduler.config.items() if not name.startswith("_"))
    return [type(scheduler).__name__, settings]


def weights_digest(module: torch.nn.Module) -> str:
    """Return a digest of a module's weights, computed from some values of every tensor."""
    found, weights = hashlib.sha256(), module.state_dict()
    if any(tensor.is_meta for tensor in weights.values()):  # offloaded layer by layer
        weights = get_state_dict_offloaded_model(module)
    for name, tensor in weights.items():
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, len(flat) // 64)].float().cpu()
        found.update(name.encode() + sample.numpy().tobytes())
    return found.hexdigest()[:12]
