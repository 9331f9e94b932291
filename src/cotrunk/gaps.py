"""How many evaluations to leave out: what a gap is expected to cost an image, and gaps of equal cost up to the end.

By how much a prediction misses an output follows one law along a whole trajectory, up to a factor: measured on `mini`
over 2,300 pairs of gaps, the law is right to a quarter. So the gaps of a run can be laid out before it begins, as an
engineer would: as many as the tolerance asks for, all of the same cost. What an image's own predictions miss tells its
factor, and its gaps are laid out anew each time it is computed.
"""

import functools
import itertools
import math
from bisect import bisect_right
from collections.abc import Callable

from .noise import NoiseSchedule

# the law: RMS by which a prediction misses the velocity, for data of deviation 1
REUSED = 1.5  # * (time since the last node), where the last output is used again
# * (1 + NOISY * time) * (time since the last node) * (time since the one before) ** BEND, where its trend goes on
TREND, BEND, NOISY = 0.8, 0.4, 0.3
LAST = 0.1  # a lower sigma counts as this one: the weight of late errors stays finite
SAME = 1e-6  # times closer than this are one
LEVELS = 20  # limits closer than one part in so many are one: images lay out their gaps together

Nodes = tuple[int, ...]  # steps that were computed, latest first: two, or one


class Gaps:
    """The gaps of a run.

    Args:
        schedule: its noise.
        timesteps: its steps, the last of which is computed.
        longest: most evaluations left out in a row.
        allowed: whether a prediction from these nodes to this step is to be made at all.
    """

    def __init__(
        self, schedule: NoiseSchedule, timesteps: int, longest: int, allowed: Callable[[Nodes, int], bool]
    ) -> None:
        self.schedule, self.timesteps, self.longest, self.allowed = schedule, timesteps, longest, allowed
        self._costs = functools.cache(self._costs_from)
        self._level = functools.cache(self._next_at)

    def expected_miss(self, nodes: Nodes, step: int) -> float:
        """RMS by which a prediction from these nodes misses the velocity at a step, by the law."""
        time = self.schedule.time(step)
        latest, *before = (max(0.0, self.schedule.time(node) - time) for node in nodes)
        return TREND * (1 + NOISY * time) * latest * before[0] ** BEND if before else REUSED * latest

    def next(self, nodes: Nodes, limit: float) -> int:
        """The step to compute after `nodes[0]`, if no gap is to cost more than `limit`.

        A gap costs the drift that the errors expected in it add up to. Of all limits that lead to the end in as few
        gaps, the lowest is taken: a last gap of two steps would be an evaluation wasted.
        """
        if not limit > 0:  # also where it is NaN
            return nodes[0] + 1
        return self._level(nodes, math.floor(LEVELS * math.log(limit)))

    def _next_at(self, nodes: Nodes, level: int) -> int:
        high, low = math.exp(level / LEVELS), 0.0
        gaps = self._number(nodes, high)
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (low, middle) if self._number(nodes, middle) <= gaps else (middle, high)
        return self._furthest(nodes, high)

    def _number(self, nodes: Nodes, limit: float) -> int:
        """Gaps from here to the last step."""
        for number in itertools.count():
            if nodes[0] >= self.timesteps - 1:
                return number
            nodes = (self._furthest(nodes, limit), nodes[0])
        raise AssertionError

    def _furthest(self, nodes: Nodes, limit: float) -> int:
        return nodes[0] + 1 + bisect_right(self._costs(nodes), limit)

    def _costs_from(self, nodes: Nodes) -> list[float]:
        """What it costs to leave out one evaluation after these nodes, two, ..."""
        if len(nodes) > 1 and abs(self.schedule.time(nodes[0]) - self.schedule.time(nodes[1])) < SAME:
            nodes = nodes[:1]  # rounded timesteps may repeat
        steps = range(nodes[0] + 1, min(nodes[0] + 1 + self.longest, self.timesteps - 1))
        reached = itertools.takewhile(functools.partial(self.allowed, nodes), steps)
        return list(itertools.accumulate(self._drift(step) * self.expected_miss(nodes, step) for step in reached))

    def _drift(self, step: int) -> float:
        """What an error of one in the velocity at this step does to the image: the change of the sample by the
        first-order solver, over the root of sigma, for towards the end no later evaluation puts it right."""
        return self.schedule.drift(step) / math.sqrt(max(self.schedule.levels[step][1], LAST))
