"""Generate images with a model of this recipe, trained or still in training."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from autoencoder import as_float
from cotrunk import mini
from cotrunk.pipelines.arguments import needed_arguments
from cotrunk.pipelines.loading import EMBEDDED
from cotrunk.pipelines.schedulers import set_scheduler
from recognition import Request
from training import device


def load_model(model: str, denoiser: str = "unet") -> Any:
    """Load a pipeline: `mini` or `mini-dit` of the package, or one from a build folder.

    Args:
        denoiser: name of the denoiser's folder in the build folder.
    """
    folder = Path(model)
    if model in EMBEDDED:
        pipe = getattr(mini, EMBEDDED[model])()
    elif not (folder / "autoencoder").exists() or not (folder / denoiser).exists():
        raise SystemExit(f"{folder} is not a build folder with autoencoder/ and {denoiser}/: train them first")
    elif denoiser.startswith("transformer"):
        pipe = mini.assemble_dit(folder / "autoencoder", folder / denoiser, folder / "transformer_scheduler")
    else:
        scheduler = "scheduler-epsilon" if denoiser.startswith("unet-epsilon") else "scheduler"
        pipe = mini.assemble(folder / "autoencoder", folder / denoiser, folder / scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device())


def prompt_of(request: Request) -> str:
    concept, style, colour = request
    return f"{colour} {concept}, {style} style" if colour else f"{concept}, {style} style"


def generate(
    pipe: DiffusionPipeline,
    prompts: list[str],
    *,
    guidance: float,
    steps: int = 30,
    scheduler: str | None = None,
    batch: int = 50,
) -> torch.Tensor:
    """Generate images (n, 3, size, size) in [0, 1], image i from seed i; the batch size only changes rounding.

    Args:
        scheduler: a short name of `cotrunk.pipelines.schedulers`; None for the pipeline's own.
    """
    own = pipe.scheduler
    if scheduler is not None:
        set_scheduler(pipe, scheduler)
    arguments = needed_arguments(pipe)
    images = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        output = pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(start + i) for i in range(len(part))],
            output_type="pt",
            **arguments,
        )
        images.append(output.images.float().cpu())
    pipe.scheduler = own
    return torch.cat(images)


@torch.no_grad()
def reconstructions(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Encode and decode images (n, 3, size, size) in bytes; the result is in [0, 1]."""
    outputs = []
    for batch in images.split(16):
        latents = vae.encode(as_float(batch)).latent_dist.mode()
        outputs.append((vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).cpu())
    return torch.cat(outputs)
