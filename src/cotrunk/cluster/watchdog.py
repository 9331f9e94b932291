"""How long a cluster may be silent before a pass is given up: Ray has open reports of silent hangs."""

from collections.abc import Callable

TIMES = 10.0  # the expected time of a wave until it is overdue
STARTS = 3.0  # the time that painters took to start: new ones may have to, in place of those on a lost machine
START = 1800.0  # seconds until the first wave, whose time cannot be expected yet: machines start, models are loaded
LEAST = 30.0  # seconds: a network file system may hold a file back for as long


class Watchdog:
    """Learns how long waves take, and tells when no wave arrives although one should.

    It looks at the whole cluster. As long as waves arrive, a pass goes on: stopping it costs every machine the wave
    that it is working on. A wave that hangs alone is found when the others are done.

    Args:
        clock: returns the seconds.
        start, least: as `START` and `LEAST`.
    """

    def __init__(self, clock: Callable[[], float], start: float = START, least: float = LEAST) -> None:
        self._clock, self._start, self._least = clock, start, least
        self._rows, self._seconds, self._start_up = 0, 0.0, 0.0
        self._heard = clock()
        self._begun: float | None = None  # when the pass began of which no wave has arrived yet

    def begin(self) -> None:
        """Start to wait for the waves of a pass."""
        self._heard = self._begun = self._clock()

    def arrived(self, rows: int, seconds: float) -> None:
        """Learn from a finished wave.

        Args:
            rows: of the wave, as predicted.
            seconds: that it took.
        """
        self._rows += rows
        self._seconds += seconds
        self._heard = self._clock()
        if self._begun is not None:  # the first of its pass: until it began, processes started and loaded the model
            self._start_up = max(self._start_up, self._heard - self._begun - seconds)
            self._begun = None

    def expected(self, rows: int) -> float | None:
        """Return the seconds that a painter takes for a wave; None if no wave has arrived yet."""
        return rows * self._seconds / self._rows if self._rows else None

    def limit(self, heaviest: int) -> float:
        """Return how many seconds may pass without a finished wave.

        Args:
            heaviest: rows of the heaviest wave that is left.
        """
        expected = self.expected(heaviest)
        return self._start if expected is None else max(self._least, STARTS * self._start_up + TIMES * expected)

    def is_overdue(self, heaviest: int) -> bool:
        """Return whether no wave has arrived for too long.

        Args:
            heaviest: rows of the heaviest wave that is left.
        """
        return self._clock() - self._heard > self.limit(heaviest)
