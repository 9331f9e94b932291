"""What tells a pipeline from another one that would make other pictures."""

import hashlib
from typing import Any

import torch

from ..compatibility import DENOISERS
from .experiment import weights_digest


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
