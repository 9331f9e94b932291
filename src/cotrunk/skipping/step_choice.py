"""Choose which steps to compute: skip as many as the tolerance allows, in gaps of equal expected error.

A gap is a series of skipped steps between two computed ones. The expected errors of predictions are known before a run
begins (`fitted.py`), up to a factor per image. So gaps of equal cost can be chosen before it begins. The measured
prediction errors of an image then give its factor, and its remaining gaps are chosen again whenever it is computed.
"""

import math
from bisect import bisect_right
from functools import lru_cache
from typing import Self

import numpy as np

from ..pipelines.noise_schedule import NoiseSchedule
from .fitted import FittedPredictions, Support
from .moments import SMALLEST_TIME, Moments

# Errors at noisy steps weigh 1 + EARLY_WEIGHT * time. A change of the sample there moves the final image about as much
# as one at the end, but for some images up to ten times as much.
EARLY_WEIGHT = 0.2
# Errors soon after a discontinuity weigh up to 1 + TRANSIENT_WEIGHT times as much: there the sample is still on its way
# to the trajectory of its prompt.
TRANSIENT_WEIGHT = 1.0
EQUAL_TIMES = 1e-6  # times closer than this are equal
LEVELS = 20  # limits are rounded down to powers of e ** (1 / LEVELS), so that images can use the same gaps
LONGEST = 12  # most steps skipped in a row
SLOTS = 3  # computed outputs kept per image: enough for a quadratic
LAYOUTS = 8192  # layouts of gaps kept
UNLIMITED = 1e9  # a limit above the cost of any gap


class Gaps:
    """The gaps of trajectories that begin at the same step of a run.

    Args:
        schedule: the noise schedule of the run.
        predictions: of the outputs along these trajectories.
        discontinuity: the step at which they begin, if they do not begin with noise.
        longest: most steps skipped in a row.
        terms: most support points of a prediction, besides the start of the trajectory.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        predictions: FittedPredictions,
        discontinuity: int | None = None,
        longest: int = LONGEST,
        terms: int = SLOTS,
    ) -> None:
        self.schedule, self.predictions = schedule, predictions
        self.stop = len(schedule.levels) - 1  # the last step is always computed
        self.longest, self.terms = longest, terms
        since = None if discontinuity is None else _begin_time(schedule, discontinuity)
        self._drifts = np.array([self._drift(step, since) for step in range(self.stop)])
        self._costs = lru_cache(LAYOUTS)(self._costs_from)
        self._found = lru_cache(LAYOUTS)(self._next_at)

    @classmethod
    @lru_cache(32)
    def of_run(cls, schedule: NoiseSchedule, discontinuity: int | None = None) -> Self:
        """Return the gaps of a run with the moments that come with the package: one object for equal runs.

        Images of one run, and further runs, need mostly the same layouts.

        Args:
            schedule: the noise schedule of the run.
            discontinuity: the step at which the trajectories begin; None for a run from noise.
        """
        if discontinuity is None:
            moments = Moments.stored().of_outputs(schedule)
        else:
            after = Moments.after_discontinuity(_begin_time(schedule, discontinuity))
            moments = after.of_outputs(schedule, discontinuity)
        return cls(schedule, FittedPredictions(moments), discontinuity)

    def expected_error(self, support: Support, step: int) -> float:
        """Return the expected RMS error of a predicted output at a step, as the error of a velocity."""
        return float(self.predictions.errors(support)[step]) * self.schedule.velocity(step)

    def extended(self, support: Support, step: int) -> Support:
        """Return the support of a prediction after this step is computed too."""
        points = [point for point in support if point != self.predictions.start]
        return (step, *points)[: self.terms] + support[len(points) :]

    def next(self, support: Support, limit: float) -> int:
        """Return the step to compute after `support[0]`, if no gap may cost more than `limit`.

        The cost of a gap is the sum of the drifts that its expected errors cause. The lowest limit that needs no more
        gaps until the end is used, so that the gaps have equal costs.
        """
        if not limit > 0:  # also if it is NaN
            return support[0] + 1
        level = math.floor(LEVELS * math.log(min(limit, UNLIMITED)))
        return self._found(support, level)

    def _next_at(self, support: Support, level: int) -> int:
        high, low = math.exp(level / LEVELS), 0.0
        gaps = self._number(support, high)
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (low, middle) if self._number(support, middle) <= gaps else (middle, high)
        return self._furthest(support, high)

    def _number(self, support: Support, limit: float) -> int:
        """Return the number of gaps from here to the stop."""
        number = 0
        while support[0] < self.stop:
            support = self.extended(support, self._furthest(support, limit))
            number += 1
        return number

    def _furthest(self, support: Support, limit: float) -> int:
        """Return the step that ends the longest gap within the limit."""
        return support[0] + 1 + bisect_right(self._costs(support), limit)

    def _costs_from(self, support: Support) -> list[float]:
        """Return the costs of skipping one step after these support points, two steps, and so on."""
        inside = slice(support[0] + 1, min(support[0] + 1 + self.longest, self.stop))
        costs: list[float] = np.cumsum(self._drifts[inside] * self.predictions.errors(support)[inside]).tolist()
        return costs

    def _drift(self, step: int, since: float | None) -> float:
        """Return how much an error of 1 in the output at this step changes the image.

        It is the change of the sample by the first-order solver, with more weight at noisy steps, and soon after a
        discontinuity.

        Args:
            step: of the run.
            since: the time of the discontinuity, if the trajectory begins with one.
        """
        time = self.schedule.time(step)
        weight = 1 + EARLY_WEIGHT * time
        if since is not None:
            weight *= 1 + TRANSIENT_WEIGHT * (time / since) ** 2
        return self.schedule.drift(step) * self.schedule.velocity(step) * weight


def _begin_time(schedule: NoiseSchedule, discontinuity: int) -> float:
    """Return the time of a discontinuity, or the latest one of a run that goes back in time (inversion)."""
    return max(SMALLEST_TIME, *(schedule.time(step) for step in range(discontinuity, len(schedule.levels))))


def are_equal(time: float, other: float) -> bool:
    """Return whether two times are equal except for rounding."""
    return abs(time - other) < EQUAL_TIMES
