"""The rule "released" against the authors' rule, which is transcribed here as one plain loop.

The loop follows what their code does for one image (sada-icml, July 2025: skipping from step 10 to 47 of 50, a
polynomial from step 24 on), with the solvers' updates written out. It uses nothing of `cotrunk.sada`.
"""

import math
from dataclasses import dataclass, field

import pytest
import torch
from analytic import SCHEDULERS, SIZE, ideal, sample
from torch import Tensor

from cotrunk import Skipping
from cotrunk.pipelines.noise_schedule import read_schedule

STEPS, START, STOP, EVERY, IN_A_ROW, TERMS = 50, 10, 47, 4, 4, 4
SEEDS = range(4)
CASES = [(solver, kind) for kind in ("epsilon", "v_prediction", "flow") for solver in ("dpm++2m", "euler")]
CASES.append(("ddim", "epsilon"))  # their code does not support it: DPM++ of first order


@dataclass
class Authors:
    """One image under the authors' rule.

    Attributes:
        solver, kind: as in `analytic.SCHEDULERS`.
        computed: for each step, whether the denoiser ran.
        x: where the solver is, in its own coordinates: divided by alpha with Euler, unless it follows a flow.
    """

    solver: str
    kind: str
    computed: list[bool] = field(default_factory=list)

    def run(self, seed: int) -> "Authors":
        scheduler = SCHEDULERS[self.solver, self.kind]()
        scheduler.set_timesteps(STEPS)
        self.scheduler, self.schedule = scheduler, read_schedule(scheduler, scheduler.timesteps.tolist())
        if self.solver == "ddim":
            signal = scheduler.alphas_cumprod[scheduler.timesteps].double()
            self.sigmas = [*((1 - signal) / signal).sqrt().tolist(), 0.0]
        else:
            self.sigmas = scheduler.sigmas.tolist()
        noise = torch.randn(1, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.x = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
        self.before: Tensor | None = None  # the prediction of x0 of the previous step
        (self.flow if self.kind == "flow" else self.diffusion)()
        return self

    def levels(self, step: int) -> tuple[float, float]:
        """Return (alpha, sigma) of the sample alpha * x0 + sigma * noise."""
        sigma = self.sigmas[step]
        return (1 - sigma, sigma) if self.kind == "flow" else (1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma))

    def denoiser(self, step: int) -> Tensor:
        self.computed.append(True)
        divided = self.solver == "euler" and self.kind != "flow"
        return ideal(self.schedule, step, self.x * self.schedule.levels[step][0] if divided else self.x)

    def solve(self, step: int, x0: Tensor) -> Tensor:
        """Return the next sample for this prediction of x0."""
        if self.solver == "euler":
            now, then = self.sigmas[step], self.sigmas[step + 1]
            return self.x + (then - now) * (self.x - x0) / now
        if step + 1 == STEPS:
            return x0  # no noise is left
        (alpha, sigma), trend = self.levels(step), torch.zeros_like(x0)
        alpha_next, sigma_next = self.levels(step + 1)
        h = math.log(alpha_next / sigma_next) - math.log(alpha / sigma)
        if self.before is not None and self.solver != "ddim":
            alpha_before, sigma_before = self.levels(step - 1)
            h_before = math.log(alpha / sigma) - math.log(alpha_before / sigma_before)
            trend = (x0 - self.before) * h / (2 * h_before)
        return sigma_next / sigma * self.x - alpha_next * math.expm1(-h) * (x0 + trend)

    def diffusion(self) -> None:
        """Run all steps as the authors' code does for Stable Diffusion."""
        euler, gradients, nodes = self.solver == "euler", list[Tensor](), list[tuple[int, Tensor]]()
        planned: Tensor | None = None  # the predicted x0 that replaces a skipped evaluation
        output = torch.zeros(0)
        in_a_row = 0
        for step in range(STEPS):
            (alpha, sigma), x = self.levels(step), self.x
            undivided = x * alpha if euler else x
            if planned is None:
                output = self.denoiser(step)
                x0 = self.x0_of(step, undivided, output)
            else:  # the output stays the last computed one
                self.computed.append(False)
                x0 = planned
            if step % EVERY == 1:
                nodes = [*nodes, (step, x0 / alpha if euler else x0)][-TERMS:]
            new = self.solve(step, x0)
            rate = STEPS * float(self.scheduler.betas[int(self.scheduler.timesteps[step])]) / 2
            of_noise, of_velocity = output / sigma - undivided, alpha / sigma * output
            gradient = rate * (of_noise if self.kind == "epsilon" else of_velocity)
            planned = None
            if len(gradients) == 2:
                earlier, latest = gradients
                guess = undivided - (0.625 * gradient + 0.75 * latest - 0.375 * earlier) / STEPS
                if euler:
                    guess = guess / self.levels(step + 1)[0]
                criterion = float(((new - guess) * (gradient - 2 * latest + earlier)).mean())
                by_criterion = criterion <= 0 and START <= step < 24
                by_pattern = step % EVERY != 0 and 24 <= step < STOP
                if in_a_row < IN_A_ROW and (by_criterion or by_pattern):
                    in_a_row += 1
                    planned = (
                        self.polynomial(nodes, step + 1) if by_pattern else self.reused(step + 1, guess, new, output)
                    )
                else:
                    in_a_row = 0
            gradients = [*gradients, gradient][-2:]
            self.x, self.before = new, x0

    def x0_of(self, step: int, x: Tensor, output: Tensor) -> Tensor:
        alpha, sigma = self.levels(step)
        return (x - sigma * output) / alpha if self.kind == "epsilon" else alpha * x - sigma * output

    def reused(self, step: int, guess: Tensor, new: Tensor, output: Tensor) -> Tensor:
        """Return the x0 that the last output predicts at the next step.

        The sample is the extrapolated one, except for a velocity with Euler, which uses the current one.
        """
        alpha = self.levels(step)[0] if self.solver == "euler" else 1.0
        at = new if self.solver == "euler" and self.kind == "v_prediction" else guess
        return self.x0_of(step, alpha * at, output)

    def polynomial(self, nodes: list[tuple[int, Tensor]], step: int) -> Tensor:
        total = torch.zeros_like(self.x)
        for at, value in nodes:
            total += value * math.prod((step - other) / (at - other) for other, _ in nodes if other != at)
        return total * self.levels(step)[0] if self.solver == "euler" else total

    def flow(self) -> None:
        """Run all steps as the authors' code does for Flux."""
        velocities, skips, in_a_row = list[Tensor](), False, 0
        for step in range(STEPS):
            if skips:
                self.computed.append(False)
                # what the denoiser's cache holds is the last output, entered as one more
                velocities.append(velocities[-1])
                velocity = 2 * velocities[-2] - velocities[-3]
                criterion = 0.0  # -(velocity - last) + (last - before), by the line above: the code gets its rounding
            else:
                velocities.append(self.denoiser(step))
                velocity = velocities[-1]
                bend = velocities[-1] - 2 * velocities[-2] + velocities[-3] if step > 1 else torch.ones(1)
                criterion = -float(bend.mean())
            x0 = self.x - self.sigmas[step] * velocity
            self.x, self.before = self.solve(step, x0), x0
            wanted = criterion <= 0 if step < 20 else step % EVERY != 0
            skips = wanted and START <= step < STOP and in_a_row < IN_A_ROW
            in_a_row = in_a_row + 1 if skips else 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_released_is_the_authors_rule(case: tuple[str, str], seed: int) -> None:
    """Each run has one image, because the authors' code decides for a whole batch at once."""
    theirs = Authors(*case).run(seed)
    ours = sample(SCHEDULERS[case](), STEPS, Skipping(rule="released"), seeds=range(seed, seed + 1))
    assert [computed for (computed,) in ours.computed] == theirs.computed
    assert 21 <= sum(theirs.computed) < 36
    torch.testing.assert_close(ours.samples, theirs.x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_images_skip_different_steps(case: tuple[str, str]) -> None:
    """Otherwise the comparison above could not distinguish the criterion from a fixed pattern."""
    assert len({tuple(Authors(*case).run(seed).computed) for seed in SEEDS}) > 1
