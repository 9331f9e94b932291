"""How much of the queue a job may take. A large job and a batch enter the queue in parts (`parts.py`).

Their other images have the state "held": no worker sees them, and clients see them as waiting.
"""

from sqlalchemy import Connection, func, select, text

from .records import JobKind, QueueFull, TooManyPlans
from .tables import images, jobs

QUEUE_LOCK = 0x636F7473  # an advisory lock of PostgreSQL; any number that nothing else uses ("cots")
HELD = "held"


def is_in_parts(
    connection: Connection, owner: str, kind: JobKind, rows: int, most: int | None, most_of_owner: int | None
) -> bool:
    """Return whether the images of a new job enter the queue in parts.

    Args:
        connection: to the database.
        owner: of the job.
        kind: of the job; a batch is never refused.
        rows: of the job.
        most: rows that may wait; None for no limit.
        most_of_owner: rows of one owner that may wait; None for all of them.

    Raises:
        QueueFull: the owner has images in the queue, and with this job too many; or the queue has no room for it.
    """
    if most is None:
        return False
    if kind == "batch":
        return True
    lock_queue(connection)
    waiting = waiting_rows(connection)
    own = waiting if most_of_owner is None else waiting_rows(connection, owner)
    share = most if most_of_owner is None else min(most, most_of_owner)
    is_large = rows > share  # one large job of an owner at a time: it may take hours
    if own + rows > share and (own or (is_large and _has_held(connection, owner))):
        raise QueueFull(own, share, is_of_owner=most_of_owner is not None)
    if waiting and waiting + min(rows, share) > most:  # an empty queue takes a job of any size
        raise QueueFull(waiting, most)
    return is_large


def check_plans(connection: Connection, owner: str, most: int | None) -> None:
    """Check that an owner may ask for the plan that was just recorded.

    Raises:
        TooManyPlans: too many of its plans are not answered yet.
    """
    if most is None:
        return
    unanswered = select(func.count()).where(
        jobs.c.kind == "plan", jobs.c.state.in_(("waiting", "running")), jobs.c.owner == owner
    )
    if (connection.scalar(unanswered) or 0) > most:
        raise TooManyPlans(most)


def lock_queue(connection: Connection) -> None:
    """Let one transaction at a time read how full the queue is and add to it. SQLite has only one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": QUEUE_LOCK})


def waiting_rows(connection: Connection, owner: str | None = None) -> int:
    """Return the rows that wait: all, or those of an owner."""
    query = select(func.coalesce(func.sum(images.c.rows), 0)).where(images.c.state == "waiting")
    return connection.scalar(query if owner is None else query.where(images.c.owner == owner)) or 0


def _has_held(connection: Connection, owner: str) -> bool:
    """Return whether a job of an owner that is not a batch has images that are still to enter the queue."""
    query = select(images.c.id).join(jobs, jobs.c.id == images.c.job)
    held = query.where(images.c.state == HELD, images.c.owner == owner, jobs.c.kind != "batch")
    return connection.scalar(held.limit(1)) is not None
