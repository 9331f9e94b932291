"""Predict denoiser outputs of an image from its own earlier ones, and correct the latents afterwards.

Where the denoiser output of an image changes smoothly along its trajectory, evaluations are skipped. Their outputs are
extrapolated from the last computed outputs (never from predictions). At the next computed step the output is
known on both sides of the gap. The scheduler then takes the steps of the gap again with interpolated outputs, which are
several times more accurate and cost no evaluation.

Every image has its own history, decisions and correction. All of this happens around `scheduler.step`, on the guided
output. So it works with every kind of guidance, any number of denoiser calls per step, and every scheduler.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..engine.policy import Discontinuities, no_images
from ..engine.rewind import SchedulerSteps
from ..engine.transfer import sent
from ..pipelines.noise_schedule import NoiseSchedule, read_schedule
from ..settings import Skipping
from .extrapolation import lagrange
from .fitted import Support
from .history import FROM_IMAGE, SMALLEST_SCALE, History
from .moments import SMALLEST_SIGMA, Moments
from .step_choice import SLOTS, Gaps, are_equal

TERMS = {"reuse": 1, "linear": 2, "quadratic": 3}  # support points of the predictions of the rule "fixed"
FIRST_STEPS = 3  # computed by the rule "fixed" before it predicts
# First prediction errors grow with this power of the RMS of the x0 that the first output predicts.
FIRST_X0_EXPONENT = 3
NOISE_ALPHA = 0.2  # a first sample with a smaller alpha counts as pure noise


class Trajectories:
    """The images of one run of a scheduler on their way from noise to x0.

    Args:
        skipping: the rule and its limits.
        images: N.
        timesteps: scheduler steps of the run.
        discontinuities: the images whose outputs change abruptly at a step. Nothing is predicted across that step.

    Attributes:
        histories: one per image.
        errors: at the latest step, whether a prediction error was measured for each image, and the errors (N, ...).
    """

    def __init__(
        self, skipping: Skipping, images: int, timesteps: int, discontinuities: Discontinuities = no_images
    ) -> None:
        self.skipping, self.timesteps, self.discontinuities = skipping, timesteps, discontinuities
        self.stop = timesteps - 1  # the last gap ends here: the last step is always computed
        self.histories = [History() for _ in range(images)]
        self.errors: tuple[Sequence[bool], torch.Tensor | None] = ((), None)
        self.schedule: NoiseSchedule | None = None
        self.gaps: dict[int, Gaps] = {}  # by the step at which trajectories begin; 0 is known at the first step
        self.first_x0: float  # expected RMS of the x0 that the first output predicts
        self.starts: torch.Tensor  # (N, ...) the first sample of each trajectory, divided by its sigma
        self.outputs: list[torch.Tensor] = []  # slot k holds (N, ...): the k-th latest computed output of each image
        self.used: dict[int, torch.Tensor] = {}  # (N, ...) outputs that the scheduler got, since the first open gap

    def computes(self, step: int) -> Sequence[bool]:
        """Return for each image whether the denoiser must compute it at this step.

        An image is computed on both sides of a discontinuity, whatever the rule says: before it, predictions are
        corrected; after it, the history starts again.
        """
        around = {*self.discontinuities(step), *self.discontinuities(step + 1)}
        return tuple(step >= history.resume or image in around for image, history in enumerate(self.histories))

    def observe(
        self, step: int, known: Sequence[bool], steps: SchedulerSteps, output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return output and sample (N, ...) for `scheduler.step`.

        Outputs are predictions where the denoiser did not compute. Samples are corrected where a gap ends.

        Raises:
            CotrunkError: a scheduler whose noise schedule cannot be read.
        """
        schedule = self._schedule(steps, sample)
        self._begin_again(step, sample)
        time = schedule.time(step)
        corrects = self.skipping.correct and steps.can_retrace
        if corrects:
            steps.mark()
        if not all(known):
            weights = [[] if given else self._weights(h, step) for h, given in zip(self.histories, known, strict=True)]
            guess = self._combined(weights).to(output.dtype)
            output = torch.where(along(known, output), output, guess)
        if corrects:
            sample = self._corrected(step, time, known, steps, output, sample)
            self.used[step] = output
        self.errors = ((), None)
        if any(known):
            self._scale_first(step, known, output, sample)
            self._learn(step, time, known, output)
        return output, sample

    def _schedule(self, steps: SchedulerSteps, sample: torch.Tensor) -> NoiseSchedule:
        """Return the noise schedule of the run, read at its first step, which begins with this sample (N, ...)."""
        if self.schedule is None:
            self.schedule = read_schedule(steps.scheduler, steps.timesteps()[: self.timesteps].tolist())
            from_noise = steps.first_index() == 0 and self.schedule.levels[0][0] < NOISE_ALPHA
            # the image that a run begins with is not on the trajectory of its prompt, as after a discontinuity
            self.gaps[0] = Gaps.of_run(self.schedule, None if from_noise else 0)
            self.first_x0 = math.sqrt(Moments.stored().values[0, 0])
            self.starts = self._start(0, sample)
            for history in self.histories:
                history.untried = 0 if from_noise else FROM_IMAGE
        return self.schedule

    def _begin_again(self, step: int, sample: torch.Tensor) -> None:
        """Begin new trajectories with these samples (N, ...) of the images that have a discontinuity at this step."""
        changing = frozenset(self.discontinuities(step))
        if not changing or step == 0:
            return
        assert self.schedule is not None
        self.gaps[step] = Gaps.of_run(self.schedule, step)
        changes = along([image in changing for image in range(len(self.histories))], sample)
        self.starts = torch.where(changes, self._start(step, sample), self.starts)
        for image in changing:
            self.histories[image].begin_again(step)

    def _start(self, step: int, sample: torch.Tensor) -> torch.Tensor:
        """Return a sample (N, ...) at which trajectories begin as a support point of predictions."""
        assert self.schedule is not None
        return self.schedule.scaled(step, sample) / max(self.schedule.levels[step][1], SMALLEST_SIGMA)

    def _weights(self, history: History, step: int) -> list[float]:
        """Return the weights of the slots, and after them of the trajectory's start, in the prediction at a step."""
        if self.skipping.rule == "fixed":
            assert self.schedule is not None
            return lagrange(history.times[: TERMS[self.skipping.prediction]], self.schedule.time(step))
        predictions = self.gaps[history.begin].predictions
        weights = predictions.weights(self._support(history), step, history.errors)
        slots = len(history.steps)
        return [*weights[:slots], *[0.0] * (SLOTS - slots), *weights[slots:]]

    def _corrected(
        self,
        step: int,
        time: float,
        known: Sequence[bool],
        steps: SchedulerSteps,
        output: torch.Tensor,
        sample: torch.Tensor,
    ) -> torch.Tensor:
        """Return the sample, corrected where a gap ends at this step.

        There the scheduler has taken the steps of the gap again with interpolated outputs.
        """
        assert self.schedule is not None
        ending = [given and 0 <= h.last < step - 1 for h, given in zip(self.histories, known, strict=True)]
        if any(ending):
            start = 1 + min(h.last for h, ends in zip(self.histories, ending, strict=True) if ends)
            for at in range(start, step):
                inside = [ends and h.last < at for h, ends in zip(self.histories, ending, strict=True)]
                weights = [
                    h.interpolation(time, self.schedule.time(at)) if within else []
                    for h, within in zip(self.histories, inside, strict=True)
                ]
                between = self._combined([own[1:] for own in weights])
                between += along([own[0] if own else 0.0 for own in weights], between) * output
                self.used[at] = torch.where(along(inside, output), between.to(output.dtype), self.used[at])
            # the other images were retraced with unchanged outputs, so they keep their samples
            sample = torch.where(along(ending, sample), steps.retrace(start, step, self.used), sample)
        first = 1 + min(step if given else h.last for h, given in zip(self.histories, known, strict=True))
        steps.forget(first)
        for at in [at for at in self.used if at < first]:
            del self.used[at]
        return sample

    def _scale_first(self, step: int, known: Sequence[bool], output: torch.Tensor, sample: torch.Tensor) -> None:
        """Estimate the first prediction errors of an image from its first output alone.

        With guidance, the first outputs predict an x0 that is far too large, and later outputs shrink it again. So the
        larger this x0, the more the first outputs change. If it is smaller than expected, the estimate stays.
        """
        assert self.schedule is not None
        starting = [given and not h.untried and not h.times for h, given in zip(self.histories, known, strict=True)]
        if not any(starting):
            return
        x0 = self.schedule.x0_of(step, self.schedule.scaled(step, sample), output)
        sizes = _mean_square(x0).sqrt().tolist()
        for history, size, starts in zip(self.histories, sizes, starting, strict=True):
            if starts:
                ratio = (size / self.first_x0) ** FIRST_X0_EXPONENT
                history.overshoot = min(max(ratio, 1.0), 1 / SMALLEST_SCALE)

    def _learn(self, step: int, time: float, known: Sequence[bool], output: torch.Tensor) -> None:
        """Measure prediction errors against the computed outputs, store these, and decide which steps to skip next."""
        scales, errors = self._measured(step, time, known, output)
        self._push(step, time, known, errors, output)
        for history, given, scale in zip(self.histories, known, scales, strict=True):
            if given:
                history.last, history.scale = step, scale
                history.resume = step + 1 + self._number_to_skip(history, step)

    def _measured(
        self, step: int, time: float, known: Sequence[bool], output: torch.Tensor
    ) -> tuple[list[float | None], list[float]]:
        """Return for each image the scale of its prediction errors, and the latest of them, 0 where there is none."""
        assert self.schedule is not None
        # support points of a prediction whose error says something about the next
        needed = TERMS[self.skipping.prediction] if self.skipping.rule == "fixed" else 1
        tried = [
            given and len(h.times) >= needed and not are_equal(time, h.times[0])
            for h, given in zip(self.histories, known, strict=True)
        ]
        if not any(tried):
            return [h.scale for h in self.histories], [0.0] * len(self.histories)
        weights = [self._weights(h, step) if tries else [] for h, tries in zip(self.histories, tried, strict=True)]
        errors = self._combined(weights) - output.to(self.outputs[0].dtype)
        self.errors = (tried, errors)
        sizes = _mean_square(errors).sqrt().tolist()  # the only wait for the device in a step
        scales: list[float | None] = []
        for history, tries, size in zip(self.histories, tried, sizes, strict=True):
            if not tries:
                scales.append(history.scale)
                continue
            expected = self.gaps[history.begin].expected_error(self._support(history), step)
            scale = size * self.schedule.velocity(step) / expected
            scale = min(max(scale, SMALLEST_SCALE), 1 / SMALLEST_SCALE)  # in this order NaN stays NaN
            scales.append(history.updated_scale(scale))
            history.untried = max(0, history.untried - 1)
        return scales, [size if tries else 0.0 for size, tries in zip(sizes, tried, strict=True)]

    def _combined(self, weights: list[list[float]]) -> torch.Tensor:
        """Return (N, ...): for each image the weighted sum of its slots, and of the start of its trajectory."""
        values = [*self.outputs, *[self.starts] * (SLOTS + 1 - len(self.outputs))]
        columns = [[own[slot] if slot < len(own) else 0.0 for own in weights] for slot in range(SLOTS + 1)]
        used = [slot for slot, column in enumerate(columns) if any(column)]
        if not used:
            return torch.zeros_like(self.outputs[0])
        # one transfer to the device for all weights
        factors = along([columns[slot] for slot in used], self.outputs[0])
        total = factors[0] * values[used[0]]
        for factor, slot in zip(factors[1:], used[1:], strict=True):
            total += factor * values[slot]
        return total

    def _push(
        self, step: int, time: float, known: Sequence[bool], errors: Sequence[float], output: torch.Tensor
    ) -> None:
        """Store computed outputs in slot 0, and move the older outputs of these images on."""
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        # a second evaluation at the same time (Heun, PNDM) replaces the first
        repeats = [bool(h.times) and are_equal(time, h.times[0]) for h in self.histories]
        moves = [given and not repeated for given, repeated in zip(known, repeats, strict=True)]
        if len(self.outputs) < SLOTS:
            self.outputs.append(torch.zeros_like(output))
        for slot in range(len(self.outputs) - 1, 0, -1):
            self.outputs[slot] = torch.where(along(moves, output), self.outputs[slot - 1], self.outputs[slot])
        self.outputs[0] = torch.where(along(known, output), output, self.outputs[0])
        for history, given, error, moved in zip(self.histories, known, errors, moves, strict=True):
            if given:
                history.record(step, time, error, replaces=not moved)

    def _number_to_skip(self, history: History, step: int) -> int:
        """Return how many steps the image skips after this one."""
        skipping = self.skipping
        most = self.stop - (step + 1)
        if most < 1:
            return 0
        if skipping.rule == "fixed":
            # nothing is predicted before an error has been measured
            return 0 if step + 1 < FIRST_STEPS or history.scale is None else min(skipping.every - 1, most)
        caution = history.caution
        if caution is None:
            return 0
        return self.gaps[history.begin].next(self._support(history), skipping.tolerance / caution) - (step + 1)

    def _support(self, history: History) -> Support:
        """Return the support points of a prediction by the rule "error"."""
        return (*history.steps, self.gaps[history.begin].predictions.start)


def _mean_square(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float().flatten(1).square().mean(dim=1)


def along(values: Any, like: torch.Tensor) -> torch.Tensor:
    """Return (..., N) values in a shape that multiplies or selects along the first dimension of a tensor (N, ...)."""
    return sent(values, like.device)[(..., *[None] * (like.ndim - 1))]
