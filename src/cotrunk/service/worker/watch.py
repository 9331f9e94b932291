"""The thread that gives signs of life, and learns of new and cancelled images, and of the end of the API process."""

import logging
import threading
import time

from ..channel import Channel, ClosedError
from ..store import Store

log = logging.getLogger("cotrunk.worker")
BEAT = 2.0  # seconds between signs of life, at most; an image that is cancelled without a message is noticed then
POLL = 0.5  # seconds between looks at the database without a channel, or if a message is lost


class Watch(threading.Thread):
    """Watches the channel and the database while the main thread generates.

    Attributes:
        cancelled: ids of images that were cancelled.
        is_orphaned: whether the API process is gone.

    Args:
        store: the database.
        worker: the name of this worker.
        channel: to the API process; None if there is none.
        lease_seconds: how long a sign of life counts.
    """

    def __init__(self, store: Store, worker: str, channel: Channel | None, lease_seconds: float) -> None:
        super().__init__(name="watch", daemon=True)
        self._store, self._worker, self._channel, self._seconds = store, worker, channel, lease_seconds
        self._news, self._ended = threading.Event(), threading.Event()
        self.cancelled: set[str] = set()
        self.is_orphaned = False

    def run(self) -> None:
        """Watch until `end` is called."""
        beat = min(BEAT, self._seconds / 4)
        due = time.monotonic()
        while not self._ended.is_set():
            kinds = self._messages(max(0.0, due - time.monotonic()))
            if kinds:
                self._news.set()
            if "cancel" in kinds or time.monotonic() >= due:
                self._beat()
                due = time.monotonic() + beat

    def _messages(self, seconds: float) -> set[str]:
        if self._channel is None or self.is_orphaned:
            self._ended.wait(min(seconds, POLL))
            return set()
        try:
            return {message.kind for message in self._channel.receive(min(seconds, POLL))}
        except ClosedError:
            self.is_orphaned = True
            return {"end"}

    def _beat(self) -> None:
        try:
            # a new set: the main thread reads the old one meanwhile
            self.cancelled = self.cancelled | set(self._store.heartbeat(self._worker, self._seconds))
        except Exception as error:  # the database may come back before the lease ends
            log.warning("No sign of life could be given: %s", error)

    def wait(self, seconds: float) -> None:
        """Wait until there is news, at most so long."""
        self._news.wait(min(seconds, POLL))
        self._news.clear()

    def take_news(self) -> bool:
        """Return whether there is news, once."""
        found = self._news.is_set()
        self._news.clear()
        return found

    def wake(self) -> None:
        """Let `wait` return."""
        self._news.set()

    def forget(self) -> None:
        """Forget which images were cancelled: those that this worker had have ended."""
        self.cancelled = set()

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        self.join(timeout=10)
