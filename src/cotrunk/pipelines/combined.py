"""The pipelines inside a combined pipeline (Kandinsky)."""

from typing import Any

from diffusers import DiffusionPipeline


def parts_of(pipe: Any) -> list[Any]:
    """Return the pipelines that a combined pipeline holds; an empty list for any other pipeline."""
    return [value for value in vars(pipe).values() if isinstance(value, DiffusionPipeline)]
