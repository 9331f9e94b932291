"""Outputs of the denoiser that need not be computed: predicted from an image's own earlier ones, and put right later.

The model output of an image moves smoothly along its trajectory. Where it does, an evaluation is left out and the
output extrapolated from the last computed ones (never from predictions). At the next computed step the output is known
on both sides of the gap: the solver then takes the steps of the gap again, with outputs that are interpolated, which is
several times closer and costs no evaluation.

All of it is per image: its history, its decisions, its correction. It happens around `scheduler.step`, on the guided
output, so that guidance of any kind, one call of the denoiser or several, and every solver keep working.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from ..engine.policy import Jumps, no_images
from ..engine.rewind import Solver
from ..pipelines.noise_schedule import NoiseSchedule, read_schedule
from ..settings import Skipping
from .extrapolation import is_moderate, lagrange
from .gaps import Gaps, Nodes, same

NODES = 3  # computed outputs that are kept for each image: enough for a quadratic
KNOTS = {"reuse": 1, "linear": 2, "quadratic": 3, "damped": 2}  # of them a prediction rests on
FIRST = 3  # steps that the rule "fixed" computes before anything is predicted
LARGE, STEEP = 4.0, 3  # RMS of the data that a first output predicts, by which the law was measured; see `_overshoot`
LEAST = 1e-3  # an image's factor to the law, or most: one over it
PURE = 0.2  # a first sample with less than this of its data (alpha) is noise
MEMORY = 0.8  # of what an image's predictions missed before, when another is tried: a single miss is mostly chance
TRANSIENT = 0.5  # the same in a run that begins in the middle: what its outputs do at first is over soon
SWINGING = 2.0  # a first miss there of more times what the law expects: it may be growing, so another is awaited


@dataclass
class History:
    """What is known of one image.

    Attributes:
        times, nodes: of its computed outputs, the time and the step, in the slots 0, 1, ... of `Trajectories.outputs`:
            latest first.
        last: the step at which the latest was computed.
        scale: how large its predictions' misses have been beside those that the law of `gaps.py` expects; None before
            one could be tried.
        tried: how many of them that is.
        overshoot: what stands for it until then, in a run from noise.
        from_noise: whether its run began with pure noise, where the law was measured.
        damping: the part of its trend that the output kept between the last two nodes, 0 to 1.
        resume: the step at which the denoiser computes this image again.
    """

    times: list[float] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    last: int = -1
    scale: float | None = None
    tried: int = 0
    overshoot: float = 1.0
    from_noise: bool = False
    damping: float = 1.0
    resume: int = 0

    def forget(self) -> None:
        """What was computed so far says nothing about what comes."""
        self.times, self.nodes, self.scale, self.tried, self.overshoot, self.damping = [], [], None, 0, 1.0, 1.0

    @property
    def caution(self) -> float | None:
        """What the tolerance is divided by; None before any prediction is to be made.

        The law and what was seen count alike: a law may be wrong for a model, and a miss is mostly chance. But the law
        is about outputs that follow the trajectory from pure noise. A picture that noise was added to is off the
        trajectory of its prompt: the first outputs swing over to it, by up to twenty times what the law expects. There
        nothing is predicted before a prediction has been tried, or two if the first shows such a swing, and misses that
        are larger than the law expects count in full.
        """
        if self.from_noise:
            return self.overshoot if self.scale is None else math.sqrt(self.scale)
        if self.scale is None or (self.tried == 1 and self.scale > SWINGING):
            return None
        return max(math.sqrt(self.scale), self.scale)

    def learned(self, scale: float) -> float:
        """The scale once a prediction has missed by so many times what the law expects."""
        memory = MEMORY if self.from_noise else TRANSIENT
        return scale if self.scale is None else self.scale**memory * scale ** (1 - memory)

    def between(self, now: float, time: float) -> list[float]:
        """Weights of the output computed now, and of the slots, in what lies between them at `time`."""
        # rounded timesteps may repeat: equal knots are no two knots
        slots = [slot for slot, knot in enumerate(self.times[: NODES - 1]) if not same(knot, now)]
        own, *others = lagrange([now, *(self.times[slot] for slot in slots)], time)
        weights = [0.0] * len(self.times)
        for slot, weight in zip(slots, others, strict=True):
            weights[slot] = weight
        return [own, *weights]


class Trajectories:
    """The images of one call of the pipeline on their way from noise to data.

    Args:
        skipping: the rule and its limits.
        images: N.
        timesteps: scheduler steps of the call.
        jumps: images whose outputs change abruptly at a step: nothing is predicted across it.
    """

    def __init__(self, skipping: Skipping, images: int, timesteps: int, jumps: Jumps = no_images) -> None:
        self.skipping, self.timesteps, self.jumps = skipping, timesteps, jumps
        # the step at which the last gap ends: the last one is always computed
        self.stop = min(math.ceil(skipping.window[1] * timesteps), timesteps - 1)
        self.histories = [History() for _ in range(images)]
        self.schedule: NoiseSchedule | None = None
        self.gaps: Gaps | None = None
        self.outputs: list[torch.Tensor] = []  # (N, ...) each: slot k holds every image's k-th latest computed output
        self.used: dict[int, torch.Tensor] = {}  # (N, ...) outputs that the solver got, since the first open gap
        self.correcting = skipping.correct
        self.unstable: torch.Tensor | None = None

    def computes(self, step: int) -> tuple[bool, ...]:
        """For each image, whether the denoiser is to compute it at this step."""
        around = self._around(step)
        return tuple(step >= history.resume or image in around for image, history in enumerate(self.histories))

    def _around(self, step: int) -> set[int]:
        """Images that are computed whatever the rule says: a jump is at this step, or at the next one, before which
        what was predicted is put right."""
        return {*self.jumps(step), *self.jumps(step + 1)}

    def partial(self, step: int) -> tuple[bool, ...]:
        """For each image that is computed at this step, whether some of its tokens are enough: whenever it is known
        which, and neither the steps around a jump nor the last one."""
        around, skipping = self._around(step), self.skipping
        within = skipping.tokens is not None and skipping.tolerance > 0 and step < self.timesteps - 1
        return tuple(within and h.scale is not None and i not in around for i, h in enumerate(self.histories))

    def observe(
        self, step: int, computed: tuple[bool, ...], solver: Solver, output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and sample (N, ...) for `scheduler.step`: with predictions where the denoiser did not compute, and
        with samples corrected where it did.

        Raises:
            CotrunkError: a scheduler whose noise schedule cannot be read.
        """
        if self.schedule is None:
            timesteps = solver.timesteps()[: self.timesteps]
            self.schedule = read_schedule(solver.scheduler, timesteps.tolist())
            knots = KNOTS[self.skipping.prediction]
            self.gaps = Gaps(self.schedule, self.stop, self.skipping.longest, knots, is_moderate)
            for history in self.histories:
                history.from_noise = solver.first() == 0 and self.schedule.levels[0][0] < PURE
        for image in self.jumps(step):
            self.histories[image].forget()
        time = self.schedule.time(step)
        if not all(computed):
            weights = [
                [] if known else self._weights(h, time) for h, known in zip(self.histories, computed, strict=True)
            ]
            guess = self._combined(weights).to(output.dtype)
            output = torch.where(along(computed, output), output, guess)
        if self.correcting:
            sample = self._corrected(step, time, computed, solver, output, sample)
            self.used[step] = output
        if any(computed):
            self._overshoot(step, computed, output, sample)
            self._learn(step, time, computed, output)
        return output, sample

    def after(self, step: int, new_sample: torch.Tensor) -> None:
        """Nothing to learn from where the solver went."""

    def _weights(self, history: History, time: float) -> list[float]:
        """Weights of the slots in the prediction at `time`."""
        if self.skipping.prediction != "damped" or len(history.times) < 2:
            return lagrange(history.times[: KNOTS[self.skipping.prediction]], time)
        latest, before = history.times[:2]
        change = history.damping * (time - latest) / (latest - before)
        return [1 + change, -change]

    def _corrected(
        self,
        step: int,
        time: float,
        computed: tuple[bool, ...],
        solver: Solver,
        output: torch.Tensor,
        sample: torch.Tensor,
    ) -> torch.Tensor:
        """The sample, where a gap ends here, as the solver makes it from outputs that are interpolated over the gap."""
        assert self.schedule is not None
        ending = [known and 0 <= h.last < step - 1 for h, known in zip(self.histories, computed, strict=True)]
        if any(ending):
            start = 1 + min(h.last for h, ends in zip(self.histories, ending, strict=True) if ends)
            for at in range(start, step):
                inside = [ends and h.last < at for h, ends in zip(self.histories, ending, strict=True)]
                weights = [
                    h.between(time, self.schedule.time(at)) if within else []
                    for h, within in zip(self.histories, inside, strict=True)
                ]
                between = self._combined([own[1:] for own in weights])
                between += along([own[0] if own else 0.0 for own in weights], between) * output
                self.used[at] = torch.where(along(inside, output), between.to(output.dtype), self.used[at])
            # the others are where they were: for them the way was the same
            sample = torch.where(along(ending, sample), solver.retrace(start, step, self.used), sample)
        first = 1 + min(step if known else h.last for h, known in zip(self.histories, computed, strict=True))
        solver.forget(first)
        for at in [at for at in self.used if at < first]:
            del self.used[at]
        return sample

    def _overshoot(self, step: int, computed: tuple[bool, ...], output: torch.Tensor, sample: torch.Tensor) -> None:
        """How much an image's first predictions may miss, told from its first output alone.

        Guidance makes the first outputs predict data that are far too large, and what overshoots has to come down: the
        first outputs change the more the larger the data are. The law was measured where they begin with an RMS of
        `LARGE`; smaller ones are not held to change less.
        """
        assert self.schedule is not None
        fresh = [known and h.from_noise and not h.times for h, known in zip(self.histories, computed, strict=True)]
        if not any(fresh):
            return
        data = self.schedule.data_of(step, self.schedule.whole(step, sample), output)
        sizes = _mean_square(data).sqrt().tolist()
        for history, size, is_fresh in zip(self.histories, sizes, fresh, strict=True):
            if is_fresh:
                history.overshoot = min(max((size / LARGE) ** STEEP, 1.0), 1 / LEAST)

    def _learn(self, step: int, time: float, computed: tuple[bool, ...], output: torch.Tensor) -> None:
        """Take in the computed outputs and decide what follows."""
        scales, dampings = self._lessons(step, time, computed, output)
        self._push(step, computed, time, output)
        for history, known, scale, damping in zip(self.histories, computed, scales, dampings, strict=True):
            if known:
                history.last, history.scale, history.damping = step, scale, damping
                history.resume = step + 1 + self._leave_out(history, step)

    def _lessons(
        self, step: int, time: float, computed: tuple[bool, ...], output: torch.Tensor
    ) -> tuple[list[float | None], list[float]]:
        """What the computed outputs say about prediction, for each image: the scale of its misses, and how far the
        trend before the last node went on to them: 0 not at all, 1 as it was."""
        assert self.schedule is not None
        assert self.gaps is not None
        needed = KNOTS[self.skipping.prediction]
        enough = [
            known and len(h.times) >= needed and not same(time, h.times[0])
            for h, known in zip(self.histories, computed, strict=True)
        ]
        if not any(enough):
            return [h.scale for h in self.histories], [h.damping for h in self.histories]
        weights = [self._weights(h, time) if known else [] for h, known in zip(self.histories, enough, strict=True)]
        exact = output.to(self.outputs[0].dtype)
        difference = self._combined(weights) - exact
        if self.skipping.tokens is not None and output.ndim in (3, 4):
            # channels come first in latents, and last where they are packed into tokens
            places = difference.abs().mean(dim=1 if output.ndim == 4 else 2)
            old = places if self.unstable is None else self.unstable
            self.unstable = torch.where(along(enough, places), places, old)
        figures = [_mean_square(difference)]
        if len(self.outputs) > 1:
            trend = self.outputs[0] - self.outputs[1]
            went_on = ((exact - self.outputs[0]) * trend).float().flatten(1).mean(dim=1)
            figures.append(went_on / _mean_square(trend).clamp(min=1e-20))
        missed, *shares = torch.stack(figures).tolist()  # the one wait for the device in a step
        scales: list[float | None] = []
        dampings = []
        for image, history in enumerate(self.histories):
            if not enough[image]:
                scales.append(history.scale)
                dampings.append(history.damping)
                continue
            expected = self.gaps.expected_miss(self._nodes(history), step)
            scale = math.sqrt(missed[image]) * self.schedule.velocity(step) / expected
            scale = min(max(scale, LEAST), 1 / LEAST)  # in this order a NaN stays one
            scales.append(history.learned(scale))
            history.tried += 1
            if shares and len(history.times) > 1:
                latest, before = history.times[:2]
                going_on = shares[0][image] * (latest - before) / (time - latest)
                dampings.append(min(1.0, max(0.0, going_on)) if math.isfinite(going_on) else 1.0)
            else:
                dampings.append(1.0)
        return scales, dampings

    def _combined(self, weights: list[list[float]]) -> torch.Tensor:
        """(N, ...): for each image the weighted sum of its slots."""
        total = torch.zeros_like(self.outputs[0])
        for slot, outputs in enumerate(self.outputs):
            column = [own[slot] if slot < len(own) else 0.0 for own in weights]
            if any(column):
                total += along(column, outputs) * outputs
        return total

    def _push(self, step: int, computed: tuple[bool, ...], time: float, output: torch.Tensor) -> None:
        """Computed outputs into slot 0; the older ones of these images move on."""
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        # a second evaluation at the same time (Heun, PNDM) takes the place of the first
        again = [bool(h.times) and same(time, h.times[0]) for h in self.histories]
        moves = [known and not repeated for known, repeated in zip(computed, again, strict=True)]
        if len(self.outputs) < NODES:
            self.outputs.append(torch.zeros_like(output))
        for slot in range(len(self.outputs) - 1, 0, -1):
            self.outputs[slot] = torch.where(along(moves, output), self.outputs[slot - 1], self.outputs[slot])
        self.outputs[0] = torch.where(along(computed, output), output, self.outputs[0])
        for history, known, moved in zip(self.histories, computed, moves, strict=True):
            if known:
                kept = 0 if moved else 1
                history.times = [time, *history.times[kept:]][:NODES]
                history.nodes = [step, *history.nodes[kept:]][:NODES]

    def _leave_out(self, history: History, step: int) -> int:
        """How many evaluations to leave out from the step after this one on."""
        skipping = self.skipping
        most = self.stop - (step + 1)
        if step + 1 < skipping.window[0] * self.timesteps or most < 1:
            return 0
        if skipping.rule == "fixed":
            # no prediction before one has been tried
            return 0 if step + 1 < FIRST or history.scale is None else min(skipping.every - 1, most)
        assert self.gaps is not None
        caution = history.caution
        return 0 if caution is None else self.gaps.next(self._nodes(history), skipping.tolerance / caution) - (step + 1)

    def _nodes(self, history: History) -> Nodes:
        """The steps that a prediction rests on."""
        return tuple(history.nodes[: KNOTS[self.skipping.prediction]])


def _mean_square(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float().flatten(1).square().mean(dim=1)


def along(values: Any, like: torch.Tensor) -> torch.Tensor:
    """(N,) values that multiply or select along the first dimension of a tensor (N, ...)."""
    return torch.tensor(values).to(like.device, non_blocking=True).reshape(-1, *[1] * (like.ndim - 1))
