"""Stable Diffusion XL and Kolors, which has its UNet."""

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
from building_blocks import SD_BETAS, WIDTH, controlnet, randomised, unet
from tiny import sdxl

from .assembly import with_parts_of
from .case import WITH_IMAGES, Case, Variant
from .parts import embeds, image_of, inpainting_mask, pooled

SIZE = {"height": 32, "width": 32}
TIME_WIDTH, SIZE_NUMBERS = 8, 6
SDXL_CONFIG = {
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 1),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIME_WIDTH,
    "projection_class_embeddings_input_dim": TIME_WIDTH * SIZE_NUMBERS + WIDTH,
}


def sdxl_unet(**config: Any) -> Any:
    return unet(**SDXL_CONFIG | config)


def of(name: str, absent: Sequence[str] = (), **more: Any) -> Callable[[], Any]:
    """Return a function that builds the pipeline of this name from the parts of SDXL."""
    return with_parts_of(sdxl, name, absent, **{"unet": sdxl_unet, "add_watermarker": False} | more)


def text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return embeds(prompts) | pooled(prompts) | SIZE | {"guidance_scale": 5.0}


def from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    given = embeds(prompts) | pooled(prompts) | {"guidance_scale": 5.0}
    return given | {"image": image_of(prompts, variant), "strength": 0.8, "num_inference_steps": 5}


def inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return from_image(prompts, variant) | SIZE | {"mask_image": inpainting_mask(prompts, variant), "strength": 0.8}


def inpainted_from_the_middle(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    given = inpainted(prompts, variant) | {"denoising_start": 0.4, "num_inference_steps": 8}
    given.pop("strength")
    return given


def edited(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return text(prompts, variant) | {"image": image_of(prompts, variant), "image_guidance_scale": 1.5}


def controlled(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return text(prompts, variant) | {"image": image_of(prompts, variant, seed=3)}


def controlled_from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return from_image(prompts, variant) | {"control_image": image_of(prompts, variant, seed=3)}


def controlled_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return inpainted(prompts, variant) | {"control_image": image_of(prompts, variant, seed=3)}


def sdxl_controlnet() -> Any:
    return controlnet(**SDXL_CONFIG)


def union_controlnet() -> Any:
    return controlnet(
        diffusers.ControlNetUnionModel,
        num_control_type=3,
        num_trans_channel=8,
        num_trans_head=2,
        num_proj_channel=8,
        **SDXL_CONFIG,
    )


def union(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return text(prompts, variant) | {"control_image": [image_of(prompts, variant, seed=3)], "control_mode": [1]}


def union_from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return from_image(prompts, variant) | {"control_image": [image_of(prompts, variant, seed=3)], "control_mode": [1]}


def union_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return inpainted(prompts, variant) | {"control_image": [image_of(prompts, variant, seed=3)], "control_mode": [1]}


def adapter() -> Any:
    return randomised(
        diffusers.T2IAdapter(
            in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter_xl"
        )
    )


PERTURBED = {"pag_applied_layers": ["down"]}
KOLORS = {"scheduler": lambda: diffusers.EulerDiscreteScheduler(**SD_BETAS, timestep_spacing="leading")}
KOLORS_OUT = ("text_encoder_2", "tokenizer_2", "add_watermarker")


def xl(name: str, inputs: Any, variant: tuple[Variant, ...] = ("embeds",), fast: bool = False, **parts: Any) -> Case:
    name = f"StableDiffusionXL{name}Pipeline"
    return Case(name, of(name, **parts), inputs, variant, fast=fast)


CASES = [
    xl("", text, fast=True),
    xl("Img2Img", from_image, WITH_IMAGES),
    xl("Inpaint", inpainted, WITH_IMAGES),
    xl("InstructPix2Pix", edited, WITH_IMAGES, unet=lambda: sdxl_unet(in_channels=8)),
    xl("ControlNet", controlled, WITH_IMAGES, controlnet=sdxl_controlnet),
    xl("ControlNetImg2Img", controlled_from_image, WITH_IMAGES, controlnet=sdxl_controlnet),
    xl("ControlNetInpaint", controlled_inpainted, WITH_IMAGES, controlnet=sdxl_controlnet),
    xl("ControlNetUnion", union, ("one",), controlnet=union_controlnet),
    xl("ControlNetUnionImg2Img", union_from_image, ("one",), controlnet=union_controlnet),
    xl("ControlNetUnionInpaint", union_inpainted, ("one",), controlnet=union_controlnet),
    xl("Adapter", controlled, WITH_IMAGES, adapter=adapter, absent=["add_watermarker"]),
    xl("PAG", text, **PERTURBED),
    xl("PAGImg2Img", from_image, WITH_IMAGES, **PERTURBED),
    xl("PAGInpaint", inpainted, WITH_IMAGES, **PERTURBED),
    xl("ControlNetPAG", controlled, WITH_IMAGES, controlnet=sdxl_controlnet, **PERTURBED),
    xl("ControlNetPAGImg2Img", controlled_from_image, WITH_IMAGES, controlnet=sdxl_controlnet, **PERTURBED),
    Case("KolorsPipeline", of("KolorsPipeline", KOLORS_OUT, unet=sdxl_unet), text),
    Case("KolorsPAGPipeline", of("KolorsPAGPipeline", KOLORS_OUT, unet=sdxl_unet, **PERTURBED), text),
]
