"""Pipelines that a combined pipeline holds."""

from typing import Any

from diffusers import DiffusionPipeline


def parts_of(pipe: Any) -> list[Any]:
    """The pipelines that a combined pipeline holds."""
    return [value for value in vars(pipe).values() if isinstance(value, DiffusionPipeline)]
