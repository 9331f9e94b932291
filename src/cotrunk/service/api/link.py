"""What the API process knows about its worker."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

from ..channel import Channel, Message
from ..shapes import ModelFacts

State = Literal["starting", "ready", "restarting", "stopped"]


class WorkerLink:
    """The state of the worker and the way to wake it. Any thread may use it.

    Attributes:
        state: whether it is ready.
        facts: what it says about its model; None until it has been ready once.
        worker: the name of the worker that has started last; None before.
        rows_per_second: its measured speed; None until it has measured it.
        call_rows: that its latest call took off the queue.
        call_seconds: that its latest call took.
        call_ended: when its latest call ended, by `time.monotonic`.
        lost_rows: that all workers have computed for no image.
        restarts: how often it was started again.
        woken: called when the worker has written something.
    """

    def __init__(self) -> None:
        self.state: State = "starting"
        self.facts: ModelFacts | None = None
        self.worker: str | None = None
        self.rows_per_second: float | None = None
        self.call_rows = self.call_seconds = self.call_ended = 0.0
        self.lost_rows = self._lost = 0.0
        self.restarts = 0
        self.woken: Callable[[], None] = lambda: None
        self._channel: Channel | None = None
        self._lock = threading.Lock()

    def connect(self, channel: Channel | None) -> None:
        """Use this channel from now on; None while there is no worker."""
        with self._lock:
            self._channel = channel

    def send(self, kind: str, **data: Any) -> None:
        """Wake the worker, if there is one. What it must know is in the database."""
        with self._lock, suppress(ValueError):  # a socket that was closed meanwhile
            if self._channel is not None:
                self._channel.send(kind, **data)

    def take(self, message: Message) -> None:
        """Take note of a message of the worker."""
        if message.kind == "ready":
            facts: Any = message.data
            self.facts, self.state, self._lost = facts, "ready", 0.0
        elif message.kind == "started":
            self.worker = str(message.data["worker"])
        elif message.kind == "speed":
            self.rows_per_second = float(message.data["rows_per_second"])
            self.call_rows, self.call_seconds = float(message.data["rows"]), float(message.data["seconds"])
            self.call_ended = time.monotonic()
        elif message.kind == "lost":  # a sum, so that it does not matter if a message is dropped
            rows = float(message.data["rows"])
            self.lost_rows, self._lost = self.lost_rows + max(0.0, rows - self._lost), rows
        self.woken()

    def seconds_until(self, rows: float) -> float | None:
        """Return after how many seconds so many rows have left the queue; None until the speed is known.

        Images leave it call by call, so the next ones leave when the current call ends.

        Args:
            rows: one by one, as the queue counts them.
        """
        if not self.rows_per_second:
            return None
        running = self.call_ended + self.call_seconds - time.monotonic()
        return max(0.0, running) + max(0.0, rows - self.call_rows) / self.rows_per_second
