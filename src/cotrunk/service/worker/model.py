"""The loaded model: the pipeline, and what the API says about it."""

import inspect
from typing import Any

from ...pipelines.compatibility import check_makes_images, denoisers_of
from ...pipelines.image_size import image_size
from ...pipelines.loading import load_pipeline
from ...pipelines.own_defaults import own_guidance, own_steps
from ...runs.runner import facts_of
from ...settings import Settings
from ..launch import WorkerSettings
from ..shapes import ModelFacts


def load(settings: WorkerSettings) -> Any:
    """Load the pipeline of a service.

    Raises:
        CotrunkError: it does not exist, or does not make images.
    """
    pipe = load_pipeline(settings.model, **settings.loading)
    check_makes_images(pipe)
    return pipe


def model_facts(pipe: Any, model: str, settings: Settings) -> ModelFacts:
    """Return what the API says about a loaded model.

    Args:
        pipe: the pipeline.
        model: its name.
        settings: of the service.
    """
    height, width = image_size(pipe, None, None)
    takes, facts = inspect.signature(pipe.__call__).parameters, facts_of(pipe)
    patch = getattr(getattr(pipe, denoisers_of(pipe)[0]).config, "patch_size", None)
    return {
        "model": model,
        "pipeline": type(pipe).__name__,
        "width": width,
        "height": height,
        "multiple": int(pipe.vae_scale_factor) * (patch if isinstance(patch, int) else 1),
        "steps": own_steps(pipe) if settings.steps is None else settings.steps,
        "guidance_scale": own_guidance(pipe),
        "negative_prompt": "negative_prompt" in takes,
        "device": facts.device,
        "dtype": facts.dtype,
    }
