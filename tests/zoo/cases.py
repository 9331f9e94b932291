"""All cases, and the families of the document."""

import re

from . import dit, edits, flux, omnigen, qwen, recent, relatives, sd3, sdxl, stable_diffusion
from .case import Case

CASES: dict[str, Case] = {
    case.pipeline: case
    for module in (stable_diffusion, relatives, sdxl, sd3, flux, qwen, edits, dit, recent, omnigen)
    for case in module.CASES
}

# A family and the names of its classes. The first that matches counts.
FAMILIES = {
    "Stable Diffusion 1 and 2": "StableDiffusion(?!XL|3).*|LatentConsistency.*|(Alt|Cycle|SemanticStable)Diffusion.*",
    "Stable Diffusion XL": "StableDiffusionXL.*",
    "Stable Diffusion 3": "StableDiffusion3.*",
    "Flux 1": "Flux(?!2).*",
    "Flux 2": "Flux2.*",
    "Qwen-Image": "QwenImage.*",
    "Z-Image": "ZImage.*",
    "Chroma": "Chroma.*",
    "PixArt": "PixArt.*",
    "Sana": "Sana.*",
    "HunyuanDiT, HunyuanImage": "Hunyuan.*",
    "CogView 3 and 4": "CogView.*",
    "Lumina": "Lumina.*",
    "Kandinsky 3": "Kandinsky3.*",
    "Kolors": "Kolors.*",
    "PRX": "PRX.*",
    "DeepFloyd IF": "IF.*",
    "aMUSEd": "Amused.*",
    "others": ".*",
}


def family_of(pipeline: str) -> str:
    return next(family for family, pattern in FAMILIES.items() if re.fullmatch(pattern, pipeline))
