"""Algorithm 1 of SAGE as plain loops, which the tests compare cotrunk with, and the trunks that cotrunk adds to it.

Every image runs as one row and its unconditional row, with its own copy of the scheduler. Up to the branch point each
member of a group is conditioned on the mean of the group. With common noise, members start from the same noise, and
nothing else is shared: what cotrunk computes once for a group is computed here for each member. With own noise, members
get the output that predicts the x0 of the member with the smallest seed.
"""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin
from tiny import TinyPipeline
from torch import Tensor

from cotrunk.pipelines.noise_schedule import read_schedule

# The conditions of one image over the steps, as pairs (until, members). While the index into `scheduler.timesteps` is
# below `until`, the condition is the mean of the members. After the last pair, it is the image's own prompt.
Lineage = list[tuple[int, list[int]]]


def alone(n: int) -> list[Lineage]:
    """Return the lineages of n independent images."""
    return [[] for _ in range(n)]


def branched(groups: list[list[int]], branch: int) -> list[Lineage]:
    """Return the lineages of the paper's two-level tree: groups that partition the images, with one branch point."""
    trunks = {image: [(branch, group)] for group in groups for image in group}
    return [trunks[image] for image in range(len(trunks))]


def count_calls(tiny: TinyPipeline, steps: int) -> int:
    """Return the number of denoiser calls of a run, which is more than `steps` for some schedulers."""
    scheduler = copy.deepcopy(tiny.pipe.scheduler)
    scheduler.set_timesteps(steps)
    return len(scheduler.timesteps)


@dataclass
class _Image:
    """One image on its way: its own scheduler, the arguments of its steps, and its latents (1, ...)."""

    scheduler: SchedulerMixin
    arguments: dict[str, Any]
    latents: Tensor


@torch.no_grad()
def sample(
    tiny: TinyPipeline,
    inputs: dict[str, Any],
    lineages: list[Lineage],
    seeds: list[int],
    steps: int,
    guidance: float = 5.0,
    eta: float = 0.0,
    own_noise: bool = False,
    trunk_guidance: float = 1.0,
) -> Tensor:
    """Final latents (n, channels, height, width), for Stable Diffusion 1.5 (`sd`) and 3 (`sd3`).

    `inputs` as from `tiny.inputs(n)`; image i draws all its noise from `seeds[i]`, equal inside a group unless
    `own_noise`. In trunks, the part `trunk_guidance` of the guidance is used.
    """
    images = [_begin(tiny, inputs, seed, steps, eta) for seed in seeds]
    timesteps = images[0].scheduler.timesteps
    schedule = read_schedule(images[0].scheduler, timesteps.tolist()) if own_noise else None
    for i, t in enumerate(timesteps):
        members = [
            next((members for until, members in lineage if i < until), [image])
            for image, lineage in enumerate(lineages)
        ]
        outputs = []
        for image, group in enumerate(members):
            unconditional, conditional = _both_outputs(tiny, inputs, image, group, images[image], t)
            if len(group) > 1:
                unconditional = conditional + trunk_guidance * (unconditional - conditional)
            outputs.append(unconditional + guidance * (conditional - unconditional))
        if schedule is not None:
            scaled = [schedule.scaled(i, image.latents) for image in images]
            x0 = [schedule.x0_of(i, x, output) for x, output in zip(scaled, outputs, strict=True)]
            outputs = [
                outputs[image]
                if group == [image]
                else schedule.output_for(i, scaled[image], x0[min(group, key=seeds.__getitem__)])
                for image, group in enumerate(members)
            ]
        for image, output in zip(images, outputs, strict=True):
            image.latents = image.scheduler.step(output, t, image.latents, **image.arguments).prev_sample
    return torch.cat([image.latents for image in images])


def _begin(tiny: TinyPipeline, inputs: dict[str, Any], seed: int, steps: int, eta: float) -> _Image:
    pipe = tiny.pipe
    # noise: z_T, then whatever the scheduler adds, from one generator
    generator = torch.Generator().manual_seed(seed)
    scheduler = copy.deepcopy(pipe.scheduler)
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler_seed = [seed]
    scheduler.set_timesteps(steps)
    height, width = inputs["height"] // pipe.vae_scale_factor, inputs["width"] // pipe.vae_scale_factor
    latents = torch.randn((1, denoiser(tiny).config.in_channels, height, width), generator=generator)
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    return _Image(scheduler, _accepted(scheduler, generator=generator, eta=eta), latents)


def _both_outputs(
    tiny: TinyPipeline, inputs: dict[str, Any], index: int, members: list[int], image: _Image, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the unconditional and the conditional output for an image under the mean condition of these members."""
    model_input = image.latents
    if hasattr(image.scheduler, "scale_model_input"):
        model_input = image.scheduler.scale_model_input(image.latents, t)
    embeds = _conditions(inputs, "prompt_embeds", index, members)
    if hasattr(tiny.pipe, "unet"):
        output = denoiser(tiny)(model_input.repeat(2, 1, 1, 1), t, encoder_hidden_states=embeds).sample
    else:
        output = denoiser(tiny)(
            hidden_states=model_input.repeat(2, 1, 1, 1),
            timestep=t.expand(2),
            encoder_hidden_states=embeds,
            pooled_projections=_conditions(inputs, "pooled_prompt_embeds", index, members),
        ).sample
    return output.chunk(2)


def denoiser(tiny: TinyPipeline) -> torch.nn.Module:
    return tiny.pipe.unet if hasattr(tiny.pipe, "unet") else tiny.pipe.transformer


def _conditions(inputs: dict[str, Any], name: str, image: int, members: list[int]) -> Tensor:
    """Return the image's own negative row, and the mean of the members' positive rows."""
    unconditional = inputs[f"negative_{name}"][image]
    conditional = sum(inputs[name][member] for member in members) / len(members)
    return torch.stack([unconditional, conditional])


def _accepted(scheduler: SchedulerMixin, **kwargs: Any) -> dict[str, Any]:
    parameters = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in kwargs.items() if name in parameters}
