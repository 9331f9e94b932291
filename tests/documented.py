"""Tiny pipelines in place of those that the documents load from the hub, of the same classes, which take strings."""

from typing import Any

from building_blocks import byte_tokenizer, clip
from tiny import flux, sd_controlnet, sd_with_text, sdxl
from zoo.encoders import clip_with_projection, t5

TEXT = {"text_encoder": lambda: clip(77), "tokenizer": lambda: byte_tokenizer(77)}
SECOND = {"text_encoder_2": clip_with_projection, "tokenizer_2": lambda: byte_tokenizer(77)}
T5 = {"text_encoder_2": t5, "tokenizer_2": lambda: byte_tokenizer(77)}


def pipeline_for(kind: type) -> Any:
    """Return a tiny pipeline of this class; Stable Diffusion for a class that the documents do not name."""
    name = kind.__name__
    if name == "StableDiffusionXLPipeline":
        return _with(sdxl().pipe, SECOND)
    if name == "FluxPipeline":
        pipe = _with(flux().pipe, TEXT | T5)
        pipe.default_sample_size = 2
        return pipe
    if name == "StableDiffusionControlNetPipeline":
        return _with(sd_controlnet().pipe, TEXT)
    return sd_with_text().pipe


def _with(pipe: Any, parts: dict[str, Any]) -> Any:
    made = type(pipe)(**pipe.components | {name: build() for name, build in parts.items()})
    made.set_progress_bar_config(disable=True)
    return made
