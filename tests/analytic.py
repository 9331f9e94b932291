"""A diffusion model that is known exactly: a mixture of Gaussians, its ideal denoiser, and a sampling loop."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from cotrunk import Skipping
from cotrunk.engine.policy import Policy, SampleListener
from cotrunk.engine.rewind import SchedulerSteps
from cotrunk.pipelines.noise_schedule import NoiseSchedule, read_schedule
from cotrunk.skipping.rule import Rule

SIZE, MODES = 32, 8
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

SCHEDULERS: dict[tuple[str, str], Callable[[], Any]] = {
    ("ddim", "epsilon"): lambda: diffusers.DDIMScheduler(**BETAS, clip_sample=False),
    ("ddim", "sample"): lambda: diffusers.DDIMScheduler(**BETAS, clip_sample=False, prediction_type="sample"),
    ("ddim", "v_prediction"): lambda: diffusers.DDIMScheduler(
        **BETAS, **ZERO_SNR, clip_sample=False, prediction_type="v_prediction"
    ),
    ("euler", "epsilon"): lambda: diffusers.EulerDiscreteScheduler(**BETAS),
    ("euler", "v_prediction"): lambda: diffusers.EulerDiscreteScheduler(**BETAS, prediction_type="v_prediction"),
    ("dpm++2m", "epsilon"): lambda: diffusers.DPMSolverMultistepScheduler(**BETAS),
    ("dpm++2m", "v_prediction"): lambda: diffusers.DPMSolverMultistepScheduler(
        **BETAS, **ZERO_SNR, prediction_type="v_prediction"
    ),
    ("euler", "flow"): lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    ("dpm++2m", "flow"): lambda: diffusers.DPMSolverMultistepScheduler(**FLOW),
    ("unipc", "flow"): lambda: diffusers.UniPCMultistepScheduler(**FLOW),
}

Model = Callable[[NoiseSchedule, int, Tensor], Tensor]  # schedule, step, sample not divided by alpha -> output


@functools.cache
def mixture() -> tuple[Tensor, Tensor]:
    """Return the means and variances of the mixture, both (MODES, SIZE)."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(MODES, SIZE, generator=generator, dtype=torch.float64)
    return means, 0.02 + 0.15 * torch.rand(MODES, SIZE, generator=generator, dtype=torch.float64)


def ideal(schedule: NoiseSchedule, step: int, sample: Tensor, modes: int = MODES) -> Tensor:
    """Return the output of a perfect model of the mixture of the first modes."""
    (means, variances), (alpha, sigma) = (part[:modes] for part in mixture()), schedule.levels[step]
    spread = alpha**2 * variances + sigma**2
    distance = sample[:, None] - alpha * means
    weight = (-0.5 * (distance**2 / spread + spread.log()).sum(dim=-1)).softmax(dim=-1)
    x0 = (weight[..., None] * (means + alpha * variances / spread * distance)).sum(dim=1)
    return schedule.output_for(step, sample, x0)


def guided(schedule: NoiseSchedule, step: int, sample: Tensor) -> Tensor:
    """Return the output of the ideal model with guidance scale 5, where the prompt stands for the first two modes."""
    whole = ideal(schedule, step, sample)
    return whole + 5 * (ideal(schedule, step, sample, modes=2) - whole)


@dataclass
class Sampled:
    samples: Tensor  # (n, SIZE)
    computed: list[tuple[bool, ...]]  # by step, for each image

    @property
    def evaluations(self) -> float:
        """Mean over the images."""
        return sum(map(sum, self.computed)) / len(self.samples)


def sample(
    scheduler: Any,
    steps: int,
    skipping: Skipping | None = None,
    *,
    seeds: range = range(8),
    model: Model = ideal,
    strength: float = 1.0,
    switch: int | None = None,
) -> Sampled:
    """Sample image i from seed i, with the scheduler's own steps. Outputs that are not computed are NaN.

    strength: fraction of the steps that are taken, from a noised mode of the mixture; 1 starts from pure noise.
    switch: the step at which the output of the model changes abruptly for all images but the first.
    """
    scheduler.set_timesteps(steps)
    noise = torch.stack(
        [torch.randn(SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    )
    begin = steps - int(steps * strength)
    if begin:
        if hasattr(scheduler, "set_begin_index"):  # not DDIM, which needs only the timestep
            scheduler.set_begin_index(begin)
        images = mixture()[0][[2 + seed % (MODES - 2) for seed in seeds]]
        at = scheduler.timesteps[begin : begin + 1].expand(len(noise))
        is_flow = hasattr(scheduler, "scale_noise")
        x = scheduler.scale_noise(images, at, noise) if is_flow else scheduler.add_noise(images, noise, at)
    else:
        x = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    timesteps = [float(t) for t in scheduler.timesteps[begin:]]
    schedule = read_schedule(scheduler, timesteps)
    changing = lambda step: range(1, len(seeds)) if step == switch else ()  # noqa: E731
    policy: Policy | None = None if skipping is None else Rule(skipping).policy(len(seeds), len(timesteps), changing)
    computed: list[tuple[bool, ...]] = []
    steps_taken = SchedulerSteps(scheduler, scheduler.step)
    for step, timestep in enumerate(scheduler.timesteps[begin:]):
        alpha = schedule.levels[step][0]
        output = model(schedule, step, x * alpha if schedule.divided else x)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, timestep)
        if policy is not None:
            computed.append(tuple(policy.computes(step)))
            output = output.where(torch.tensor(computed[-1])[:, None], torch.nan)
            steps_taken.enter(step, x, {"timestep": timestep})
            output, x = policy.observe(step, computed[-1], steps_taken, output, x)
        else:
            computed.append((True,) * len(seeds))
        x = scheduler.step(output, timestep, x).prev_sample.double()
        if policy is not None:
            steps_taken.leave(x)
        if isinstance(policy, SampleListener):
            policy.after_step(step, x)
    return Sampled(x, computed)


def decibels(samples: Tensor, reference: Tensor) -> float:
    """Return the mean signal-to-noise ratio of samples against a reference, in decibels."""
    error = (samples - reference).square().mean(dim=1) / reference.square().mean(dim=1)
    return float((-10 * torch.log10(error.clamp(min=1e-15))).mean())
