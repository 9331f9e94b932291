"""How well the outputs of one image can be predicted, according to its computed outputs."""

import math
from dataclasses import dataclass, field

from .extrapolation import lagrange
from .step_choice import are_equal

SLOTS = 3  # computed outputs kept per image: enough for a quadratic
SMALLEST_SCALE = 1e-3  # the error scale of an image is clamped to [1e-3, 1e3]
# weight of the earlier error scale in the new one (in a geometric mean): a single prediction error is mostly chance
MEMORY = 0.8
MEMORY_FROM_IMAGE = 0.5  # the same in a run from an image, whose first outputs soon become regular
LARGE_FIRST_SCALE = 2.0  # in a run from an image, a first error scale above this may still grow: measure a second error


@dataclass
class History:
    """What is known about one image.

    Attributes:
        times, steps: those of its latest computed outputs, latest first: slots 0, 1, ... of `Trajectories.outputs`.
        last: the step at which it was last computed.
        scale: its prediction errors, divided by the errors that the law of `step_choice.py` expects; None before any
            was measured.
        tried: number of prediction errors measured.
        overshoot: in a run from noise, replaces the scale until an error has been measured.
        from_noise: whether its run began with pure noise, for which the law was measured.
        damping: the part of its trend that the output kept between the last two computed steps, 0 to 1.
        resume: the step at which the denoiser computes this image again.
    """

    times: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    last: int = -1
    scale: float | None = None
    tried: int = 0
    overshoot: float = 1.0
    from_noise: bool = False
    damping: float = 1.0
    resume: int = 0

    def forget(self) -> None:
        """Drop the history: it does not help to predict outputs after a discontinuity."""
        self.times, self.steps, self.scale, self.tried, self.overshoot, self.damping = [], [], None, 0, 1.0, 1.0

    @property
    def caution(self) -> float | None:
        """The divisor of the tolerance; None while nothing may be predicted.

        In a run from noise, the law and the measured errors have equal weight: the law may be wrong for a model, and a
        single error is mostly chance.

        In a run from an image, the first outputs change by up to twenty times what the law expects. The law is for
        trajectories from pure noise, and an image with added noise is not on the trajectory of its prompt. So nothing
        is predicted before an error has been measured (two, if the first is large), and errors larger than expected
        have full weight.
        """
        if self.from_noise:
            return self.overshoot if self.scale is None else math.sqrt(self.scale)
        if self.scale is None or (self.tried == 1 and self.scale > LARGE_FIRST_SCALE):
            return None
        return max(math.sqrt(self.scale), self.scale)

    def updated_scale(self, scale: float) -> float:
        """Return the error scale after a prediction error of this scale."""
        memory = MEMORY if self.from_noise else MEMORY_FROM_IMAGE
        return scale if self.scale is None else self.scale**memory * scale ** (1 - memory)

    def interpolation(self, now: float, time: float) -> list[float]:
        """Return the weights, in the interpolation at `time`, of the output computed now and of the slots."""
        # rounded timesteps may repeat, and a polynomial needs different times
        slots = [slot for slot, known in enumerate(self.times[: SLOTS - 1]) if not are_equal(known, now)]
        own, *others = lagrange([now, *(self.times[slot] for slot in slots)], time)
        weights = [0.0] * len(self.times)
        for slot, weight in zip(slots, others, strict=True):
            weights[slot] = weight
        return [own, *weights]

    def record(self, step: int, time: float, *, replaces: bool) -> None:
        """Note that a computed output is in slot 0.

        Args:
            replaces: it replaces the latest output, which was computed at the same time.
        """
        kept = 1 if replaces else 0
        self.times = [time, *self.times[kept:]][:SLOTS]
        self.steps = [step, *self.steps[kept:]][:SLOTS]
