"""SADA as published (Jiang et al., ICML 2025), for comparison: the criterion of the paper, and that of its code.

cotrunk's own rules are in `trajectories.py`. The two rules here follow Criterion 3.4 and Theorems 3.5 to 3.7. They
decide per image; the released code decides once for a whole batch.

- `paper`: third-order extrapolation of the sample with the coefficients 5/6, 5/6, -2/3 and the true step in time.
- `released`: coefficients 5/8, 6/8, -3/8, and a step in time that is too short by (training steps / inference steps).

At a skipped step both reuse a part of the last computed output. In the second half they compute only every fourth
step, and extrapolate x0 by a polynomial in the step index through four earlier predictions of x0. As in the code, these
may come from skipped steps, and nothing limits the weights of the polynomial.

`paper` reuses the noise. `released` reuses the same as the code:

- It reuses the model's output: the noise, or the velocity of a v-prediction.
- With samples that are divided by alpha (Euler), it applies a velocity to the true sample, not to the extrapolated one.
  The polynomial goes through x0 / alpha, and is multiplied by the alpha of the skipped step.
- For flow models it follows another method (the code's path for Flux), which uses the velocity alone.

The code supports Euler and DPM++ 2M only. Here, any other scheduler is treated like the one of the two
with the same kind of samples. A flow model is treated like Flux, and of a model that predicts x0 the noise is reused.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..engine.policy import Discontinuities, no_images
from ..engine.rewind import SchedulerSteps
from ..errors import CotrunkError
from ..pipelines.noise_schedule import NoiseSchedule, read_schedule
from .extrapolation import lagrange
from .trajectories import along

COEFFICIENTS = {"paper": (5 / 6, 5 / 6, -2 / 3), "released": (5 / 8, 6 / 8, -3 / 8)}
# of 50 steps, skip from step 10 to 47, and use the polynomial from step 24 on; the same fractions of other numbers
FIRST, STOP, TAIL = 10 / 50, 47 / 50, 24 / 50
FLUX_TAIL = 20 / 50
INTERVAL = 4  # in the tail, one step in this many is computed; before it, at most this many are skipped in a row
TERMS = 4  # support points of the polynomial


class Sada:
    """The images of one call of the pipeline under one of the two published rules.

    Args:
        rule: "paper" or "released".
        images: N.
        timesteps: scheduler steps of the call.
        discontinuities: the images whose outputs change abruptly at a step. That step and the one before are computed.
    """

    def __init__(self, rule: str, images: int, timesteps: int, discontinuities: Discontinuities = no_images) -> None:
        self.rule, self.timesteps, self.discontinuities = rule, timesteps, discontinuities
        self.skip = [False] * images  # at the next step
        self.skipped_in_a_row = [0] * images  # steps skipped so far without a computed one
        self.schedule: NoiseSchedule | None = None
        self.gradients: list[torch.Tensor] = []  # dx/dt of the last three steps, latest first
        self.support: list[tuple[int, torch.Tensor]] = []  # (step, prediction of x0) of the tail; see `is_scaled`
        self.x0: torch.Tensor | None = None  # predictions for the images to skip
        self.reused: torch.Tensor | None = None  # noise or velocity of the last computed step
        self.sample: torch.Tensor  # the sample of the current step, not divided by alpha
        self.stable = [False] * images  # whether the criterion allows a skip
        # set when the schedule is read:
        self.is_flux = False  # whether the path for Flux is followed
        self.by_output = False  # whether the velocity is reused as the model gave it
        self.is_scaled = False  # whether the polynomial goes through x0 / alpha
        self.velocities: list[torch.Tensor] = []  # on the path for Flux: of the last two steps, latest first

    def computes(self, step: int) -> Sequence[bool]:
        """Return for each image whether the denoiser must compute it at this step."""
        around = {*self.discontinuities(step), *self.discontinuities(step + 1)}
        return tuple(not skip or image in around for image, skip in enumerate(self.skip))

    def observe(
        self, step: int, known: Sequence[bool], steps: SchedulerSteps, output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return output and sample (N, ...) for `scheduler.step`: skipped images get the output that predicts their x0.

        Raises:
            CotrunkError: a scheduler whose noise schedule cannot be read.
        """
        scheduler = steps.scheduler
        if self.schedule is None:
            self.schedule = read_schedule(scheduler, steps.timesteps()[: self.timesteps].tolist())
            if output.shape != sample.shape:
                raise CotrunkError(f"The rule {self.rule!r} does not support learned variances: use the rule 'error'.")
            is_released, kind = self.rule == "released", self.schedule.kind
            self.is_flux = is_released and kind == "flow"
            self.by_output = is_released and kind == "v_prediction"
            self.is_scaled = is_released and self.schedule.divided
        self.skip = [not given for given in known]
        if self.is_flux:
            return self._by_velocity(output), sample
        alpha, sigma = self.schedule.levels[step]
        x = self.schedule.scaled(step, sample)
        if self.x0 is not None and any(self.skip):
            made = self.schedule.output_for(step, x, self.x0).to(output.dtype)
            output = torch.where(along(self.skip, output), made, output)
        x0 = self.schedule.x0_of(step, x, output.float())
        own = output.float() if self.by_output else (x - alpha * x0) / max(sigma, 1e-8)
        self.reused = own if self.reused is None else torch.where(along(self.skip, own), self.reused, own)
        if step % INTERVAL == 1:
            self.support = [*self.support, (step, x0 / max(alpha, 1e-8) if self.is_scaled else x0)][-TERMS:]
        self.gradients = [self._gradient(scheduler, step, x, self.reused), *self.gradients][:3]
        self.sample = x
        return output, sample

    def after_step(self, step: int, sample: torch.Tensor) -> None:
        """Decide which images skip the next step, given the sample (N, ...) that it begins with."""
        assert self.schedule is not None
        if step + 1 >= self.timesteps:
            return
        x = self.schedule.scaled(step + 1, sample)
        guess = x
        if len(self.gradients) == 3:
            y, y1, y2 = self.gradients
            c, c1, c2 = COEFFICIENTS[self.rule]
            guess = self.sample - self._step_in_time(step) * (c * y + c1 * y1 + c2 * y2)
            criterion = ((x - guess) * (y - 2 * y1 + y2)).flatten(1).mean(dim=1)
            self.stable = (criterion <= 0).tolist()
        tail = step >= round((FLUX_TAIL if self.is_flux else TAIL) * self.timesteps)
        tail = tail and (self.is_flux or len(self.support) == TERMS)
        inside = max(3, round(FIRST * self.timesteps)) <= step < round(STOP * self.timesteps)
        inside = inside and step + 2 < self.timesteps
        for image, is_stable in enumerate(self.stable):
            wanted = step % INTERVAL != 0 if tail else is_stable
            self.skip[image] = inside and wanted and self.skipped_in_a_row[image] < INTERVAL
            self.skipped_in_a_row[image] = self.skipped_in_a_row[image] + 1 if self.skip[image] else 0
        if self.is_flux or not any(self.skip):
            return
        assert self.reused is not None
        alpha, sigma = self.schedule.levels[step + 1]
        if tail:
            weights = lagrange([float(at) for at, _ in self.support], float(step + 1))
            x0 = torch.stack([w * value for w, (_, value) in zip(weights, self.support, strict=True)]).sum(dim=0)
            self.x0 = alpha * x0 if self.is_scaled else x0
        elif self.by_output:
            self.x0 = self.schedule.x0_of(step + 1, x if self.schedule.divided else guess, self.reused)
        else:
            self.x0 = (guess - sigma * self.reused) / max(alpha, 1e-8)

    def _by_velocity(self, output: torch.Tensor) -> torch.Tensor:
        """Return the outputs (N, ...) of a flow, predicted for skipped images: the released code's path for Flux.

        The first skip in a row extrapolates the last two outputs linearly. For later predictions, a skip counts as an
        output equal to the last one. So the next skip finds no trend, and reuses the last computed output.
        """
        velocity = output.float()
        if len(self.velocities) == 2:
            last, before = self.velocities
            guess = 2 * last - before
            # the mean of the second difference, which is zero where the output was predicted
            bends = (velocity - guess).flatten(1).mean(dim=1).tolist()
            self.stable = [skip or bend >= 0 for skip, bend in zip(self.skip, bends, strict=True)]
            output = torch.where(along(self.skip, output), guess.to(output.dtype), output)
            velocity = torch.where(along(self.skip, velocity), last, velocity)
        self.velocities = [velocity, *self.velocities][:2]
        return output

    def _gradient(self, scheduler: Any, step: int, x: torch.Tensor, reused: torch.Tensor) -> torch.Tensor:
        """Return dx/dt of the probability flow; t runs from 0 to 1.

        Args:
            reused: the noise or the velocity of this step, or of the last computed step if this one is skipped.
        """
        assert self.schedule is not None
        alpha, sigma = self.schedule.levels[step]
        if self.schedule.kind == "flow":
            return (reused - x) / max(alpha, 1e-8)
        beta = float(scheduler.betas[min(int(self.schedule.timesteps[step]), len(scheduler.betas) - 1)])
        # the released code multiplies by the number of inference steps instead of training steps
        rate = beta * (self.timesteps if self.rule == "released" else len(scheduler.betas))
        over = reused / max(sigma, 1e-8)
        return 0.5 * rate * (alpha * over if self.by_output else over - x)

    def _step_in_time(self, step: int) -> float:
        assert self.schedule is not None
        if self.rule == "released":
            return 1 / self.timesteps
        if self.schedule.kind == "flow":
            return self.schedule.levels[step][1] - self.schedule.levels[step + 1][1]
        return (self.schedule.timesteps[step] - self.schedule.timesteps[step + 1]) / self.schedule.trained
