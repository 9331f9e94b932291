"""The noise schedule of a scheduler: at each timestep, how much is signal and how much is noise.

Every diffusion model here sees alpha * data + sigma * noise, or that divided by alpha. What its output means (noise,
data, velocity) and the pair (alpha, sigma) are all that prediction and correction of outputs need; both are read off
the scheduler, which is never changed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CotrunkError

KINDS = ("epsilon", "v_prediction", "sample", "flow")
FAINTEST = 0.01  # of data, however little there is: this much is added to alpha, in squares


@dataclass(frozen=True)
class NoiseSchedule:
    """What a model's output means, and the noise at each step of one run.

    Attributes:
        kind: "epsilon" (noise), "sample" (data), "v_prediction" (alpha * noise - sigma * data) or "flow"
            (noise - data, with alpha = 1 - sigma).
        levels: (alpha, sigma) at each timestep of the run.
        timesteps, trained: the timesteps themselves, and the number of them that the model was trained on.
        divided: whether the scheduler's samples are data + (sigma / alpha) * noise (Euler and its like).
    """

    kind: str
    levels: tuple[tuple[float, float], ...]
    timesteps: tuple[float, ...]
    trained: float
    divided: bool

    def time(self, step: int) -> float:
        """The time in which a model's output moves evenly: asinh(sigma / alpha), which falls as steps go on.

        Where there is hardly any data it is the logarithm of the noise-to-signal ratio, in which the data prediction
        begins to take shape; towards the end it is the ratio itself.
        """
        alpha, sigma = self.levels[step]
        return math.asinh(sigma / math.hypot(alpha, FAINTEST))

    def whole(self, step: int, sample: torch.Tensor) -> torch.Tensor:
        """A scheduler's sample as alpha * data + sigma * noise, in float32 at least."""
        exact = sample.to(torch.promote_types(sample.dtype, torch.float32))
        return exact * self.levels[step][0] if self.divided else exact

    def data_of(self, step: int, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The data that an output predicts, given the sample (not divided by alpha) that it was computed from."""
        alpha, sigma = self.levels[step]
        if self.kind == "epsilon":
            return (sample - sigma * output) / max(alpha, 1e-8)
        if self.kind == "v_prediction":
            return alpha * sample - sigma * output
        return output if self.kind == "sample" else sample - sigma * output

    def output_for(self, step: int, sample: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        """The output that predicts this data: the inverse of `data_of`."""
        alpha, sigma = self.levels[step]
        if self.kind == "epsilon":
            return (sample - alpha * data) / max(sigma, 1e-8)
        if self.kind == "v_prediction":
            return (alpha * sample - data) / max(sigma, 1e-8)
        return data if self.kind == "sample" else (sample - data) / max(sigma, 1e-8)

    def velocity(self, step: int) -> float:
        """How wrong the velocity (alpha * noise - sigma * data; noise - data of a flow) is where the output is wrong by
        one: errors of models of all kinds compare in it."""
        alpha, sigma = self.levels[step]
        return {"epsilon": 1 / math.hypot(alpha, FAINTEST), "sample": 1 / max(sigma, FAINTEST)}.get(self.kind, 1.0)

    def drift(self, step: int) -> float:
        """How wrong the next sample is where the velocity at this step is wrong by one, by the first-order solver
        (DDIM, Euler)."""
        (alpha, sigma), (alpha_next, sigma_next) = self.levels[step : step + 2]
        if step and (alpha, sigma) == (alpha_next, sigma_next):
            # the second evaluation of a step (Heun): its half of what the step does
            return self.drift(step - 1) / 2
        return abs(sigma_next * alpha - sigma * alpha_next)


def read_schedule(scheduler: Any, timesteps: Sequence[float]) -> NoiseSchedule:
    """The noise schedule of a scheduler at these timesteps.

    Raises:
        CotrunkError: a scheduler that does not say what its model predicts or how noisy a timestep is.
    """
    config, name = scheduler.config, type(scheduler).__name__
    count = float(config.get("num_train_timesteps") or 0)
    prediction = config.get("prediction_type") or ("epsilon" if hasattr(scheduler, "alphas_cumprod") else None)
    is_flow = name.startswith("FlowMatch") or prediction == "flow_prediction"
    # sigmas that grow, and timesteps that are no index: what a timestep means is another thing there
    is_odd = config.get("invert_sigmas") or config.get("timestep_type") == "continuous"
    is_odd = is_odd or (is_flow and float(config.get("sigma_max") or 0) > 1)  # Cosmos: data + sigma * noise, up to 80
    has_levels = prediction in KINDS and isinstance(getattr(scheduler, "alphas_cumprod", None), torch.Tensor)
    if is_odd or not (count if is_flow else has_levels):
        raise CotrunkError(f"{name} does not say how noisy a timestep is: run it without skipping.")
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
    # samples of Euler and its like start from noise of deviation sigma / alpha, which they compute; the others' from 1
    divided = isinstance(getattr(type(scheduler), "init_noise_sigma", None), property)
    return NoiseSchedule(str(prediction), tuple(levels), tuple(timesteps), count, divided)
