"""Let large jobs and batches enter the queue in parts, all at the same time, so that none blocks the others.

Together they fill at most half of the queue: the other half is for small requests. Each owner has an equal share
of that, and each of its jobs an equal share of the owner's. A part goes to the end of the queue.
"""

from sqlalchemy import Connection, delete, func, insert, select

from . import jobs
from .room import HELD, lock_queue
from .tables import images

PARTS = 2  # large jobs and batches fill the queue to 1/2 at most, and at most 1/2 of the share of their owner


def has_held(connection: Connection) -> bool:
    return connection.scalar(select(images.c.id).where(images.c.state == HELD).limit(1)) is not None


def feed(connection: Connection, most: int, most_of_owner: int | None) -> int:
    """Let held images enter the queue; return how many.

    Args:
        connection: to the database.
        most: rows that may wait.
        most_of_owner: rows of one owner that may wait; None for all of them.
    """
    lock_queue(connection)
    held = select(images.c.job, images.c.owner).where(images.c.state == HELD).group_by(images.c.job, images.c.owner)
    owners: dict[str, list[str]] = {}
    for row in connection.execute(held.order_by(func.min(images.c.order))):
        owners.setdefault(row.owner, []).append(row.job)
    jobs.hold(connection, [job for own in owners.values() for job in own])
    share = min(most // max(1, len(owners)), most if most_of_owner is None else most_of_owner) // PARTS
    return sum(_feed_job(connection, job, share // len(own)) for own in owners.values() for job in own)


def _feed_job(connection: Connection, job: str, share: int) -> int:
    """Let images of a job enter the queue until so many of its rows wait, or one image if none of them waits."""
    waits = select(func.coalesce(func.sum(images.c.rows), 0)).where(images.c.job == job, images.c.state == "waiting")
    waiting = connection.scalar(waits) or 0
    room, ids = share - waiting, list[str]()
    if room <= 0 and waiting:
        return 0
    held = select(images.c.id, images.c.rows).where(images.c.job == job, images.c.state == HELD)
    for row in connection.execute(held.order_by(images.c.number)).all():
        room -= row.rows
        if room < 0 and (waiting or ids):
            break
        ids.append(row.id)
    for start in range(0, len(ids), jobs.CHUNK):
        own = images.c.id.in_(ids[start : start + jobs.CHUNK])
        part = connection.execute(select(images).where(own).order_by(images.c.number)).mappings().all()
        connection.execute(delete(images).where(own))
        # with a new place in the queue: the old one is before images that came later, and may be hours old
        again = [{name: row[name] for name in row if name != "order"} | {"state": "waiting"} for row in part]
        connection.execute(insert(images), again)
    return len(ids)
