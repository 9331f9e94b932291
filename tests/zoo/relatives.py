"""Older relatives of Stable Diffusion, most of them deprecated: they guide, edit or start in their own way."""

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
from building_blocks import SD_BETAS, randomised, unet, vae
from tiny import sd_with_text

from .case import WITH_IMAGES, Case, Variant
from .parts import embeds, image_of, inpainting_mask, rows, texts
from .sdxl import of as of_sdxl
from .sdxl import sdxl_unet
from .sdxl import text as sdxl_text
from .stable_diffusion import GUIDED, SIZE, from_image, of, text


def with_text(name: str, **more: Any) -> Callable[[], Any]:
    """Return a function that builds the pipeline of this name, with a small text encoder."""

    def build() -> Any:
        encoder = {key: sd_with_text().pipe.components[key] for key in ("text_encoder", "tokenizer")}
        return of(name, **encoder | more)()

    return build


def ddim() -> Any:
    return diffusers.DDIMScheduler(**SD_BETAS, clip_sample=False, set_alpha_to_one=False)


def said(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return texts(prompts) | SIZE | GUIDED


def cycled(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    given = texts(prompts, negative=False) | {"source_prompt": "a photograph", "image": image_of(prompts, variant)}
    return given | GUIDED | {"strength": 0.8, "num_inference_steps": 5}


def differently(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    """Return inputs for DiffEdit, which continues from the latents of an image."""
    given = {
        "image_latents": rows([0] * len(prompts), 8, 4, 16, 16, seed=7),  # at each step
        "inpaint_strength": 1.0,
        "num_inference_steps": 8,
    }
    return embeds(prompts) | GUIDED | given | {"mask_image": inpainting_mask(prompts, "one", 16)}


def colour_and_depth(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return text(prompts, variant) | {"output_type": "np"}


def legacy_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return from_image(prompts, variant) | {"mask_image": inpainting_mask(prompts, variant)}


def panorama(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return embeds(prompts) | GUIDED | {"height": 32, "width": 40}


def attended(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    own = {"token_indices": [[2, 3]] * len(prompts), "max_iter_to_alter": 1, "thresholds": {}, "attn_res": (8, 8)}
    return said(prompts, variant) | own


def grounded(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return said(prompts, variant) | {"gligen_phrases": ["apple"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]]}


def controlled(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return text(prompts, variant) | {"image": image_of(prompts, variant, seed=3)}


def xl_controlled(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return sdxl_text(prompts, variant) | {"image": image_of(prompts, variant, seed=3)}


def with_adapter(family: Callable[..., Any], name: str, base: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that builds a pipeline with ControlNet-XS, a small network inside the UNet."""

    def build() -> Any:
        given = base()
        adapter = diffusers.ControlNetXSAdapter.from_unet(
            given, size_ratio=0.5, conditioning_embedding_out_channels=(8, 8)
        )
        return family(name, unet=given, controlnet=randomised(adapter, seed=1))()

    return build


CASES = [
    Case(
        "StableDiffusionLDM3DPipeline",
        of("StableDiffusionLDM3DPipeline", vae=lambda: vae(in_channels=6, out_channels=6), image_encoder=None),
        colour_and_depth,
        field="rgb",
    ),
    Case("StableDiffusionSAGPipeline", of("StableDiffusionSAGPipeline", scheduler=ddim), text),
    Case("StableDiffusionPanoramaPipeline", of("StableDiffusionPanoramaPipeline", scheduler=ddim), panorama),
    Case("StableDiffusionPipelineSafe", with_text("StableDiffusionPipelineSafe"), said, only_texts=True),
    Case("SemanticStableDiffusionPipeline", with_text("SemanticStableDiffusionPipeline"), said, only_texts=True),
    Case(
        "StableDiffusionAttendAndExcitePipeline",
        with_text("StableDiffusionAttendAndExcitePipeline"),
        attended,
        only_texts=True,
    ),
    Case(
        "StableDiffusionDiffEditPipeline",
        of("StableDiffusionDiffEditPipeline", inverse_scheduler=lambda: diffusers.DDIMInverseScheduler(**SD_BETAS)),
        differently,
    ),
    Case(
        "StableDiffusionInpaintPipelineLegacy", of("StableDiffusionInpaintPipelineLegacy"), legacy_inpainted, ("one",)
    ),
    Case(
        "CycleDiffusionPipeline",
        with_text("CycleDiffusionPipeline", scheduler=ddim),
        cycled,
        WITH_IMAGES,
        only_texts=True,
    ),
    Case(
        "StableDiffusionParadigmsPipeline",
        of("StableDiffusionParadigmsPipeline", scheduler=diffusers.DDIMParallelScheduler),
        text,
    ),
    Case(
        "StableDiffusionModelEditingPipeline", with_text("StableDiffusionModelEditingPipeline"), said, only_texts=True
    ),
    Case("AltDiffusionPipeline", of("AltDiffusionPipeline"), text),
    Case("AltDiffusionImg2ImgPipeline", of("AltDiffusionImg2ImgPipeline"), from_image, WITH_IMAGES),
    Case(
        "StableDiffusionGLIGENPipeline",
        with_text("StableDiffusionGLIGENPipeline", unet=lambda: unet(attention_head_dim=4, attention_type="gated")),
        grounded,
        only_texts=True,
    ),
    Case(
        "StableDiffusionControlNetXSPipeline",
        with_adapter(of, "StableDiffusionControlNetXSPipeline", lambda: unet(attention_head_dim=4, layers_per_block=2)),
        controlled,
        WITH_IMAGES,
    ),
    Case(
        "StableDiffusionXLControlNetXSPipeline",
        with_adapter(of_sdxl, "StableDiffusionXLControlNetXSPipeline", lambda: sdxl_unet(layers_per_block=2)),
        xl_controlled,
        WITH_IMAGES,
    ),
]
