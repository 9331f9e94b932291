"""How many evaluations to leave out: what a gap is expected to cost an image, and gaps of equal cost up to the end.

By how much a prediction misses an output follows one law along a whole trajectory from pure noise, up to a factor
(measured on `mini`, with trends taken on in full: `benchmarks/misses.py`). So the gaps of a run can be laid out before
it begins: as many as the tolerance asks for, all of the same cost. What an image's own predictions miss tells its
factor, and its gaps are laid out anew each time it is computed.
"""

import math
from bisect import bisect_right
from collections.abc import Callable

from ..pipelines.noise_schedule import NoiseSchedule

# the law: RMS by which a prediction misses the velocity, for data of deviation 1
REUSED = 0.9  # * (time since the last node), where the last output is used again
# * (1 + NOISY * time) * (time since the last node) * (time since the one before) ** BEND, where its trend goes on
TREND, BEND, NOISY = 0.8, 0.4, 0.3
LAST = 0.1  # a lower sigma counts as this one: the weight of late errors stays finite
SAME = 1e-6  # times closer than this are one
LEVELS = 20  # limits closer than one part in so many are one: images lay out their gaps together

HIGHEST = 1e9  # limit: every prediction costs less

Nodes = tuple[int, ...]  # steps that were computed, latest first: those that a prediction rests on


class Gaps:
    """The gaps of a run.

    Args:
        schedule: its noise.
        stop: the step at which the last gap ends.
        longest: most evaluations left out in a row.
        knots: nodes that a prediction rests on.
        allowed: whether a prediction from nodes at these times to this time is to be made at all.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        stop: int,
        longest: int,
        knots: int,
        allowed: Callable[[list[float], float], bool],
    ) -> None:
        self.schedule, self.stop, self.longest, self.knots, self.allowed = schedule, stop, longest, knots, allowed
        self._costs: dict[Nodes, list[float]] = {}
        self._found: dict[tuple[Nodes, int], int] = {}

    def expected_miss(self, nodes: Nodes, step: int) -> float:
        """RMS by which a prediction from these nodes misses the velocity at a step, by the law. More than two nodes
        count as two."""
        time = self.schedule.time(step)
        latest, *before = (abs(self.schedule.time(node) - time) for node in nodes)  # inversion goes back in time
        return TREND * (1 + NOISY * time) * latest * before[0] ** BEND if before else REUSED * latest

    def next(self, nodes: Nodes, limit: float) -> int:
        """The step to compute after `nodes[0]`, before `stop`, if no gap is to cost more than `limit`.

        A gap costs the drift that the errors expected in it add up to. Of all limits that lead to the end in as few
        gaps, the lowest is taken: a last gap of two steps would be an evaluation wasted.
        """
        if not limit > 0:  # also where it is NaN
            return nodes[0] + 1
        level = math.floor(LEVELS * math.log(min(limit, HIGHEST)))
        if (nodes, level) not in self._found:
            self._found[nodes, level] = self._next_at(nodes, level)
        return self._found[nodes, level]

    def _next_at(self, nodes: Nodes, level: int) -> int:
        high, low = math.exp(level / LEVELS), 0.0
        gaps = self._number(nodes, high)
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (low, middle) if self._number(nodes, middle) <= gaps else (middle, high)
        return self._furthest(nodes, high)

    def _number(self, nodes: Nodes, limit: float) -> int:
        """Gaps from here to the stop."""
        number = 0
        while nodes[0] < self.stop:
            nodes = (self._furthest(nodes, limit), *nodes)[: self.knots]
            number += 1
        return number

    def _furthest(self, nodes: Nodes, limit: float) -> int:
        if nodes not in self._costs:
            self._costs[nodes] = self._costs_from(nodes)
        return nodes[0] + 1 + bisect_right(self._costs[nodes], limit)

    def _costs_from(self, nodes: Nodes) -> list[float]:
        """What it costs to leave out one evaluation after these nodes, two, ..."""
        time = self.schedule.time
        pairs = zip(nodes[1:], nodes, strict=False)
        # rounded timesteps may repeat: equal times are no two nodes
        nodes = (nodes[0], *(node for node, later in pairs if not same(time(node), time(later))))
        times, costs, cost = [time(node) for node in nodes], list[float](), 0.0
        for step in range(nodes[0] + 1, min(nodes[0] + 1 + self.longest, self.stop)):
            if not self.allowed(times, time(step)):
                break
            cost += self._drift(step) * self.expected_miss(nodes, step)
            costs.append(cost)
        return costs

    def _drift(self, step: int) -> float:
        """What an error of one in the velocity at this step does to the image: the change of the sample by the
        first-order solver, over the root of sigma, for towards the end no later evaluation puts it right."""
        return self.schedule.drift(step) / math.sqrt(max(self.schedule.levels[step][1], LAST))


def same(time: float, other: float) -> bool:
    return abs(time - other) < SAME
