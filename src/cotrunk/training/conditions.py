"""What a pipeline conditions its denoiser on, and the denoiser called as the pipeline calls it.

Nothing here knows a family of models: the pipeline is called with the captions, and stopped at the first call of its
denoiser. What it was about to hand over is what the denoiser is to be trained with.
"""

from typing import Any

import torch

from ..engine.denoiser_hook import parameters_of
from ..engine.patch import intercepted
from ..errors import CotrunkError
from ..pipelines.compatibility import denoisers_of


class _Caught(Exception):  # noqa: N818 (no error: the way out of a pipeline)
    pass


class Conditions:
    """Captions of one pipeline as arguments of its denoiser.

    Args:
        pipe: a diffusers pipeline with a `unet` or `transformer`.
        arguments: of every call: height, width, `max_sequence_length`, ...
    """

    def __init__(self, pipe: Any, **arguments: Any) -> None:
        self.pipe = pipe
        names = denoisers_of(pipe)
        if len(names) != 1:
            raise CotrunkError(f"{type(pipe).__name__} has {len(names)} denoisers: training takes one.")
        self.name = names[0]
        self.arguments = {"guidance_scale": 1.0, "num_inference_steps": 2, "output_type": "latent"} | arguments
        self.timestep_scale = 1.0  # Flux hands its denoiser thousandths
        self.sample = ""  # the name of the argument that takes the latents
        self.model = self.denoiser  # what `call` calls: the denoiser, or what a trainer wrapped it in
        self.packed = False  # latents as (rows, tokens, channels): Flux

    @property
    def denoiser(self) -> torch.nn.Module:
        return getattr(self.pipe, self.name)

    def of(self, captions: list[str] | None = None, **prompts: Any) -> dict[str, Any]:
        """The denoiser's arguments for these captions, beside latents and timestep: one row a caption in each tensor,
        but for those that all rows have in common.

        prompts: instead of captions, what the pipeline takes for them (`prompt_embeds=`, ...).
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
                raise CotrunkError(f"{type(self.pipe).__name__} made pictures without its denoiser.")
        self.sample = parameters[0]
        sample, timestep = caught.pop(self.sample), caught.pop("timestep")
        self.packed = sample.ndim == 3 and hasattr(self.pipe, "_pack_latents")
        first = float(torch.as_tensor(timestep).flatten()[0])
        now = float(self.pipe.scheduler.timesteps[0])
        scales = {scale: abs(first - scale * now) for scale in (1.0, 1e-3)}
        self.timestep_scale = min(scales, key=scales.__getitem__)
        if scales[self.timestep_scale] > 1e-2 * self.timestep_scale * now:
            kind = type(self.denoiser).__name__
            raise CotrunkError(f"The {kind} takes {first:g} for the timestep {now:g}: cotrunk cannot train it.")
        return {name: value for name, value in caught.items() if value is not None and name != "return_dict"}

    def call(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: dict[str, Any]) -> torch.Tensor:
        """The denoiser's output (rows, channels, height, width) for latents of that shape.

        timesteps: (rows,), the scheduler's.
        """
        rows, channels, height, width = noisy.shape
        sample = self.pipe._pack_latents(noisy, rows, channels, height, width) if self.packed else noisy
        arguments = {self.sample: sample, "timestep": timesteps * self.timestep_scale}
        output = self.model(**arguments, **conditions, return_dict=False)[0]
        if self.packed:
            factor = self.pipe.vae_scale_factor
            return self.pipe._unpack_latents(output, height * factor, width * factor, factor)
        return output[:, :channels]  # a learned variance comes after the prediction


def moved(conditions: dict[str, Any], to: Any) -> dict[str, Any]:
    """Conditions on another device or in another type; whole numbers stay whole."""

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return moved(value, to)
        if not isinstance(value, torch.Tensor):
            return value
        if isinstance(to, torch.dtype):
            return value.to(to) if value.is_floating_point() else value
        return value.to(to)

    return {name: move(value) for name, value in conditions.items()}
