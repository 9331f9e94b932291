"""Stable Diffusion 3."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import diffusers
from building_blocks import SD3_CONFIG, certain, randomised, sd3_transformer, shifted_vae
from tiny import sd3

from .assembly import with_parts_of
from .case import WITH_IMAGES, Case, Variant
from .parts import GLOBAL_NOISE, embeds, image_of, inpainting_mask, pooled

SIZE = {"height": 32, "width": 32}


of = partial(with_parts_of, sd3)


def text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return embeds(prompts) | pooled(prompts) | SIZE | {"guidance_scale": 5.0}


def from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return text(prompts, variant) | {"image": image_of(prompts, variant), "strength": 0.8, "num_inference_steps": 5}


def inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return from_image(prompts, variant) | {"mask_image": inpainting_mask(prompts, variant)}


def controlled(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return text(prompts, variant) | {"control_image": image_of(prompts, variant, seed=3)}


def controlled_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return controlled(prompts, variant) | {"control_mask": inpainting_mask(prompts, variant)}


def controlnet(**config: Any) -> Any:
    return randomised(diffusers.SD3ControlNetModel(**SD3_CONFIG | {"num_layers": 1} | config), seed=1)


def wide_transformer() -> Any:
    """Return a transformer for latents of 16 channels, which inpainting requires."""
    return sd3_transformer(in_channels=16, out_channels=16)


def certain_vae() -> Any:
    """Return a VAE without noise. Its pipelines encode the control image with noise from the global generator."""
    return certain(shifted_vae())


def wide_vae() -> Any:
    return shifted_vae(channels=16)


PERTURBED = {"pag_applied_layers": ["blocks.0"]}
CASES = [
    Case("StableDiffusion3Pipeline", of("StableDiffusion3Pipeline"), text, fast=True),
    Case("StableDiffusion3Img2ImgPipeline", of("StableDiffusion3Img2ImgPipeline"), from_image, WITH_IMAGES),
    Case(
        "StableDiffusion3InpaintPipeline",
        of("StableDiffusion3InpaintPipeline", transformer=wide_transformer, vae=wide_vae),
        inpainted,
        WITH_IMAGES,
    ),
    Case(
        "StableDiffusion3ControlNetPipeline",
        of("StableDiffusion3ControlNetPipeline", controlnet=controlnet, vae=certain_vae),
        controlled,
        WITH_IMAGES,
        note=GLOBAL_NOISE,
    ),
    Case(
        "StableDiffusion3ControlNetInpaintingPipeline",
        of(
            "StableDiffusion3ControlNetInpaintingPipeline",
            controlnet=lambda: controlnet(extra_conditioning_channels=1),
            vae=certain_vae,
        ),
        controlled_inpainted,
        WITH_IMAGES,
        note=GLOBAL_NOISE,
    ),
    Case("StableDiffusion3PAGPipeline", of("StableDiffusion3PAGPipeline", **PERTURBED), text),
    Case(
        "StableDiffusion3PAGImg2ImgPipeline",
        of("StableDiffusion3PAGImg2ImgPipeline", **PERTURBED),
        from_image,
        WITH_IMAGES,
    ),
]
