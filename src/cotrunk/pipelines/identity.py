"""What tells a pipeline from another one that would make other pictures."""

import hashlib
from typing import Any

import torch

from .compatibility import DENOISERS


def model_digest(pipe: Any) -> str:
    """Of the weights and types of denoiser, decoder and text encoders, with the LoRA that they have at the time."""
    found = hashlib.sha256()
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, torch.nn.Module) and (name in (*DENOISERS, "vae") or name.startswith("text_encoder")):
            found.update(f"{name} {getattr(part, 'dtype', '')} {weights_digest(part)}\n".encode())
    return found.hexdigest()[:12]


def scheduler_facts(scheduler: Any) -> list[Any]:
    """Its class and its settings, in an order that does not change."""
    # names with an underscore are notes of diffusers on where the settings came from
    settings = sorted((name, value) for name, value in scheduler.config.items() if not name.startswith("_"))
    return [type(scheduler).__name__, settings]


def weights_digest(module: torch.nn.Module) -> str:
    """What tells these weights from others: a sample of every tensor."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // 64)].float().cpu()
        found.update(name.encode() + some.numpy().tobytes())
    return found.hexdigest()[:12]
