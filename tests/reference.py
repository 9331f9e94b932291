"""Algorithm 1 of SAGE as plain loops, which the tests compare cotrunk with.

Every image runs alone, as one row and its unconditional row, with its own copy of the scheduler.
Members of a group start from the same noise, and up to the branch point each is conditioned on the mean of
the group. Nothing else is shared: what cotrunk computes once for a group is computed here for each member.
"""

import copy
import inspect
from typing import Any

import torch
from diffusers import SchedulerMixin
from tiny import TinyPipeline
from torch import Tensor

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


@torch.no_grad()
def sample(
    tiny: TinyPipeline,
    inputs: dict[str, Any],
    lineages: list[Lineage],
    seeds: list[int],
    steps: int,
    guidance: float = 5.0,
    eta: float = 0.0,
) -> Tensor:
    """Final latents (n, channels, height, width), for Stable Diffusion 1.5 (`sd`) and 3 (`sd3`).

    `inputs` as from `tiny.inputs(n)`; image i draws all its noise from `seeds[i]`, equal inside a group.
    """
    images = [
        _sample_one(tiny, inputs, image, lineage, seed, steps, guidance, eta)
        for image, (lineage, seed) in enumerate(zip(lineages, seeds, strict=True))
    ]
    return torch.cat(images)


def _sample_one(
    tiny: TinyPipeline,
    inputs: dict[str, Any],
    image: int,
    lineage: Lineage,
    seed: int,
    steps: int,
    guidance: float,
    eta: float,
) -> Tensor:
    pipe = tiny.pipe
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer

    # noise: z_T, then whatever the scheduler adds, from one generator
    generator = torch.Generator().manual_seed(seed)
    scheduler = copy.deepcopy(pipe.scheduler)
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler_seed = [seed]
    step_kwargs = _accepted(scheduler, generator=generator, eta=eta)
    scheduler.set_timesteps(steps)

    height, width = inputs["height"] // pipe.vae_scale_factor, inputs["width"] // pipe.vae_scale_factor
    latents = torch.randn((1, denoiser.config.in_channels, height, width), generator=generator)
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)

    for i, t in enumerate(scheduler.timesteps):
        members = next((members for until, members in lineage if i < until), [image])
        model_input = latents
        if hasattr(scheduler, "scale_model_input"):
            model_input = scheduler.scale_model_input(latents, t)

        # both rows: [unconditional, conditional]
        embeds = _conditions(inputs, "prompt_embeds", image, members)
        if hasattr(pipe, "unet"):
            output = denoiser(model_input.repeat(2, 1, 1, 1), t, encoder_hidden_states=embeds).sample
        else:
            output = denoiser(
                hidden_states=model_input.repeat(2, 1, 1, 1),
                timestep=t.expand(2),
                encoder_hidden_states=embeds,
                pooled_projections=_conditions(inputs, "pooled_prompt_embeds", image, members),
            ).sample

        unconditional, conditional = output.chunk(2)
        guided = unconditional + guidance * (conditional - unconditional)
        latents = scheduler.step(guided, t, latents, **step_kwargs).prev_sample
    return latents


def _conditions(inputs: dict[str, Any], name: str, image: int, members: list[int]) -> Tensor:
    """Return the image's own negative row, and the mean of the members' positive rows."""
    unconditional = inputs[f"negative_{name}"][image]
    conditional = sum(inputs[name][member] for member in members) / len(members)
    return torch.stack([unconditional, conditional])


def _accepted(scheduler: SchedulerMixin, **kwargs: Any) -> dict[str, Any]:
    parameters = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in kwargs.items() if name in parameters}
