"""The encoder with which the Dispatcher compares prompts: the one that groups them, on the CPU."""

from typing import Any

from ...pipelines.loading import load_pipeline
from ...planning.request import encoder_of
from ...planning.threshold import RELATED
from ...service.launch import WorkerSettings
from ...service.worker.memory import remembering
from ...settings import Settings
from .routes import Encode

FIXED = tuple(first for first, _ in RELATED)  # one prompt per subject
# of `WorkerSettings.loading`: the others are about the denoiser, or the device of the Painters
LOADING = ("config", "revision", "variant")


def encoder_for(settings: WorkerSettings) -> Encode | None:
    """Return the encoder of a service; None if its prompts do not share.

    Of the model, only tokenizers and text encoders are loaded, and nothing of it with another encoder.

    Args:
        settings: of the workers.

    Raises:
        CotrunkError: the model or the encoder does not load.
    """
    sharing = Settings.from_json(settings.settings).sharing
    if sharing is None or sharing.max_group == 1 or sharing.share <= 0:
        return None
    pipe: Any = None
    if sharing.encoder == "pipeline":
        loading: dict[str, Any] = {name: settings.loading.get(name) for name in LOADING}
        pipe = load_pipeline(settings.model, "cpu", denoiser=False, **loading)
    return remembering(encoder_of(pipe, sharing.encoder)).encode


def name_of(settings: WorkerSettings) -> str:
    """Return what the vectors of a service depend on."""
    sharing = Settings.from_json(settings.settings).sharing
    encoder = "" if sharing is None else sharing.encoder
    return f"{settings.model} {encoder}" if encoder == "pipeline" else encoder
