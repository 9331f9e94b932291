"""Diffusion transformers: PixArt, Sana, HunyuanDiT, AuraFlow, CogView, Lumina, Z-Image."""

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from building_blocks import (
    SANA_CONFIG,
    TOKENS,
    WIDTH,
    Z_IMAGE_CONFIG,
    certain,
    quiet,
    randomised,
    sana_transformer,
    shifted_vae,
    vae,
    z_image_transformer,
)
from tiny import pixart, sana

from . import encoders
from .assembly import made, one_encoder, with_parts_of
from .case import WITH_IMAGES, Case, Variant
from .classes import pipeline_class
from .parts import (
    GLOBAL_NOISE,
    attention_masks,
    embeds,
    image_of,
    inpainting_mask,
    mask,
    negative_mask,
    negatives,
    rows,
    texts,
    unpadded_embeds,
)

SIZE = {"height": 32, "width": 32}
UNBINNED = {"use_resolution_binning": False}
MASKS = {"encoder_attention_mask": "encoder_hidden_states"}


def masked(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    """Return prompts with masks. Without a tokenizer the negative prompt's text must be None."""
    return embeds(prompts) | SIZE | attention_masks(prompts) | {"guidance_scale": 4.0}


def pixart_text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return masked(prompts, variant) | UNBINNED | {"negative_prompt": None}


def sana_text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return pixart_text(prompts, variant) | {"complex_human_instruction": None}


def sana_controlled(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return sana_text(prompts, variant) | {"control_image": image_of(prompts, variant, seed=3)}


def sprint(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    given = sana_text(prompts, variant) | {"num_inference_steps": 2}
    for name in ("negative_prompt", "negative_prompt_embeds", "negative_prompt_attention_mask"):
        given.pop(name)
    return given


def sprint_from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    given = sprint(prompts, variant) | {"image": image_of(prompts, variant), "num_inference_steps": 5, "strength": 0.8}
    return given | {"intermediate_timesteps": None}


def sprint_transformer() -> Any:
    config = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
    return sana_transformer(**config)


def sana_controlnet() -> Any:
    return randomised(diffusers.SanaControlNetModel(**SANA_CONFIG), seed=1)


SPRINT = {"transformer": sprint_transformer, "scheduler": diffusers.SCMScheduler}


class AbsentEncoder(diffusers.ModelMixin):
    """A stand-in for text encoders, whose dtype HunyuanDiT reads even when it is given embeddings."""

    dtype = torch.float32


T5_TOKENS = 9
HUNYUAN_CONFIG = {
    "sample_size": 16,
    "patch_size": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 3,
    "in_channels": 4,
    "cross_attention_dim": WIDTH,
    "cross_attention_dim_t5": WIDTH,
    "pooled_projection_dim": WIDTH,
    "hidden_size": 24,
    "text_len": TOKENS,
    "text_len_t5": T5_TOKENS,
}
HUNYUAN_MASKS = {"text_embedding_mask": "encoder_hidden_states", "text_embedding_mask_t5": "encoder_hidden_states_t5"}


def hunyuan_vae() -> Any:
    """Return a VAE whose scale is 8, which the pipeline assumes."""
    return vae(block_out_channels=[4] * 4)


def hunyuan(name: str, **more: Any) -> Callable[[], Any]:
    def build() -> Any:
        parts = {
            "vae": hunyuan_vae(),
            "text_encoder": None,
            "tokenizer": None,
            "text_encoder_2": None,
            "tokenizer_2": None,
            "transformer": randomised(diffusers.HunyuanDiT2DModel(num_layers=2, **HUNYUAN_CONFIG)),
            "scheduler": diffusers.DDIMScheduler(clip_sample=False),
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
        return quiet(pipeline_class(name)(**made(parts | more)))

    return build


def hunyuan_text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    """Return inputs whose padding matters: the denoiser pools the second encoder's states without a mask."""
    second = {
        "prompt_embeds_2": rows(prompts, T5_TOKENS, WIDTH, seed=2),
        "negative_prompt_embeds_2": negatives(prompts, T5_TOKENS, WIDTH, seed=2),
        "prompt_attention_mask_2": mask(prompts, T5_TOKENS),
        "negative_prompt_attention_mask_2": negative_mask(prompts, T5_TOKENS),
    }
    return masked(prompts, variant) | second | UNBINNED | {"height": 64, "width": 64}


def hunyuan_controlled(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return hunyuan_text(prompts, variant) | {"control_image": image_of(prompts, variant, seed=3)}


def hunyuan_controlnet() -> Any:
    return randomised(diffusers.HunyuanDiT2DControlNetModel(transformer_num_layers=2, **HUNYUAN_CONFIG), seed=1)


def aura_transformer() -> Any:
    return randomised(
        diffusers.AuraFlowTransformer2DModel(
            sample_size=16,
            patch_size=1,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            caption_projection_dim=16,
            pos_embed_max_size=256,
        )
    )


def unmasked(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return embeds(prompts) | SIZE | {"guidance_scale": 4.0}


COGVIEW_CONFIG = {
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "text_embed_dim": WIDTH,
    "time_embed_dim": 8,
    "condition_dim": 4,
    "pos_embed_max_size": 8,
    "sample_size": 16,
}


def cogview3_transformer() -> Any:
    return randomised(diffusers.CogView3PlusTransformer2DModel(**COGVIEW_CONFIG))


def cogview4_transformer(**config: Any) -> Any:
    given = COGVIEW_CONFIG | {"rope_axes_dim": (4, 4)} | config
    return randomised(diffusers.CogView4Transformer2DModel(**given))


def cogview4_text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    """Return inputs whose texts are padded on the left, up to the longest of the call."""
    return texts(prompts) | SIZE | {"guidance_scale": 4.0} if variant == "texts" else unmasked(prompts, variant)


def lumina_text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return texts(prompts) | SIZE | {"guidance_scale": 4.0} if variant == "texts" else masked(prompts, variant)


def cogview4_controlled(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return unmasked(prompts, variant) | {"control_image": image_of(prompts, variant, seed=3)}


def lumina_transformer() -> Any:
    return randomised(
        diffusers.LuminaNextDiT2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            cross_attention_dim=WIDTH,
        )
    )


def lumina2_transformer() -> Any:
    return randomised(
        diffusers.Lumina2Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(64, 64, 64),
            cap_feat_dim=WIDTH,
        )
    )


def z_text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    """Return prompts without padding."""
    return unpadded_embeds(prompts) | SIZE | {"guidance_scale": 4.0}


def z_from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return z_text(prompts, variant) | {"image": image_of(prompts, variant), "strength": 0.8, "num_inference_steps": 5}


def z_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return z_from_image(prompts, variant) | {"mask_image": inpainting_mask(prompts, variant)}


def hunyuan_image_transformer() -> Any:
    return randomised(
        diffusers.HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1),
            text_embed_dim=WIDTH,
            text_embed_2_dim=WIDTH,
            rope_axes_dim=(4, 4),
        )
    )


PERTURBED = {"pag_applied_layers": ["blocks.0"]}

CASES = [
    Case("PixArtAlphaPipeline", with_parts_of(pixart, "PixArtAlphaPipeline"), pixart_text, masks=MASKS, fast=True),
    Case("PixArtSigmaPipeline", with_parts_of(pixart, "PixArtSigmaPipeline"), pixart_text, masks=MASKS),
    Case(
        "PixArtSigmaPAGPipeline", with_parts_of(pixart, "PixArtSigmaPAGPipeline", **PERTURBED), pixart_text, masks=MASKS
    ),
    Case("SanaPipeline", with_parts_of(sana, "SanaPipeline"), sana_text, masks=MASKS),
    Case(
        "SanaPAGPipeline",
        with_parts_of(sana, "SanaPAGPipeline", pag_applied_layers=["blocks.0"]),
        sana_text,
        masks=MASKS,
    ),
    Case(
        "SanaControlNetPipeline",
        with_parts_of(sana, "SanaControlNetPipeline", controlnet=sana_controlnet),
        sana_controlled,
        WITH_IMAGES,
        masks=MASKS,
    ),
    Case("SanaSprintPipeline", with_parts_of(sana, "SanaSprintPipeline", **SPRINT), sprint, masks=MASKS, steps=2),
    Case(
        "SanaSprintImg2ImgPipeline",
        with_parts_of(sana, "SanaSprintImg2ImgPipeline", **SPRINT),
        sprint_from_image,
        WITH_IMAGES,
        masks=MASKS,
    ),
    Case("HunyuanDiTPipeline", hunyuan("HunyuanDiTPipeline"), hunyuan_text, masks=HUNYUAN_MASKS),
    Case("HunyuanDiTPAGPipeline", hunyuan("HunyuanDiTPAGPipeline", **PERTURBED), hunyuan_text, masks=HUNYUAN_MASKS),
    Case(
        "HunyuanDiTControlNetPipeline",
        hunyuan("HunyuanDiTControlNetPipeline", controlnet=hunyuan_controlnet, vae=lambda: certain(hunyuan_vae())),
        hunyuan_controlled,
        WITH_IMAGES,
        masks=HUNYUAN_MASKS,
        note=GLOBAL_NOISE,
    ),
    Case("AuraFlowPipeline", one_encoder("AuraFlowPipeline", aura_transformer), masked),
    Case(
        "CogView3PlusPipeline",
        one_encoder("CogView3PlusPipeline", cogview3_transformer, scheduler=lambda: diffusers.CogVideoXDDIMScheduler()),
        unmasked,
    ),
    Case(
        "CogView4Pipeline",
        one_encoder(
            "CogView4Pipeline",
            cogview4_transformer,
            **encoders.with_tokenizer(encoders.glm, 1024, "left"),
        ),
        cogview4_text,
        ("embeds", "texts"),
        together="equal lengths",
        fast=True,
    ),
    Case(
        "CogView4ControlPipeline",
        one_encoder("CogView4ControlPipeline", lambda: cogview4_transformer(in_channels=8), vae=lambda: certain(vae())),
        cogview4_controlled,
        WITH_IMAGES,
        note=GLOBAL_NOISE,
    ),
    Case(
        "LuminaPipeline",
        one_encoder(
            "LuminaPipeline",
            lumina_transformer,
            **encoders.with_tokenizer(encoders.gemma, 256, "right"),
        ),
        lumina_text,
        ("embeds", "texts"),
        masks={"encoder_mask": "encoder_hidden_states"},
    ),
    Case("Lumina2Pipeline", one_encoder("Lumina2Pipeline", lumina2_transformer), masked, masks=MASKS),
    Case("ZImagePipeline", one_encoder("ZImagePipeline", z_image_transformer), z_text, fast=True),
    Case(
        "ZImageImg2ImgPipeline",
        one_encoder("ZImageImg2ImgPipeline", z_image_transformer, vae=shifted_vae),
        z_from_image,
        WITH_IMAGES,
    ),
    Case(
        "ZImageInpaintPipeline",
        one_encoder("ZImageInpaintPipeline", z_image_transformer, vae=shifted_vae),
        z_inpainted,
        WITH_IMAGES,
    ),
]


def z_controlnet(channels: int) -> Any:
    """Return a ControlNet, which borrows the transformer's embedders."""
    return randomised(
        diffusers.ZImageControlNetModel(
            control_layers_places=[0],
            control_refiner_layers_places=[0],
            control_in_dim=channels,
            add_control_noise_refiner="control_noise_refiner",
            **Z_IMAGE_CONFIG,
        ),
        seed=1,
    )


def z_controlled(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return z_text(prompts, variant) | {"control_image": image_of(prompts, variant, seed=3)}


def z_controlled_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    images = {"image": image_of(prompts, variant), "mask_image": inpainting_mask(prompts, variant)}
    return z_controlled(prompts, variant) | images


CASES += [
    Case(
        "ZImageControlNetPipeline",
        one_encoder(
            "ZImageControlNetPipeline", z_image_transformer, vae=shifted_vae, controlnet=lambda: z_controlnet(4)
        ),
        z_controlled,
        WITH_IMAGES,
    ),
    Case(
        "ZImageControlNetInpaintPipeline",
        # control latents, a mask, and the latents of the masked image
        one_encoder(
            "ZImageControlNetInpaintPipeline", z_image_transformer, vae=shifted_vae, controlnet=lambda: z_controlnet(9)
        ),
        z_controlled_inpainted,
        WITH_IMAGES,
    ),
]
