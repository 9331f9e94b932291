"""How well the outputs of one image can be predicted, according to its computed outputs."""

import math
from dataclasses import dataclass, field

from .extrapolation import lagrange
from .step_choice import SLOTS, are_equal

SMALLEST_SCALE = 1e-3  # the error scale of an image is clamped to [1e-3, 1e3]
# Weight of the earlier error scale in a lower new one, in a geometric mean: a single small error is mostly chance. A
# larger scale counts at once, because the images that end worst are those whose errors grow.
MEMORY = 0.8
MEMORY_FROM_IMAGE = 0.5  # the same in a run from an image, whose first outputs soon become regular
LARGE_FIRST_SCALE = 2.0  # in a run from an image, a first error scale above this may still grow: measure a second error


@dataclass
class History:
    """What is known about one image.

    Attributes:
        times, steps: those of its latest computed outputs, latest first: slots 0, 1, ... of `Trajectories.outputs`.
        errors: the RMS errors of the predictions of these outputs; 0 for the first.
        last: the step at which it was last computed.
        scale: its prediction errors, divided by their expectation; None before any was measured.
        tried: number of prediction errors measured.
        overshoot: replaces the scale until an error has been measured, at the beginning of a run from noise.
        from_noise: whether its run began with pure noise, for which the expectation was measured.
        keeps_noise: whether it is still on the trajectory of its first sample: no discontinuity so far.
        resume: the step at which the denoiser computes this image again.
    """

    times: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    last: int = -1
    scale: float | None = None
    tried: int = 0
    overshoot: float = 1.0
    from_noise: bool = False
    keeps_noise: bool = False
    resume: int = 0

    def forget(self) -> None:
        """Drop the history: it does not help to predict outputs after a discontinuity."""
        self.times, self.steps, self.errors, self.scale, self.tried, self.overshoot = [], [], [], None, 0, 1.0
        self.keeps_noise = False

    @property
    def caution(self) -> float | None:
        """The divisor of the tolerance; None while nothing may be predicted.

        An error scale above 1 divides the tolerance. A lower one raises it by its root only, because small errors
        early in a run say little about later ones.
        The expectation is for trajectories from pure noise. After a discontinuity, or in a run from an image, the
        sample is not on the trajectory of its prompt: the first outputs change by up to twenty times what is expected.
        So nothing is predicted before an error has been measured (in a run from an image two, if the first is large).
        """
        if self.scale is None:
            return self.overshoot if self.keeps_noise else None
        if not self.from_noise and self.tried == 1 and self.scale > LARGE_FIRST_SCALE:
            return None
        return max(math.sqrt(self.scale), self.scale)

    def updated_scale(self, scale: float) -> float:
        """Return the error scale after a prediction error of this scale."""
        if self.scale is None or not scale < self.scale:  # NaN counts at once
            return scale
        memory = MEMORY if self.from_noise else MEMORY_FROM_IMAGE
        return self.scale**memory * scale ** (1 - memory)

    def interpolation(self, now: float, time: float) -> list[float]:
        """Return the weights, in the interpolation at `time`, of the output computed now and of the slots."""
        # rounded timesteps may repeat, and a polynomial needs different times
        slots = [slot for slot, known in enumerate(self.times[: SLOTS - 1]) if not are_equal(known, now)]
        own, *others = lagrange([now, *(self.times[slot] for slot in slots)], time)
        weights = [0.0] * len(self.times)
        for slot, weight in zip(slots, others, strict=True):
            weights[slot] = weight
        return [own, *weights]

    def record(self, step: int, time: float, error: float, *, replaces: bool) -> None:
        """Note that a computed output is in slot 0.

        Args:
            step, time: of the output.
            error: the RMS error of its prediction.
            replaces: it replaces the latest output, which was computed at the same time.
        """
        kept = 1 if replaces else 0
        self.times = [time, *self.times[kept:]][:SLOTS]
        self.steps = [step, *self.steps[kept:]][:SLOTS]
        self.errors = [error, *self.errors[kept:]][:SLOTS]
