"""Encode images to latents with a pipeline's VAE."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from PIL import Image, ImageOps

from ..errors import CotrunkError
from ..groups.captions import Pair
from ..groups.images import read_image
from ..pipelines.compatibility import denoisers_of


def size_of(pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width of the pictures in pixels: what is asked for, or what the pipeline makes by default."""
    side = getattr(getattr(pipe, denoisers_of(pipe)[0]).config, "sample_size", None)
    default = side * pipe.vae_scale_factor if isinstance(side, int) else None
    height, width = height or default, width or default
    if height is None or width is None:
        raise CotrunkError(f"{type(pipe).__name__} does not say how large its pictures are: give height and width.")
    return height, width


def picture_of(path: Path, height: int, width: int) -> torch.Tensor:
    """(3, height, width) in [-1, 1]: the middle of the picture in the proportions of this size, scaled to it."""
    try:
        picture = read_image(path)
    except Exception as error:  # whatever a file that broke since makes Pillow say
        raise CotrunkError(f"{path} cannot be read any more: make the groups again with cotrunk dataset.") from error
    # cut before it is scaled: the whole of a very long picture would be scaled to gigabytes
    values = np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS), np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)


def check_encodes(pipe: Any) -> None:
    """That it is known here how this pipeline's pictures become latents.

    Raises:
        CotrunkError: a pipeline without a VAE, or with one of another kind: those of video, those that keep the
            statistics of their latents elsewhere than in their configuration.
    """
    vae = getattr(pipe, "vae", None)
    if not isinstance(vae, AutoencoderKL | AutoencoderDC):
        kind = "no VAE" if vae is None else f"the VAE {type(vae).__name__}"
        raise CotrunkError(
            f"{type(pipe).__name__} has {kind}: train a pipeline that has an AutoencoderKL or an AutoencoderDC."
        )


@torch.no_grad()
def _latents(pipe: Any, pairs: Sequence[Pair], height: int, width: int) -> torch.Tensor:
    """(pictures, channels, height, width) as the denoiser knows them, in half precision: the most likely, no draws.

    Raises:
        CotrunkError: latents that are not finite.
    """
    pictures = torch.stack([picture_of(pair.image, height, width) for pair in pairs])
    vae, kind = pipe.vae, pipe.vae.dtype
    overflows = kind == torch.float16 and getattr(vae.config, "force_upcast", False)  # SDXL's does
    if overflows:
        vae.to(torch.float32)
    try:
        encoded = vae.encode(pictures.to(vae.device, vae.dtype))
    finally:
        if overflows:
            vae.to(kind)
    found = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()  # AutoencoderDC knows but one
    latents = _normalised(found, vae.config).half().cpu()
    for pair, own in zip(pairs, latents, strict=True):
        if not own.isfinite().all():
            raise CotrunkError(f"The latents of {pair.image} are not finite: use another dtype, bfloat16 say.")
    return latents


def _normalised(latents: torch.Tensor, config: Any) -> torch.Tensor:
    """What pipelines undo before they decode. Some VAEs of SDXL have statistics for each channel."""
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        mean, std = (torch.tensor(values, device=latents.device).reshape(1, -1, 1, 1) for values in (mean, std))
        return (latents - mean) * config.scaling_factor / std
    return (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
