"""The pipeline classes of the installed diffusers: which make images of prompts, and why some are not examined."""

import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from typing import Any

import diffusers.pipelines

# arguments of pipelines whose product is not an image
_NOT_IMAGES = ("video", "frame", "audio", "waveform", "design")

# Classes that take a prompt and give an image, or look like it, and are not examined: a pattern and the reason. The
# first that matches counts.
NOT_EXAMINED = {
    r"Onnx.*|StableDiffusionOnnx.*": "needs ONNX Runtime",
    r"LLaDA2|DiffusionGemma": "writes text",
    r".*Prior.*": "a prior: gives embeddings, not images",
    r"KandinskyV22(Controlnet|Controlnet?Img2Img|Img2Img|Inpaint|)": "takes a prior's embeddings, no prompts",
    r"(StableDiffusion|UnCLIP|VersatileDiffusion)ImageVariation": "takes an image, no prompts",
    r"PaintByExample": "takes an example image, no prompts",
    r"Kandinsky.*Combined|StableCascadeCombined|WuerstchenCombined|VisualCloze.*": "several pipelines in one",
    r"Kandinsky(Img2Img|Inpaint|)|StableCascadeDecoder|WuerstchenDecoder": "the second half of two: takes a prior's "
    "embeddings",
    r"UnCLIP|StableUnCLIP": "three models in a row: a prior, a decoder and an upscaler or image encoder",
    r"StableUnCLIPImg2Img|.*GLIGENTextImage|VersatileDiffusion.*": "needs a CLIP image encoder and its processor",
    r"BlipDiffusion.*": "needs a BLIP-2 query transformer",
    r"UniDiffuser": "generates text and images at once",
    r"VQDiffusion": "diffuses classes of pixels: its denoiser gives no noise",
    r"LDMTextToImage": "names its parts otherwise (bert, vqvae), from before prompt_embeds",
    r"LEdits.*|.*Pix2PixZero": "edits an image that it has inverted before",
    r"ChromaInpaint": "fails by itself: reads guidance_embeds, which Chroma's transformer does not have",
    r"KolorsImg2Img": "drops pooled_prompt_embeds, and its tokenizer needs SentencePiece",
    r".*LatentUpscale": "makes latents larger, on a scheduler of Euler alone",
    r"DreamLite.*|JoyImageEdit.*|LongCatImageEdit|Kandinsky5I2I|QwenImageLayered|QwenImage21|BriaFibo2": "not built "
    "yet: reads its input images with a vision-language model",
    r"BriaFibo|BriaFiboEdit|Ideogram4": "not built yet: takes texts alone, read by a language model of several layers",
    r"GlmImage": "not built yet: a language model writes image tokens first",
    r"HunyuanImageRefiner": "not built yet: refines another pipeline's image",
    r"ZImageOmni": "not built yet: needs a SigLIP image encoder",
}


@functools.cache
def pipeline_classes() -> dict[str, type]:
    """Return every pipeline class that can be imported, by name, including those that diffusers hides."""
    for module in pkgutil.walk_packages(diffusers.pipelines.__path__, "diffusers.pipelines."):
        try:
            importlib.import_module(module.name)
        except Exception:  # needs a package that is not installed
            continue

    def below(kind: type) -> Iterator[type]:
        for sub in kind.__subclasses__():
            yield sub
            yield from below(sub)

    found = set(below(diffusers.DiffusionPipeline))
    return {kind.__name__: kind for kind in found if is_of_diffusers(kind)}


def is_of_diffusers(kind: type) -> bool:
    """Return whether a class is the one that diffusers defines, and not a subclass with its name, as of `apply`."""
    module = sys.modules.get(kind.__module__)
    return kind.__module__.startswith("diffusers.") and getattr(module, kind.__name__, None) is kind


def pipeline_class(name: str) -> Any:
    return pipeline_classes()[name]


def image_classes() -> list[str]:
    """Return the names of the classes that take a prompt, and no argument for video or sound."""
    names = []
    for name, kind in pipeline_classes().items():
        parameters = list(inspect.signature(kind.__call__).parameters) if "__call__" in dir(kind) else []
        if any("prompt" in p for p in parameters) and not any(word in p for word in _NOT_IMAGES for p in parameters):
            names.append(name)
    return sorted(names)


def why_not(name: str) -> str | None:
    """Return why a class is not examined; None if no reason is stated."""
    short = name.removesuffix("Pipeline")
    return next((reason for pattern, reason in NOT_EXAMINED.items() if re.fullmatch(pattern, short)), None)
