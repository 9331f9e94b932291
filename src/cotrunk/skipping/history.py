"""What the computed outputs of one image say about how well its next outputs can be predicted."""

import math
from dataclasses import dataclass, field

from .extrapolation import lagrange
from .step_choice import are_equal

SLOTS = 3  # computed outputs kept per image: enough for a quadratic
SMALLEST_SCALE = 1e-3  # the error scale of an image is clamped to [1e-3, 1e3]
# share of the earlier error scale in the new one (geometrically): a single prediction error is mostly chance
MEMORY = 0.8
MEMORY_FROM_IMAGE = 0.5  # the same in a run that begins in the middle, whose first outputs soon settle
LARGE_FIRST_SCALE = 2.0  # above it, a first error scale in such a run may still grow, so another prediction is tried


@dataclass
class History:
    """What is known of one image.

    Attributes:
        times, steps: of its latest computed outputs, latest first: slots 0, 1, ... of `Trajectories.outputs`.
        last: the step at which it was computed last.
        scale: its prediction errors relative to those that the law of `step_choice.py` expects; None before any was
            measured.
        tried: number of prediction errors measured.
        overshoot: stands for the scale until then, in a run from noise.
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
        """Drop what was computed so far: it says nothing about the outputs after a discontinuity."""
        self.times, self.steps, self.scale, self.tried, self.overshoot, self.damping = [], [], None, 0, 1.0, 1.0

    @property
    def caution(self) -> float | None:
        """The divisor of the tolerance; None while nothing may be predicted.

        In a run from noise, the law and the measured errors count alike: the law may be wrong for a model, and a single
        error is mostly chance. The law is about outputs that follow the trajectory from pure noise. An image with noise
        added is not on the trajectory of its prompt, and the first outputs move over to it by up to twenty times what
        the law expects. So there nothing is predicted before an error has been measured (two, if the first is large),
        and errors larger than expected count in full.
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
        """Return the weights of the output computed now, and of the slots, in the interpolation at `time`."""
        # rounded timesteps may repeat, and a polynomial needs different times
        slots = [slot for slot, known in enumerate(self.times[: SLOTS - 1]) if not are_equal(known, now)]
        own, *others = lagrange([now, *(self.times[slot] for slot in slots)], time)
        weights = [0.0] * len(self.times)
        for slot, weight in zip(slots, others, strict=True):
            weights[slot] = weight
        return [own, *weights]

    def record(self, step: int, time: float, *, replaces: bool) -> None:
        """Note a computed output in slot 0. replaces: it takes the place of the latest, computed at the same time."""
        kept = 1 if replaces else 0
        self.times = [time, *self.times[kept:]][:SLOTS]
        self.steps = [step, *self.steps[kept:]][:SLOTS]
