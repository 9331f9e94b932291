"""Choose which steps to compute: skip as many as the tolerance allows, in gaps of equal expected error.

A gap is a series of skipped steps between two computed ones. Along a whole trajectory from pure noise, prediction
errors follow one law up to a factor (measured on `mini` with undamped trends: `benchmarks/prediction_errors.py`). So
gaps of equal cost can be chosen before a run begins. The measured prediction errors of an image then give its factor,
and its remaining gaps are chosen again whenever it is computed.
"""

import math
from bisect import bisect_right
from collections.abc import Callable

from ..pipelines.noise_schedule import NoiseSchedule

# The law: the RMS error of a predicted velocity, if x0 has standard deviation 1. `a` is the time since the latest
# support point, and `b` the time since the one before it.
REUSE_ERROR = 0.9  # error = REUSE_ERROR * a, if the last output is reused
# error = TREND_ERROR * (1 + NOISE_GROWTH * time) * a * b ** SPACING_EXPONENT, if the trend of the last two goes on
TREND_ERROR, SPACING_EXPONENT, NOISE_GROWTH = 0.8, 0.4, 0.3
SMALLEST_SIGMA = 0.1  # lower sigmas count as this one, so that the weight of late errors stays finite
EQUAL_TIMES = 1e-6  # times closer than this are equal
LEVELS = 20  # limits are rounded down to powers of e ** (1 / LEVELS), so that images can use the same gaps
UNLIMITED = 1e9  # a limit above the cost of any gap

Support = tuple[int, ...]  # the computed steps that a prediction uses, latest first


class Gaps:
    """The gaps of one run.

    Args:
        schedule: the noise schedule of the run.
        stop: the step at which the last gap ends.
        longest: most steps skipped in a row.
        terms: number of support points of a prediction.
        allowed: returns whether outputs at these times may predict an output at this time.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        stop: int,
        longest: int,
        terms: int,
        allowed: Callable[[list[float], float], bool],
    ) -> None:
        self.schedule, self.stop, self.longest, self.terms, self.allowed = schedule, stop, longest, terms, allowed
        self._costs: dict[Support, list[float]] = {}
        self._found: dict[tuple[Support, int], int] = {}

    def expected_error(self, support: Support, step: int) -> float:
        """Return the RMS error that the law expects of a velocity predicted at a step.

        It depends on the latest two support points only.
        """
        time = self.schedule.time(step)
        latest, *before = (abs(self.schedule.time(point) - time) for point in support)  # inversion goes back in time
        if not before:
            return REUSE_ERROR * latest
        return TREND_ERROR * (1 + NOISE_GROWTH * time) * latest * before[0] ** SPACING_EXPONENT

    def next(self, support: Support, limit: float) -> int:
        """Return the step to compute after `support[0]`, if no gap may cost more than `limit`.

        The cost of a gap is the sum of the drifts that its expected errors cause. The lowest limit that needs no more
        gaps until the end is used, so that the gaps have equal costs.
        """
        if not limit > 0:  # also if it is NaN
            return support[0] + 1
        level = math.floor(LEVELS * math.log(min(limit, UNLIMITED)))
        if (support, level) not in self._found:
            self._found[support, level] = self._next_at(support, level)
        return self._found[support, level]

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
            support = (self._furthest(support, limit), *support)[: self.terms]
            number += 1
        return number

    def _furthest(self, support: Support, limit: float) -> int:
        """Return the step that ends the longest gap within the limit."""
        if support not in self._costs:
            self._costs[support] = self._costs_from(support)
        return support[0] + 1 + bisect_right(self._costs[support], limit)

    def _costs_from(self, support: Support) -> list[float]:
        """Return the costs of skipping one step after these support points, two steps, and so on."""
        time = self.schedule.time
        pairs = zip(support[1:], support, strict=False)
        # rounded timesteps may repeat, and a polynomial needs different times
        support = (support[0], *(point for point, later in pairs if not are_equal(time(point), time(later))))
        times, costs, cost = [time(point) for point in support], list[float](), 0.0
        for step in range(support[0] + 1, min(support[0] + 1 + self.longest, self.stop)):
            if not self.allowed(times, time(step)):
                break
            cost += self._drift(step) * self.expected_error(support, step)
            costs.append(cost)
        return costs

    def _drift(self, step: int) -> float:
        """Return how much an error of 1 in the velocity at this step changes the image.

        It is the change of the sample by the first-order solver, divided by the root of sigma: errors towards the end
        weigh more, because fewer later evaluations correct them.
        """
        return self.schedule.drift(step) / math.sqrt(max(self.schedule.levels[step][1], SMALLEST_SIGMA))


def are_equal(time: float, other: float) -> bool:
    """Return whether two times are equal except for rounding."""
    return abs(time - other) < EQUAL_TIMES
