"""The noise schedule of a scheduler: how much signal and how much noise its samples hold at each timestep.

Every supported sample is alpha * x0 + sigma * noise, or that divided by alpha. To predict and correct outputs, it is
enough to know the prediction type of the output (noise, x0, velocity) and the pair (alpha, sigma). Both are read from
the scheduler, which is never changed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CotrunkError
from .class_tables import FLOW_SCHEDULERS

KINDS = ("epsilon", "v_prediction", "sample", "flow")
SMALLEST_ALPHA = 0.01  # added to alpha in squares, so that pure noise is at a finite time


@dataclass(frozen=True)
class NoiseSchedule:
    """The prediction type of a model's output, and the noise level at each step of one run.

    Attributes:
        kind: "epsilon" (noise), "sample" (x0), "v_prediction" (alpha * noise - sigma * x0) or "flow" (noise - x0, with
            alpha = 1 - sigma).
        levels: (alpha, sigma) at each timestep of the run.
        timesteps, trained: the timesteps themselves, and the number of them that the model was trained on.
        divided: whether the scheduler's samples are x0 + (sigma / alpha) * noise (Euler and similar schedulers).
    """

    kind: str
    levels: tuple[tuple[float, float], ...]
    timesteps: tuple[float, ...]
    trained: float
    divided: bool

    def time(self, step: int) -> float:
        """Return asinh(sigma / alpha), the time scale on which a model's output changes evenly. It falls during a run.

        Near pure noise it is close to the logarithm of the noise-to-signal ratio, plus a constant. Towards the end it
        is close to the ratio itself.
        """
        alpha, sigma = self.levels[step]
        return math.asinh(sigma / math.hypot(alpha, SMALLEST_ALPHA))

    def scaled(self, step: int, sample: torch.Tensor) -> torch.Tensor:
        """Return a scheduler's sample as alpha * x0 + sigma * noise, in float32 at least."""
        exact = sample.to(torch.promote_types(sample.dtype, torch.float32))
        return exact * self.levels[step][0] if self.divided else exact

    def x0_of(self, step: int, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return the x0 that an output predicts, given the sample (not divided by alpha) that it was computed from."""
        alpha, sigma = self.levels[step]
        if self.kind == "epsilon":
            return (sample - sigma * output) / max(alpha, 1e-8)
        if self.kind == "v_prediction":
            return alpha * sample - sigma * output
        return output if self.kind == "sample" else sample - sigma * output

    def output_for(self, step: int, sample: Any, x0: Any) -> Any:
        """Return the output that predicts this x0: the inverse of `x0_of`."""
        alpha, sigma = self.levels[step]
        if self.kind == "epsilon":
            return (sample - alpha * x0) / max(sigma, 1e-8)
        if self.kind == "v_prediction":
            return (alpha * sample - x0) / max(sigma, 1e-8)
        return x0 if self.kind == "sample" else (sample - x0) / max(sigma, 1e-8)

    def velocity(self, step: int) -> float:
        """Return the error of the velocity if the output has an error of 1, to compare models of all kinds.

        The velocity is alpha * noise - sigma * x0, or noise - x0 for a flow.
        """
        alpha, sigma = self.levels[step]
        return {"epsilon": 1 / math.hypot(alpha, SMALLEST_ALPHA), "sample": 1 / max(sigma, SMALLEST_ALPHA)}.get(
            self.kind, 1.0
        )

    def drift(self, step: int) -> float:
        """Return the error of the next sample if the velocity at this step has an error of 1.

        It is computed for the first-order solver (DDIM, Euler).
        """
        (alpha, sigma), (alpha_next, sigma_next) = self.levels[step : step + 2]
        if step and (alpha, sigma) == (alpha_next, sigma_next):
            # the second evaluation of a step (Heun) contributes half of the step
            return self.drift(step - 1) / 2
        return abs(sigma_next * alpha - sigma * alpha_next)


def read_schedule(scheduler: Any, timesteps: Sequence[float]) -> NoiseSchedule:
    """Return the noise schedule of a scheduler at these timesteps.

    Raises:
        CotrunkError: the scheduler does not give its prediction type or the noise level of a timestep.
    """
    config, name = scheduler.config, type(scheduler).__name__
    count = float(config.get("num_train_timesteps") or 0)
    prediction = config.get("prediction_type") or ("epsilon" if hasattr(scheduler, "alphas_cumprod") else None)
    is_flow = name.startswith(FLOW_SCHEDULERS) or prediction == "flow_prediction"
    # sigmas that grow, and continuous timesteps, which are not indices into alphas_cumprod
    is_unsupported = config.get("invert_sigmas") or config.get("timestep_type") == "continuous"
    # Cosmos: x0 + sigma * noise, with sigma up to 80
    is_unsupported = is_unsupported or (is_flow and float(config.get("sigma_max") or 0) > 1)
    has_levels = prediction in KINDS and isinstance(getattr(scheduler, "alphas_cumprod", None), torch.Tensor)
    if is_unsupported or not (count if is_flow else has_levels):
        raise CotrunkError(f'{name} does not say how noisy a timestep is: use neither skipping nor noise="own".')
    if is_flow:
        sigmas = [min(1.0, float(t) / count) for t in timesteps]
        return NoiseSchedule("flow", tuple((1 - s, s) for s in sigmas), tuple(timesteps), count, divided=False)
    signal = scheduler.alphas_cumprod.detach().double().cpu()
    levels = []
    for t in timesteps:
        # some schedulers have timesteps between the trained ones
        low = min(max(math.floor(t), 0), len(signal) - 1)
        high, part = min(low + 1, len(signal) - 1), float(t) - math.floor(t)
        share = float(torch.lerp(signal[low], signal[high], part))
        levels.append((math.sqrt(share), math.sqrt(max(0.0, 1 - share))))
    # Euler and similar schedulers compute the deviation sigma / alpha of their first samples; for the others it is 1
    divided = isinstance(getattr(type(scheduler), "init_noise_sigma", None), property)
    return NoiseSchedule(str(prediction), tuple(levels), tuple(timesteps), count, divided)
