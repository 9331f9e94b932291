"""Stable Diffusion 1 and 2, with its ControlNets, adapters, perturbed attention and older relatives."""

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from building_blocks import controlnet, quiet, randomised, sd_parts, unet

from .assembly import made
from .case import WITH_IMAGES, Case, Variant
from .classes import pipeline_class
from .parts import embeds, image_of, inpainting_mask

SIZE = {"height": 32, "width": 32}
GUIDED = {"guidance_scale": 5.0}
OMITTED = object()


def of(name: str, **more: Any) -> Callable[[], Any]:
    """Return a function that builds the pipeline of this name. OMITTED marks parts that it does not take."""

    def build() -> Any:
        given = {key: part for key, part in (sd_parts() | more).items() if part is not OMITTED}
        return quiet(pipeline_class(name)(**made(given)))

    return build


def text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return embeds(prompts) | SIZE | GUIDED


def from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return embeds(prompts) | GUIDED | {"image": image_of(prompts, variant), "strength": 0.8, "num_inference_steps": 5}


def inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return from_image(prompts, variant) | SIZE | {"mask_image": inpainting_mask(prompts, variant), "strength": 0.8}


def edited(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return embeds(prompts) | GUIDED | {"image": image_of(prompts, variant), "image_guidance_scale": 1.5}


def controlled(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return text(prompts, variant) | {"image": image_of(prompts, variant, seed=3)}


def controlled_from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return from_image(prompts, variant) | {"control_image": image_of(prompts, variant, seed=3)}


def controlled_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return inpainted(prompts, variant) | {"control_image": image_of(prompts, variant, seed=3)}


def upscaled(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return embeds(prompts) | GUIDED | {"image": image_of(prompts, variant, size=16), "noise_level": 20}


def with_depth(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    depth = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(4))
    return from_image(prompts, variant) | {"depth_map": depth}


def adapter() -> Any:
    return randomised(
        diffusers.T2IAdapter(
            in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
        )
    )


def adapted_unet() -> Any:
    """Return a UNet whose blocks with attention take the adapter's features before they downsample."""
    return unet(
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def lcm_unet() -> Any:
    return unet(attention_head_dim=4, time_cond_proj_dim=8)


LCM = {"unet": lcm_unet, "scheduler": diffusers.LCMScheduler}
PERTURBED = {"pag_applied_layers": ["down"]}


def lcm(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    """Return inputs for a model with distilled guidance."""
    given = text(prompts, variant) if variant == "embeds" else from_image(prompts, variant)
    return {key: value for key, value in given.items() if key != "negative_prompt_embeds"}


CASES = [
    Case("StableDiffusionPipeline", of("StableDiffusionPipeline"), text, fast=True),
    Case("StableDiffusionImg2ImgPipeline", of("StableDiffusionImg2ImgPipeline"), from_image, WITH_IMAGES, fast=True),
    Case("StableDiffusionInpaintPipeline", of("StableDiffusionInpaintPipeline"), inpainted, WITH_IMAGES),
    Case(
        "StableDiffusionInstructPix2PixPipeline",
        of("StableDiffusionInstructPix2PixPipeline", unet=lambda: unet(attention_head_dim=4, in_channels=8)),
        edited,
        WITH_IMAGES,
    ),
    Case(
        "StableDiffusionDepth2ImgPipeline",
        of(
            "StableDiffusionDepth2ImgPipeline",
            unet=lambda: unet(attention_head_dim=4, in_channels=5),
            depth_estimator=None,
            safety_checker=OMITTED,
            requires_safety_checker=OMITTED,
        ),
        with_depth,
        WITH_IMAGES,
    ),
    Case(
        "StableDiffusionUpscalePipeline",
        of(
            "StableDiffusionUpscalePipeline",
            unet=lambda: unet(attention_head_dim=4, in_channels=7, num_class_embeds=1000),
            low_res_scheduler=diffusers.DDPMScheduler,
            max_noise_level=350,
            requires_safety_checker=OMITTED,
        ),
        upscaled,
        WITH_IMAGES,
    ),
    Case(
        "StableDiffusionControlNetPipeline",
        of("StableDiffusionControlNetPipeline", controlnet=controlnet),
        controlled,
        WITH_IMAGES,
        fast=True,
    ),
    Case(
        "StableDiffusionControlNetImg2ImgPipeline",
        of("StableDiffusionControlNetImg2ImgPipeline", controlnet=controlnet),
        controlled_from_image,
        WITH_IMAGES,
    ),
    Case(
        "StableDiffusionControlNetInpaintPipeline",
        of("StableDiffusionControlNetInpaintPipeline", controlnet=controlnet),
        controlled_inpainted,
        WITH_IMAGES,
    ),
    Case(
        "StableDiffusionAdapterPipeline",
        of("StableDiffusionAdapterPipeline", adapter=adapter, unet=adapted_unet),
        controlled,
        WITH_IMAGES,
        denoisers=("unet",),
    ),
    Case("LatentConsistencyModelPipeline", of("LatentConsistencyModelPipeline", **LCM), lcm),
    Case("LatentConsistencyModelImg2ImgPipeline", of("LatentConsistencyModelImg2ImgPipeline", **LCM), lcm, WITH_IMAGES),
    Case("StableDiffusionPAGPipeline", of("StableDiffusionPAGPipeline", **PERTURBED), text),
    Case(
        "StableDiffusionPAGImg2ImgPipeline",
        of("StableDiffusionPAGImg2ImgPipeline", **PERTURBED),
        from_image,
        WITH_IMAGES,
    ),
    Case(
        "StableDiffusionPAGInpaintPipeline",
        of("StableDiffusionPAGInpaintPipeline", **PERTURBED),
        inpainted,
        WITH_IMAGES,
    ),
    Case(
        "StableDiffusionControlNetPAGPipeline",
        of("StableDiffusionControlNetPAGPipeline", controlnet=controlnet, **PERTURBED),
        controlled,
        WITH_IMAGES,
    ),
    Case(
        "StableDiffusionControlNetPAGInpaintPipeline",
        of("StableDiffusionControlNetPAGInpaintPipeline", controlnet=controlnet, **PERTURBED),
        controlled_inpainted,
        WITH_IMAGES,
    ),
]
