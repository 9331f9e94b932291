"""Rows that were computed for no image, so that the metrics can count them."""

import threading


class LostRows:
    """Counts rows of calls that failed or were left, and rows of images that failed, were cancelled or were done.

    The main thread says what a call computes, and the writer's thread what came of it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = 0.0
        self._call: object = None
        self._rows = 0  # of the running call so far

    @property
    def total(self) -> float:
        """The rows that were lost so far."""
        return self._total

    def add(self, rows: float) -> None:
        """Count rows of a call that was delivered, but not for an image that is done now."""
        with self._lock:
            self._total += max(0.0, rows)

    def step(self, call: object, rows: int) -> None:
        """Note how many rows the running call has computed. If it is another call, the one before was given up."""
        if call is not self._call:
            self.end()
        self._call, self._rows = call, rows

    def delivered(self) -> None:
        """Note that the images of the running call are delivered."""
        self._call, self._rows = None, 0

    def end(self) -> None:
        """Note that the running call ends, delivered or not."""
        self.add(self._rows)
        self.delivered()
