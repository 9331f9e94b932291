"""The schedulers of diffusers that the tests of the contract use, in the settings that make them differ."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import diffusers
import pytest
from diffusers import SchedulerMixin

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # of Stable Diffusion


def _ddim() -> SchedulerMixin:
    return diffusers.DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def _pndm(skip_prk_steps: bool) -> SchedulerMixin:
    return diffusers.PNDMScheduler(**_BETAS, skip_prk_steps=skip_prk_steps, steps_offset=1)


def _dpm(**config: Any) -> SchedulerMixin:
    return diffusers.DPMSolverMultistepScheduler(**_BETAS, **config)


def _plain(kind: type[SchedulerMixin], **config: Any) -> Callable[[], SchedulerMixin]:
    return partial(kind, **_BETAS, **config)


# for models that predict the noise: Stable Diffusion and its like
DIFFUSION: dict[str, Callable[[], SchedulerMixin]] = {
    "ddim": _ddim,
    "ddim-eta": _ddim,
    "ddpm": _plain(diffusers.DDPMScheduler, clip_sample=False),
    "dpm++2m": _dpm,
    "dpm++2m-karras": partial(_dpm, use_karras_sigmas=True),
    "dpm++2m-sde": partial(_dpm, algorithm_type="sde-dpmsolver++"),
    "dpm++3m": partial(_dpm, solver_order=3),
    "dpm-single": _plain(diffusers.DPMSolverSinglestepScheduler),
    "dpm-sde": _plain(diffusers.DPMSolverSDEScheduler),
    "deis": _plain(diffusers.DEISMultistepScheduler),
    "unipc": _plain(diffusers.UniPCMultistepScheduler),
    "sasolver": _plain(diffusers.SASolverScheduler),
    "pndm": partial(_pndm, skip_prk_steps=True),
    "pndm-prk": partial(_pndm, skip_prk_steps=False),
    "lms": _plain(diffusers.LMSDiscreteScheduler),
    "euler": _plain(diffusers.EulerDiscreteScheduler),
    "euler-ancestral": _plain(diffusers.EulerAncestralDiscreteScheduler),
    "heun": _plain(diffusers.HeunDiscreteScheduler),
    "kdpm2": _plain(diffusers.KDPM2DiscreteScheduler),
    "kdpm2-ancestral": _plain(diffusers.KDPM2AncestralDiscreteScheduler),
    "lcm": _plain(diffusers.LCMScheduler),
    "tcd": _plain(diffusers.TCDScheduler),
}

# for models that predict a velocity: Stable Diffusion 3, Flux
FLOW: dict[str, Callable[[], SchedulerMixin]] = {
    "flow-euler": partial(diffusers.FlowMatchEulerDiscreteScheduler, shift=3.0),
    "flow-euler-stochastic": partial(diffusers.FlowMatchEulerDiscreteScheduler, shift=3.0, stochastic_sampling=True),
    "flow-heun": partial(diffusers.FlowMatchHeunDiscreteScheduler, shift=3.0),
}

SCHEDULERS = DIFFUSION | FLOW

# one of each kind: multistep, several evaluations per step, ancestral and Brownian noise, flows
REPRESENTATIVE = ("dpm++2m", "pndm", "heun", "euler-ancestral", "dpm-sde", "flow-heun", "flow-euler-stochastic")


def others_slow(names: Iterable[str]) -> list[Any]:
    """Return the names as parameters of a test. Those that are not in REPRESENTATIVE are marked slow."""
    return [name if name in REPRESENTATIVE else pytest.param(name, marks=pytest.mark.slow) for name in names]


# arguments of the pipeline's call that a setting needs
CALL_KWARGS: dict[str, dict[str, Any]] = {"ddim-eta": {"eta": 1.0}, "tcd": {"eta": 0.3}}

# draws noise at its steps, so that equal rows stay equal only under equal generators
STOCHASTIC = frozenset(
    {
        "ddim-eta",
        "ddpm",
        "dpm++2m-sde",
        "dpm-sde",
        "sasolver",
        "euler-ancestral",
        "kdpm2-ancestral",
        "lcm",
        "tcd",
    }
    | {"flow-euler-stochastic"}
)

# Two schedulers do not take their noise from the generators that the pipeline is called with.
BROWNIAN = "dpm-sde"  # a Brownian tree, seeded for each row by the attribute `noise_sampler_seed`
UNSEEDED = "flow-euler-stochastic"  # it uses the global generator, because pipelines pass none to its `step`
