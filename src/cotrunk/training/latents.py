"""Encode images to latents with a pipeline's VAE."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL

from ..errors import CotrunkError
from ..groups.captions import Pair
from ..groups.images import read_scaled


def check_vae(pipe: Any) -> None:
    """Check that the pipeline's VAE is supported.

    Raises:
        CotrunkError: the pipeline has no VAE or an unsupported one, such as one for video, or one that keeps the
            statistics of its latents outside its configuration.
    """
    vae = getattr(pipe, "vae", None)
    if not isinstance(vae, AutoencoderKL | AutoencoderDC):
        kind = "no VAE" if vae is None else f"the VAE {type(vae).__name__}"
        raise CotrunkError(
            f"{type(pipe).__name__} has {kind}: train a pipeline that has an AutoencoderKL or an AutoencoderDC."
        )


@torch.no_grad()
def latents_of(pipe: Any, pairs: Sequence[Pair], height: int, width: int) -> torch.Tensor:
    """Encode images to normalised latents (images, channels, height, width) in half precision.

    They are the mode of the VAE's distribution, not samples of it.

    Raises:
        CotrunkError: latents are not finite.
    """
    images = torch.stack([read_scaled(pair.image, height, width) for pair in pairs])
    vae, kind = pipe.vae, pipe.vae.dtype
    overflows = kind == torch.float16 and getattr(vae.config, "force_upcast", False)  # such as the VAE of SDXL
    if overflows:
        vae.to(torch.float32)
    try:
        encoded = vae.encode(images.to(vae.device, vae.dtype))
    finally:
        if overflows:
            vae.to(kind)
    found = (
        encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
    )  # AutoencoderDC has no distribution
    latents = _normalised(found, vae.config).half().cpu()
    for pair, own in zip(pairs, latents, strict=True):
        if not own.isfinite().all():
            raise CotrunkError(f"The latents of {pair.image} are not finite: use another dtype, such as bfloat16.")
    return latents


def _normalised(latents: torch.Tensor, config: Any) -> torch.Tensor:
    """Normalise latents, as the inverse of what pipelines do before decoding.

    Some VAEs of SDXL have statistics per channel.
    """
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        mean, std = (torch.tensor(values, device=latents.device).reshape(1, -1, 1, 1) for values in (mean, std))
        return (latents - mean) * config.scaling_factor / std
    return (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
