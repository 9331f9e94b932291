"""Previews of images while they are generated: the x0 that the current step predicts, decoded."""

import logging
import math
from typing import Any

import torch

from ...engine.call_state import StepEvent
from ...errors import first_line
from ...pipelines.noise_schedule import read_schedule

log = logging.getLogger("cotrunk.worker")


def preview_steps(partials: int, timesteps: int) -> list[int]:
    """Return after how many steps the previews of an image are made, evenly spread, never after the last step.

    Args:
        partials: how many previews are asked for.
        timesteps: of the whole call.
    """
    steps = {math.ceil(timesteps * (i + 1) / (partials + 1)) for i in range(partials)}
    return sorted(step for step in steps if 0 < step < timesteps)


class Previews:
    """Decodes previews. A pipeline whose latents it cannot decode gets none, and a line in the log.

    A preview costs one run of the decoder for one image, and no denoiser row.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe, self._works = pipe, True

    def image(self, event: StepEvent, index: int) -> Any:
        """Return the preview of one image of a call as a Pillow image; None if the pipeline has none."""
        if not self._works:
            return None
        try:
            with torch.no_grad():
                return self._decoded(event, index)
        except Exception as error:  # a preview must never harm the image itself
            self._works = False
            kind = type(self._pipe).__name__
            log.warning("No previews: latents of %s cannot be decoded (%s).", kind, first_line(error))
            return None

    def _decoded(self, event: StepEvent, index: int) -> Any:
        vae, pipe = self._pipe.vae, self._pipe
        schedule = read_schedule(pipe.scheduler, [float(event.timestep)])
        sample = event.sample[index : index + 1]
        output = event.output[index : index + 1, : sample.shape[1]]
        own = schedule.scaled(0, sample)
        x0 = schedule.x0_of(0, own, output.to(own.dtype)).to(vae.dtype)
        if x0.ndim == 3:  # packed tokens: only the pipeline itself knows the size
            raise ValueError("they are packed")
        latents = x0 / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0)
        # of the class, because the object's own method is watched during a call for the images of the whole batch
        decoded = type(vae).decode(vae, latents, return_dict=False)[0]
        return pipe.image_processor.postprocess(decoded, output_type="pil")[0]
