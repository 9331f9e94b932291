"""Which worker a waiting image is meant for, in a service with several workers. Functions on a transaction of `Store`.

An image with an assignment is leased by its worker only, so that similar images meet there. The assignment of a worker
that has died does not count, and an idle worker may adopt what waits for a busy one.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from . import jobs
from .process import is_gone
from .records import ImageRow
from .tables import assignments, images, workers


def alive(connection: Connection, now: float) -> set[str]:
    """Return the workers whose leases count."""
    return {row.id for row in connection.execute(select(workers)) if row.expires > now and not is_gone(row.process)}


def waiting(connection: Connection, worker: str, limit: int) -> list[ImageRow]:
    """Return the waiting images of a worker, oldest first."""
    query = select(images).join(assignments, assignments.c.image == images.c.id)
    query = query.where(assignments.c.worker == worker, images.c.state == "waiting")
    return jobs.image_rows(connection, query.order_by(images.c.order).limit(limit))


def unassigned(connection: Connection, now: float, limit: int) -> list[ImageRow]:
    """Return waiting images that no living worker has, oldest first."""
    query = _with_assignments(select(images)).where(_is_free(alive(connection, now)))
    return jobs.image_rows(connection, query.order_by(images.c.order).limit(limit))


def assign(connection: Connection, worker: str, route: str, identifiers: Sequence[str]) -> int:
    """Assign those of some images that wait; return how many."""
    count = 0
    for start in range(0, len(identifiers), jobs.CHUNK):
        part = images.c.id.in_(identifiers[start : start + jobs.CHUNK])
        still = list(connection.scalars(select(images.c.id).where(part, images.c.state == "waiting")))
        if not still:
            continue
        insert = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(assignments)
        made = insert.values([{"image": image, "route": route, "worker": worker} for image in sorted(still)])
        set_ = {"route": made.excluded.route, "worker": made.excluded.worker}
        connection.execute(made.on_conflict_do_update(index_elements=["image"], set_=set_))
        count += len(still)
    return count


def adoptable(
    connection: Connection, now: float, worker: str, busy_seconds: float, gone_seconds: float, most: int
) -> tuple[str, list[str]] | None:
    """Return the route of the oldest image that a worker may adopt, and that image and others of the same route.

    They wait for a living worker for `busy_seconds`, or for none at all for `gone_seconds`. None if there are none.
    """
    living = alive(connection, now)
    is_late = (assignments.c.worker.in_(living - {worker})) & (images.c.accepted <= now - busy_seconds)
    is_lost = _is_free(living) & (images.c.accepted <= now - gone_seconds)
    route = func.coalesce(assignments.c.route, images.c.bucket)
    query = _with_assignments(select(images.c.id, route.label("route"))).where(or_(is_late, is_lost))
    first = connection.execute(query.order_by(images.c.order).limit(1)).one_or_none()
    if first is None:
        return None
    same = query.where(route == first.route).order_by(images.c.order).limit(most)
    return first.route, [row.id for row in connection.execute(same)]


def forget(connection: Connection, identifiers: Sequence[str]) -> None:
    """Remove the assignments of images that do not wait any more."""
    for start in range(0, len(identifiers), jobs.CHUNK):
        part = assignments.c.image.in_(identifiers[start : start + jobs.CHUNK])
        connection.execute(delete(assignments).where(part))


def _with_assignments(query: Select[Any]) -> Select[Any]:
    joined = query.outerjoin(assignments, assignments.c.image == images.c.id)
    return joined.where(images.c.state == "waiting")


def _is_free(living: set[str]) -> Any:
    return or_(assignments.c.worker.is_(None), assignments.c.worker.not_in(living))
