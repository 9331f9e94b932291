"""Settings of the process that change numbers of every module: autocast, reduced precision and attention backends."""

from typing import Any

import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry


def numerics(pipe: Any) -> dict[str, Any]:
    """Return these settings as they are now, for the device of a pipeline."""
    device = torch.device(getattr(pipe, "_execution_device", pipe.device)).type
    is_autocast = torch.is_autocast_enabled(device)
    return {
        "autocast": torch.get_autocast_dtype(device) if is_autocast else None,
        "default dtype": torch.get_default_dtype(),
        "float32": {name: _precision(name, part) for name, part in _parts().items()},
        "reduced": [
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        ],
        "attention": str(_AttentionBackendRegistry.get_active_backend()[0]),
    }


def _parts() -> dict[str, Any]:
    """Return the parts of torch that may compute float32 less precisely."""
    backends: Any = torch.backends
    return {
        "matmul": backends.cuda.matmul,
        "cudnn": backends.cudnn,
        "convolution": getattr(backends.cudnn, "conv", None),
        "onednn matmul": getattr(backends.mkldnn, "matmul", None),
        "onednn convolution": getattr(backends.mkldnn, "conv", None),
    }


def _precision(name: str, part: Any) -> Any:
    """Return the precision of float32; older versions of torch have only the switch for TF32."""
    found = getattr(part, "fp32_precision", None)
    if found == "none" and "matmul" in name:  # not set, which means the same there
        found = "ieee"
    return getattr(part, "allow_tf32", None) if found is None else found
