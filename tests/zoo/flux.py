"""Flux 1 and 2, and the models built like them: Chroma, Ovis-Image, Bria, LongCat-Image."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import diffusers
from building_blocks import FLUX_CONFIG, WIDTH, flux_transformer, flux_vae, randomised, seeded, shifted_vae
from tiny import flux

from . import encoders
from .assembly import one_encoder, with_parts_of
from .case import WITH_IMAGES, Case, Variant
from .parts import attention_masks, embeds, image_of, inpainting_mask, pooled, texts

PIXELS = 16
SIZE = {"height": PIXELS, "width": PIXELS}


def controlnet() -> Any:
    given = FLUX_CONFIG | {"pooled_projection_dim": WIDTH, "guidance_embeds": True}
    return randomised(diffusers.FluxControlNetModel(**given), seed=1)


of = partial(with_parts_of, flux)


def text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return embeds(prompts, negative=False) | pooled(prompts, negative=False) | SIZE | {"guidance_scale": 3.5}


def guided_text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return embeds(prompts) | pooled(prompts) | SIZE | {"guidance_scale": 3.5, "true_cfg_scale": 3.0}


def of_strength(inputs: Callable[..., Any]) -> Callable[..., Any]:
    return lambda prompts, variant: inputs(prompts, variant) | {"strength": 0.8, "num_inference_steps": 5}


def from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return text(prompts, variant) | {"image": image_of(prompts, variant, PIXELS)}


def inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return from_image(prompts, variant) | {"mask_image": inpainting_mask(prompts, variant, PIXELS)}


def control(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return {"control_image": image_of(prompts, variant, PIXELS, seed=3)}


def controlled(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return text(prompts, variant) | control(prompts, variant)


def controlled_from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return from_image(prompts, variant) | control(prompts, variant)


def controlled_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return inpainted(prompts, variant) | control(prompts, variant)


KONTEXT = {"max_area": PIXELS**2, "_auto_resize": False}


def edited(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return guided_text(prompts, variant) | {"image": image_of(prompts, variant, PIXELS)} | KONTEXT


def edited_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return edited(prompts, variant) | {"mask_image": inpainting_mask(prompts, variant, PIXELS)}


def masked_text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    """Return inputs for Chroma, whose text encoder gives masks in the dtype of the embeddings."""
    given = embeds(prompts) | SIZE | {"guidance_scale": 4.0}
    return given | attention_masks(prompts, given["prompt_embeds"].dtype)


def masked_from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return masked_text(prompts, variant) | {"image": image_of(prompts, variant, PIXELS)}


def chroma() -> Any:
    given = {"approximator_num_channels": 16, "approximator_hidden_dim": 32, "approximator_layers": 1}
    return randomised(diffusers.ChromaTransformer2DModel(**FLUX_CONFIG | given))


of_one_encoder = partial(one_encoder, vae=flux_vae)


def plain(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return embeds(prompts) | SIZE | {"guidance_scale": 4.0}


def without_text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return plain(prompts, variant) | {"negative_prompt": None}


def said(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return texts(prompts) | SIZE | {"guidance_scale": 4.0, "enable_prompt_rewrite": False}


def longcat_transformer() -> Any:
    """Return a transformer for latents of 16 channels, which the pipeline assumes."""
    return randomised(
        diffusers.LongCatImageTransformer2DModel(**FLUX_CONFIG | {"pooled_projection_dim": WIDTH, "in_channels": 64})
    )


CHROMA_MASK = {"attention_mask": "encoder_hidden_states"}


def flux2_vae() -> Any:
    with seeded():
        return diffusers.AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            layers_per_block=1,
            latent_channels=2,
            norm_num_groups=2,
            sample_size=32,
        ).eval()


def flux2_transformer(**config: Any) -> Any:
    given = FLUX_CONFIG | {"in_channels": 8, "axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 16}
    return randomised(diffusers.Flux2Transformer2DModel(**given | config))


FLUX2_SIZE = {"height": 32, "width": 32}


def flux2(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    given = embeds(prompts, negative=False) | FLUX2_SIZE | {"guidance_scale": 4.0}
    return given if variant == "embeds" else given | {"image": image_of(prompts, variant, 64)}


def klein(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    given = embeds(prompts) | FLUX2_SIZE | {"guidance_scale": 4.0}
    return given if variant == "embeds" else given | {"image": image_of(prompts, variant, 64)}


def klein_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return klein(prompts, variant) | {
        "mask_image": inpainting_mask(prompts, variant, 32),
        "strength": 0.8,
        "num_inference_steps": 5,
    }


def klein_kv(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    given = embeds(prompts, negative=False) | FLUX2_SIZE
    return given if variant == "embeds" else given | {"image": image_of(prompts, variant, 64)}


def unguided_flux2() -> Any:
    return flux2_transformer(guidance_embeds=False)


CASES = [
    Case("FluxPipeline", of("FluxPipeline"), guided_text, fast=True),
    Case("FluxImg2ImgPipeline", of("FluxImg2ImgPipeline"), of_strength(from_image), WITH_IMAGES),
    Case("FluxInpaintPipeline", of("FluxInpaintPipeline"), of_strength(inpainted), WITH_IMAGES),
    Case(
        "FluxControlPipeline",
        of("FluxControlPipeline", transformer=lambda: flux_transformer(in_channels=8, out_channels=4)),
        controlled,
        WITH_IMAGES,
    ),
    Case(
        "FluxControlImg2ImgPipeline",
        of("FluxControlImg2ImgPipeline", transformer=lambda: flux_transformer(in_channels=8, out_channels=4)),
        of_strength(controlled_from_image),
        WITH_IMAGES,
    ),
    Case(
        "FluxControlInpaintPipeline",
        of("FluxControlInpaintPipeline", transformer=lambda: flux_transformer(in_channels=8, out_channels=4)),
        of_strength(controlled_inpainted),
        WITH_IMAGES,
    ),
    Case("FluxControlNetPipeline", of("FluxControlNetPipeline", controlnet=controlnet), controlled, WITH_IMAGES),
    Case(
        "FluxControlNetImg2ImgPipeline",
        of("FluxControlNetImg2ImgPipeline", controlnet=controlnet),
        of_strength(controlled_from_image),
        WITH_IMAGES,
    ),
    Case(
        "FluxControlNetInpaintPipeline",
        of("FluxControlNetInpaintPipeline", controlnet=controlnet),
        of_strength(controlled_inpainted),
        WITH_IMAGES,
    ),
    Case(
        "FluxFillPipeline",
        of("FluxFillPipeline", transformer=lambda: flux_transformer(in_channels=12, out_channels=4)),
        inpainted,
        WITH_IMAGES,
    ),
    Case("FluxKontextPipeline", of("FluxKontextPipeline"), edited, WITH_IMAGES),
    Case("FluxKontextInpaintPipeline", of("FluxKontextInpaintPipeline"), of_strength(edited_inpainted), WITH_IMAGES),
    Case("ChromaPipeline", of_one_encoder("ChromaPipeline", chroma), masked_text, masks=CHROMA_MASK),
    Case(
        "ChromaImg2ImgPipeline",
        of_one_encoder("ChromaImg2ImgPipeline", chroma),
        of_strength(masked_from_image),
        WITH_IMAGES,
        masks=CHROMA_MASK,
    ),
    Case(
        "OvisImagePipeline",
        of_one_encoder(
            "OvisImagePipeline",
            lambda: randomised(diffusers.OvisImageTransformer2DModel(**FLUX_CONFIG | {"out_channels": 4})),
        ),
        without_text,
    ),
    Case(
        "BriaPipeline",
        of_one_encoder("BriaPipeline", lambda: randomised(diffusers.BriaTransformer2DModel(**FLUX_CONFIG))),
        plain,
    ),
    Case(
        "LongCatImagePipeline",
        of_one_encoder(
            "LongCatImagePipeline",
            longcat_transformer,
            vae=lambda: shifted_vae(channels=16),
            text_processor=lambda: None,
            text_encoder=encoders.qwen_with_head,
            tokenizer=lambda: encoders.tokenizer(512),
        ),
        said,
        ("texts",),
    ),
    Case("Flux2Pipeline", of_one_encoder("Flux2Pipeline", flux2_transformer, vae=flux2_vae), flux2, ("embeds", "one")),
    Case(
        "Flux2KleinPipeline",
        of_one_encoder("Flux2KleinPipeline", unguided_flux2, vae=flux2_vae),
        klein,
        ("embeds", "one"),
    ),
    Case(
        "Flux2KleinInpaintPipeline",
        of_one_encoder("Flux2KleinInpaintPipeline", unguided_flux2, vae=flux2_vae),
        klein_inpainted,
        WITH_IMAGES,
    ),
    Case(
        "Flux2KleinKVPipeline",
        of_one_encoder("Flux2KleinKVPipeline", unguided_flux2, vae=flux2_vae),
        klein_kv,
        ("embeds", "one"),
    ),
]
