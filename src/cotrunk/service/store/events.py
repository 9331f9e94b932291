"""Events of a job, in the order in which they happened.

A database may number events in another order than their transactions end, so a reader could miss an event with a lower
number. Therefore every transaction that adds an event holds the row of its job (`jobs.hold`).
"""

from typing import Any

from sqlalchemy import Connection, Select, func, insert, select

from .records import Event
from .tables import events

COLUMNS = (events.c.id, events.c.job, events.c.kind, events.c.data, events.c.created)
LIMIT = 500  # events per reading; the reader asks again after the last


def add(connection: Connection, now: float, job: str, kind: str, data: dict[str, Any]) -> None:
    connection.execute(insert(events).values(job=job, kind=kind, data=data, created=now))


def after(connection: Connection, job: str, last: int) -> list[Event]:
    """Return the events of a job with a number above `last`, oldest first, at most `LIMIT`."""
    return _read(connection, select(*COLUMNS).where(events.c.job == job), last)


def of_all_jobs(connection: Connection, last: int) -> list[Event]:
    """Return the events of all jobs with a number above `last`, at most `LIMIT`.

    A reader may miss some, because those of different jobs may get their numbers in another order than they appear.
    """
    return _read(connection, select(*COLUMNS), last)


def newest(connection: Connection) -> int:
    """Return the highest number of an event, 0 if there are none."""
    return connection.scalar(select(func.max(events.c.id))) or 0


def _read(connection: Connection, query: Select[Any], last: int) -> list[Event]:
    last = max(-1, min(last, 2**62))
    found = query.where(events.c.id > last).order_by(events.c.id).limit(LIMIT)
    return [Event(*row) for row in connection.execute(found)]
