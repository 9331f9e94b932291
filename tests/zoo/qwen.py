"""Qwen-Image."""

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
from building_blocks import WIDTH, certain, flow_scheduler, quiet, randomised, seeded

from . import encoders
from .case import WITH_IMAGES, Case, Variant
from .classes import pipeline_class
from .parts import GLOBAL_NOISE, embeds, image_of, inpainting_mask, mask, negative_mask, texts

PIXELS, CHANNELS = 16, 4
SIZE = {"height": PIXELS, "width": PIXELS}
CONFIG = {
    "patch_size": 2,
    "in_channels": 4 * CHANNELS,  # the pipelines pack 2 x 2 latents
    "out_channels": CHANNELS,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (4, 4, 8),
}
MASKS = {"encoder_hidden_states_mask": "encoder_hidden_states"}


def qwen_vae() -> Any:
    with seeded():
        return diffusers.AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=CHANNELS,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, -0.1, 0.2, 0.0],
            latents_std=[1.0, 1.2, 0.8, 1.1],
        ).eval()


def of(name: str, **more: Any) -> Callable[[], Any]:
    def build() -> Any:
        kind = pipeline_class(name)
        parts = {
            "scheduler": lambda: flow_scheduler(use_dynamic_shifting=True),
            "vae": qwen_vae,
            "transformer": lambda: randomised(diffusers.QwenImageTransformer2DModel(**CONFIG)),
            "text_encoder": lambda: None,
            "tokenizer": lambda: None,
        }
        return quiet(kind(**{key: value() for key, value in (parts | more).items()}))

    return build


def controlnet(**config: Any) -> Any:
    return randomised(diffusers.QwenImageControlNetModel(**CONFIG | {"num_layers": 1} | config), seed=1)


def said(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    """Return inputs whose texts are padded to the longest of the call."""
    return texts(prompts) | SIZE | {"true_cfg_scale": 4.0} if variant == "texts" else text(prompts, variant)


def text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    masks = {"prompt_embeds_mask": mask(prompts), "negative_prompt_embeds_mask": negative_mask(prompts)}
    return embeds(prompts) | masks | SIZE | {"true_cfg_scale": 4.0}


def from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return text(prompts, variant) | {
        "image": image_of(prompts, variant, PIXELS),
        "strength": 0.8,
        "num_inference_steps": 5,
    }


def inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return from_image(prompts, variant) | {"mask_image": inpainting_mask(prompts, variant, PIXELS)}


def controlled(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return text(prompts, variant) | {"control_image": image_of(prompts, variant, PIXELS, seed=3)}


def controlled_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return controlled(prompts, variant) | {"control_mask": inpainting_mask(prompts, variant, PIXELS)}


CASES = [
    Case(
        "QwenImagePipeline",
        of("QwenImagePipeline", text_encoder=encoders.qwen, tokenizer=lambda: encoders.tokenizer(1200)),
        said,
        ("embeds", "texts"),
        masks=MASKS,
        fast=True,
    ),
    Case("QwenImageImg2ImgPipeline", of("QwenImageImg2ImgPipeline"), from_image, WITH_IMAGES, masks=MASKS),
    Case("QwenImageInpaintPipeline", of("QwenImageInpaintPipeline"), inpainted, WITH_IMAGES, masks=MASKS),
    Case(
        "QwenImageControlNetPipeline",
        of("QwenImageControlNetPipeline", controlnet=controlnet),
        controlled,
        WITH_IMAGES,
        masks=MASKS,
    ),
    Case(
        "QwenImageControlNetInpaintPipeline",
        of(
            "QwenImageControlNetInpaintPipeline",
            vae=lambda: certain(qwen_vae()),
            controlnet=lambda: controlnet(extra_condition_channels=4),
        ),
        controlled_inpainted,
        WITH_IMAGES,
        masks=MASKS,
        note=GLOBAL_NOISE,
    ),
]
