"""Pipelines that edit images with a vision-language encoder, given as embeddings here."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from .case import WITH_IMAGES, Case, Variant
from .parts import image_of, inpainting_mask
from .qwen import MASKS, PIXELS, of, text


def small(name: str) -> Callable[[], Any]:
    """Return a function that builds the pipeline of this name, for images of a few pixels instead of a million."""

    def build() -> Any:
        pipe = of(name, processor=lambda: None)()
        module = importlib.import_module(type(pipe).__module__)
        whole = module.calculate_dimensions

        def calculate_dimensions(area: float, ratio: float) -> Any:
            return (PIXELS, PIXELS, *[None] * (len(whole(area, ratio)) - 2))

        module.calculate_dimensions = calculate_dimensions
        return pipe

    return build


def edited(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return text(prompts, variant) | {"image": image_of(prompts, variant, PIXELS)}


def edited_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    given = {"mask_image": inpainting_mask(prompts, variant, PIXELS), "strength": 0.8, "num_inference_steps": 5}
    return edited(prompts, variant) | given


CASES = [
    Case("QwenImageEditPipeline", small("QwenImageEditPipeline"), edited, WITH_IMAGES, masks=MASKS),
    Case(
        "QwenImageEditInpaintPipeline",
        small("QwenImageEditInpaintPipeline"),
        edited_inpainted,
        WITH_IMAGES,
        masks=MASKS,
    ),
    Case(
        "QwenImageEditPlusPipeline", small("QwenImageEditPlusPipeline"), edited, ("one",), masks=MASKS, together="none"
    ),
]
