"""Assemble the pipelines of the cases from their parts."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from building_blocks import flow_scheduler, quiet, vae

from .classes import pipeline_class


def made(parts: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a pipeline; functions and classes among them are called."""
    return {name: part() if inspect.isfunction(part) or inspect.isclass(part) else part for name, part in parts.items()}


def with_parts_of(tiny: Callable[[], Any], name: str, absent: Sequence[str] = (), **more: Any) -> Callable[[], Any]:
    """Return a function that builds the pipeline of this name from the parts of a tiny one, except the `absent`."""

    def build() -> Any:
        parts = dict(tiny().pipe.components) | more
        for part in ("image_encoder", "feature_extractor", *absent):
            parts.pop(part, None)
        return quiet(pipeline_class(name)(**made(parts)))

    return build


def one_encoder(name: str, transformer: Callable[[], Any], **more: Any) -> Callable[[], Any]:
    """Return a function that builds a pipeline from a transformer, a VAE and a scheduler, without its text encoder."""

    def build() -> Any:
        parts = {"scheduler": flow_scheduler, "vae": vae, "transformer": transformer} | more
        absent = {"text_encoder": None, "tokenizer": None}
        return quiet(pipeline_class(name)(**absent | made(parts)))

    return build
