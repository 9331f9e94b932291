"""Wait for a job: for its end, or for each of its events."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from fastapi import Request

from ..store import Event, Job
from ..store.records import ENDED
from .state import Service, in_thread

ENDS = frozenset({"done", "failed", "cancelled"})
FALLBACK_SECONDS = 10.0  # a request looks at its job so often although nothing has woken it


class GoneError(Exception):
    """The client does not wait any more."""


async def follow(service: Service, owner: str, job: str, after: int = 0) -> AsyncIterator[Event]:
    """Yield the events of a job with a number above `after`, until the job has ended."""
    with service.hub.watch(job) as flag:
        while True:
            # looked up before its events are read, so none that came before the end is missed
            found = await in_thread(service.store.job, owner, job)
            while events := await in_thread(service.store.events, owner, job, after):
                for event in events:
                    after = event.id
                    yield event
            if found is None or found.state in ENDED:
                return
            await _flagged(flag)


async def ended(service: Service, request: Request, owner: str, job: str) -> Job:
    """Return a job when it has ended.

    Raises:
        GoneError: the client has gone.
        TimeoutError: it has not ended within the limit of the service.
    """
    gone = asyncio.ensure_future(_gone(request))
    try:
        with service.hub.watch(job, ENDS) as flag:
            async with asyncio.timeout(service.limits.timeout):
                while True:
                    found = await in_thread(service.store.job, owner, job)
                    if found is None or found.state in ENDED:
                        assert found is not None, "a job that is waited for is not removed"
                        return found
                    await _flagged(flag, gone)
                    if gone.done():
                        raise GoneError
    finally:
        gone.cancel()


async def _flagged(flag: asyncio.Event, other: "asyncio.Future[None] | None" = None) -> None:
    """Wait until a flag is set, until something else ends, or for a while; clear the flag."""
    waiting = asyncio.ensure_future(flag.wait())
    try:
        both: list[asyncio.Future[Any]] = [waiting] if other is None else [waiting, other]
        await asyncio.wait(both, timeout=FALLBACK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
    flag.clear()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
