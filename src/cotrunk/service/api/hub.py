"""Wakes the requests that wait for a job, when the worker or another request has written an event.

A wake-up only says that there is something to read: each waiting request reads the events of its job from the database,
after the last one that it has seen. So nothing is kept in memory for slow clients.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager

from anyio import to_thread

from ..store import Event, Store

POLL_SECONDS = 0.5  # in case a wake-up is lost
AGAIN = 200  # events read a second time: PostgreSQL may show a number after a higher one
ANY = frozenset({"accepted", "grouped", "step", "partial", "done", "failed", "cancelled"})
log = logging.getLogger("cotrunk.service")


class Hub:
    """Reads new events once for all waiting requests.

    Args:
        store: the jobs.
        seen: called with each new event.
        poll_seconds: between two looks without a wake-up.
    """

    def __init__(self, store: Store, seen: Callable[[Event], None], poll_seconds: float = POLL_SECONDS) -> None:
        self._store, self._seen, self._poll = store, seen, poll_seconds
        self._flags: dict[str, list[tuple[asyncio.Event, Container[str]]]] = {}
        self._new = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def wake(self) -> None:
        """Read new events now. Any thread may call this."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._new.set)

    @contextmanager
    def watch(self, job: str, kinds: Container[str] = ANY) -> Iterator[asyncio.Event]:
        """Return a flag that is set whenever a job has a new event of some kinds, until the block ends."""
        entry = (asyncio.Event(), kinds)
        self._flags.setdefault(job, []).append(entry)
        try:
            yield entry[0]
        finally:
            self._flags[job].remove(entry)
            if not self._flags[job]:
                del self._flags[job]

    async def run(self) -> None:
        """Read events until the task is cancelled. A database that does not answer is asked again."""
        self._loop = asyncio.get_running_loop()
        last: int | None = None
        known: deque[int] = deque(maxlen=2 * AGAIN)
        while True:
            try:
                if last is None:
                    last = await to_thread.run_sync(self._store.last_event)
                    first = last
                for event in await to_thread.run_sync(self._store.all_events, max(first, last - AGAIN)):
                    if event.id not in known:
                        known.append(event.id)
                        last = max(last, event.id)
                        self._seen(event)
                        for flag, kinds in self._flags.get(event.job, ()):
                            if event.kind in kinds:
                                flag.set()
            except Exception as error:
                log.warning("events cannot be read: %s", type(error).__name__)
                await asyncio.sleep(POLL_SECONDS)
            try:
                async with asyncio.timeout(self._poll):  # `wait_for` of Python 3.11 may swallow a cancellation
                    await self._new.wait()
            except TimeoutError:
                continue
            self._new.clear()
