"""The conditions that a pipeline passes to its denoiser, and calls of the denoiser in the same form.

Nothing here is specific to a family of models. The pipeline is called with the captions and stopped at the first call
of its denoiser. The arguments of that call are the conditions for training.
"""

from typing import Any

import torch

from ..engine.denoiser_hook import parameters_of
from ..engine.patch import intercepted
from ..errors import CotrunkError
from ..pipelines.arguments import needed_arguments
from ..pipelines.compatibility import denoisers_of


class _Caught(Exception):  # noqa: N818 (not an error: it stops the pipeline)
    pass


class Conditions:
    """Turns captions into the arguments of a pipeline's denoiser.

    Args:
        pipe: a diffusers pipeline with a `unet` or `transformer`.
        arguments: passed to every call of the pipeline: height, width, `max_sequence_length`, ...

    Raises:
        CotrunkError: the pipeline does not have exactly one denoiser.
    """

    def __init__(self, pipe: Any, **arguments: Any) -> None:
        self.pipe = pipe
        names = denoisers_of(pipe)
        if len(names) != 1:
            raise CotrunkError(f"{type(pipe).__name__} has {len(names)} denoisers: train a pipeline with exactly one.")
        self.name = names[0]
        plain = {"guidance_scale": 1.0, "num_inference_steps": 2, "output_type": "latent"}
        self.arguments = plain | needed_arguments(pipe) | arguments
        self.timestep_scale = 1.0  # Flux passes timesteps as thousandths
        self.sample = ""  # the name of the argument that takes the latents
        self.model = self.denoiser  # what `call` calls: the denoiser, or a trainer's wrapper of it
        self.packed = False  # whether latents are (rows, tokens, channels), as in Flux

    @property
    def denoiser(self) -> torch.nn.Module:
        return getattr(self.pipe, self.name)

    def of(self, captions: list[str] | None = None, **prompts: Any) -> dict[str, Any]:
        """Return the denoiser's arguments for these captions, without latents and timestep.

        Each tensor has one row per caption, except those that all rows share.

        Args:
            prompts: arguments of the pipeline that replace captions (`prompt_embeds=`, ...).

        Raises:
            CotrunkError: the pipeline did not call its denoiser, or its timesteps have an unknown scale.
        """
        caught: dict[str, Any] = {}
        parameters = parameters_of(self.denoiser)

        def catch(*args: Any, **kwargs: Any) -> Any:
            caught.update(dict(zip(parameters, args, strict=False)) | kwargs)
            raise _Caught

        given = prompts if captions is None else {"prompt": captions, **prompts}
        with torch.no_grad(), intercepted(self.denoiser, catch):
            try:
                self.pipe(**given, **self.arguments)
            except _Caught:
                pass
            else:
                kind = type(self.pipe).__name__
                raise CotrunkError(f"{kind} generated images without its denoiser: train another pipeline.")
        self.sample = parameters[0]
        sample, timestep = caught.pop(self.sample), caught.pop("timestep")
        self.packed = sample.ndim == 3 and hasattr(self.pipe, "_pack_latents")
        first = float(torch.as_tensor(timestep).flatten()[0])
        now = float(self.pipe.scheduler.timesteps[0])
        scales = {scale: abs(first - scale * now) for scale in (1.0, 1e-3)}
        self.timestep_scale = min(scales, key=scales.__getitem__)
        if scales[self.timestep_scale] > 1e-2 * self.timestep_scale * now:
            kind = type(self.denoiser).__name__
            raise CotrunkError(
                f"The {kind} receives {first:g} for the timestep {now:g}, an unknown scale: train another pipeline."
            )
        return {name: value for name, value in caught.items() if value is not None and name != "return_dict"}

    def call(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: dict[str, Any]) -> torch.Tensor:
        """Return the denoiser's output for latents, both (rows, channels, height, width).

        Args:
            timesteps: (rows,) in the units of the scheduler.
        """
        rows, channels, height, width = noisy.shape
        sample = self.pipe._pack_latents(noisy, rows, channels, height, width) if self.packed else noisy
        arguments = {self.sample: sample, "timestep": timesteps * self.timestep_scale}
        output = self.model(**arguments, **conditions, return_dict=False)[0]
        if self.packed:
            factor = self.pipe.vae_scale_factor
            return self.pipe._unpack_latents(output, height * factor, width * factor, factor)
        return output[:, :channels]  # channels of a learned variance follow the prediction


def moved(conditions: dict[str, Any], to: Any) -> dict[str, Any]:
    """Return conditions on another device or in another dtype; integers keep their dtype."""

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return moved(value, to)
        if not isinstance(value, torch.Tensor):
            return value
        if isinstance(to, torch.dtype):
            return value.to(to) if value.is_floating_point() else value
        return value.to(to)

    return {name: move(value) for name, value in conditions.items()}
