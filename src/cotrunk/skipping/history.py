"""How well the outputs of one image can be predicted, according to its computed outputs."""

import math
from dataclasses import dataclass, field

from .extrapolation import lagrange
from .step_choice import SLOTS, are_equal

SMALLEST_SCALE = 1e-3  # the error scale of an image is clamped to [1e-3, 1e3]
# Weight of the earlier error scale in a lower new one, in a geometric mean: a single small error is mostly chance. A
# larger scale counts at once, because the images that end worst are those whose errors grow.
MEMORY = 0.8
# Prediction errors that are measured before anything is predicted. An input image may be far from what the prompt asks
# for; then the second error is much larger than the first.
AFTER_DISCONTINUITY, FROM_IMAGE = 1, 2


@dataclass
class History:
    """What is known about one image since its trajectory began: with its run, or at its latest discontinuity.

    Attributes:
        begin: the step at which the trajectory began.
        times, steps: those of its latest computed outputs, latest first: slots 0, 1, ... of `Trajectories.outputs`.
        errors: the RMS errors of the predictions of these outputs; 0 for the first.
        last: the step at which it was last computed.
        scale: its prediction errors, divided by their expectation; None before any was measured.
        untried: prediction errors that have to be measured before anything is predicted.
        overshoot: replaces the scale where nothing has to be measured: in a run from noise.
        resume: the step at which the denoiser computes this image again.
    """

    begin: int = 0
    times: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    last: int = -1
    scale: float | None = None
    untried: int = 0
    overshoot: float = 1.0
    resume: int = 0

    def begin_again(self, step: int) -> None:
        """Drop the history, which does not help to predict outputs after a discontinuity at this step."""
        self.begin, self.times, self.steps, self.errors = step, [], [], []
        self.scale, self.untried = None, AFTER_DISCONTINUITY

    @property
    def caution(self) -> float | None:
        """The divisor of the tolerance; None while nothing may be predicted.

        An error scale above 1 divides the tolerance. A lower one raises it by its root only, because small errors
        early in a run say little about later ones.
        """
        if self.untried > 0:
            return None
        return self.overshoot if self.scale is None else max(math.sqrt(self.scale), self.scale)

    def updated_scale(self, scale: float) -> float:
        """Return the error scale after a prediction error of this scale."""
        if self.scale is None or not scale < self.scale:  # NaN counts at once
            return scale
        return self.scale**MEMORY * scale ** (1 - MEMORY)

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
