"""Which worker generates which image. Functions on a transaction that `Store` opens.

A lease is the name of a worker in the row of the image. All leases of a worker end together: when its heartbeat stops.
The name is new for each process, so a process that was given up cannot finish images that another has now.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from . import assignments, events, jobs
from .ids import is_id, new_id
from .process import identity, is_gone
from .records import Group, ImageRow
from .tables import groups, images, workers

Tell = Callable[[Group, list[str]], dict[str, Any]]
TOGETHER = 2  # attempts with the whole group; the next is for each image alone
ATTEMPTS = 3  # attempts in all; after the last an image is set aside


def waiting(connection: Connection, limit: int) -> list[ImageRow]:
    query = select(images).where(images.c.state == "waiting").order_by(images.c.order).limit(limit)
    return jobs.image_rows(connection, query)


def extend(connection: Connection, now: float, worker: str, seconds: float) -> None:
    """Keep a worker's leases for some more seconds."""
    # one statement: a worker's threads give their first signs of life at the same time
    made = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(workers)
    made = made.values(id=worker, expires=now + seconds, process=identity())
    connection.execute(made.on_conflict_do_update(index_elements=["id"], set_={"expires": made.excluded.expires}))


def stopped(connection: Connection, worker: str) -> tuple[str, ...]:
    """Return the images of a worker that were cancelled since the last time."""
    stopped = update(images).where(images.c.worker == worker, images.c.state == "cancelled").values(worker=None)
    return tuple(connection.scalars(stopped.returning(images.c.id)))


def lease(
    connection: Connection, now: float, worker: str, wanted: Sequence[tuple[Sequence[str], Any]], tell: Tell | None
) -> list[Group]:
    """Record groups with their plans, and give those of their images that still wait to the worker."""
    held = _hold(connection, [image for ids, _ in wanted for image in ids])
    made = []
    for ids, plan in wanted:
        group = new_id("grp")
        connection.execute(insert(groups).values(id=group, images=[*ids], plan=plan, attempt=1, created=now))
        by_job: dict[str, list[str]] = {}
        for image in ids:
            if image in held:
                by_job.setdefault(held[image], []).append(image)
        taken = set[str]()
        for job, of_job in sorted(by_job.items()):
            values = {"worker": worker, "group": group, "attempts": images.c.attempts + 1}
            moved = jobs.move(connection, now, job, of_job, ("waiting",), "running", **values)
            taken.update(moved)
        if not taken:
            connection.execute(delete(groups).where(groups.c.id == group))
            continue
        assignments.forget(connection, sorted(taken))
        granted = tuple(image for image in ids if image in taken)
        made.append(Group(group, granted, plan, 1))
        for job, of_job in sorted(by_job.items()):
            if own := [image for image in of_job if image in taken]:
                _announce(connection, now, job, made[-1], own, tell)
    return made


def _announce(connection: Connection, now: float, job: str, group: Group, own: list[str], tell: Tell | None) -> None:
    """Tell a job which of its images are generated together, and with which others."""
    data = {"group": group.id, "images": own, "shared_with": [*group.images]}
    events.add(connection, now, job, "grouped", data | (tell(group, own) if tell else {}))


def _hold(connection: Connection, identifiers: Sequence[str]) -> dict[str, str]:
    """Hold the jobs of images, and return the job of each image that exists."""
    known = [image for image in identifiers if is_id(image)]
    found: dict[str, str] = {}
    for start in range(0, len(known), jobs.CHUNK):
        query = select(images.c.id, images.c.job).where(images.c.id.in_(known[start : start + jobs.CHUNK]))
        found.update({row.id: row.job for row in connection.execute(query)})
    jobs.hold(connection, found.values())
    return found


def end(
    connection: Connection,
    now: float,
    worker: str,
    image: str,
    state: str,
    result: Any = None,
    reason: str | None = None,
) -> bool:
    """Record that an image is done or failed; return False if it is not this worker's any more."""
    held = _hold(connection, [image])
    own = select(images.c.number).where(images.c.id == image, images.c.worker == worker, images.c.state == "running")
    number = connection.scalar(own)
    if number is None:
        return False
    _record(connection, now, held[image], image, number, "running", state, result=result, reason=reason)
    return True


def _record(
    connection: Connection,
    now: float,
    job: str,
    image: str,
    number: int,
    before: str,
    state: str,
    result: Any = None,
    reason: str | None = None,
) -> None:
    """Record that an image of a job has ended. The transaction holds the job."""
    reason = reason and storable(reason)
    jobs.move(connection, now, job, [image], (before,), state, worker=None, result=result, reason=reason)
    data = {"image": image, "number": number, "state": jobs.state_of(connection, job)}
    events.add(connection, now, job, state, data | ({"reason": reason} if reason else {"result": result}))


def storable(text: str) -> str:
    """Return a text without what a column of a database cannot hold: NUL, and halves of surrogate pairs."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def refuse(connection: Connection, now: float, image: str, reason: str) -> bool:
    """Record that a waiting image cannot be generated; return False if it does not wait any more."""
    held = _hold(connection, [image])
    number = connection.scalar(select(images.c.number).where(images.c.id == image, images.c.state == "waiting"))
    if number is None:
        return False
    _record(connection, now, held[image], image, number, "waiting", "failed", reason=reason)
    return True


def tried(connection: Connection, now: float, identifiers: Sequence[str]) -> None:
    """Count an attempt of images that wait: the worker has to end, and one of them may be why.

    After the last attempt an image is set aside.
    """
    _hold(connection, identifiers)
    for start in range(0, len(identifiers), jobs.CHUNK):
        own = images.c.id.in_(identifiers[start : start + jobs.CHUNK]) & (images.c.state == "waiting")
        connection.execute(update(images).where(own).values(attempts=images.c.attempts + 1))
        over = select(images.c.id).where(own, images.c.attempts >= ATTEMPTS).order_by(images.c.order)
        for image in list(connection.scalars(over)):
            reason = f"set aside: the worker died {ATTEMPTS} times while it compared this image with others"
            refuse(connection, now, image, reason)


def end_all(connection: Connection, now: float, worker: str, results: Sequence[tuple[str, dict[str, Any]]]) -> int:
    """Record that images are done; return how many."""
    _hold(connection, [image for image, _ in results])  # all at once: two transactions must not wait for each other
    return sum(end(connection, now, worker, image, "done", result=result) for image, result in results)


def give_up(connection: Connection, worker: str) -> None:
    """Let the leases of a worker end now: its process has ended."""
    connection.execute(update(workers).where(workers.c.id == worker).values(expires=0.0))


def release(connection: Connection, worker: str) -> None:
    """Give back the images of a worker that stops in good order: this start does not count as an attempt."""
    give_up(connection, worker)
    own = (images.c.worker == worker) & (images.c.state == "running")
    # as everything that changes several images: the database locks their rows in any order
    jobs.hold(connection, connection.scalars(select(images.c.job).where(own)))
    started = select(images.c.group).where(own)
    connection.execute(update(groups).where(groups.c.id.in_(started)).values(attempt=groups.c.attempt - 1))
    connection.execute(update(images).where(own).values(attempts=images.c.attempts - 1))


def reclaim(connection: Connection, now: float, worker: str, tell: Tell | None) -> list[Group]:
    """Give a group of workers that died to this one, with its recorded plan.

    It is one group at a time, so that the next death shows which one it was: the others keep their attempts. After the
    first death a group runs again as it was. After the second, each of its images runs alone, after all groups. After
    the third the image is set aside.
    """
    others = select(workers).where(workers.c.id != worker).order_by(workers.c.id).with_for_update(skip_locked=True)
    dead = [row.id for row in connection.execute(others) if row.expires <= now or is_gone(row.process)]
    if not dead:
        return []
    lost = (images.c.worker.in_(dead)) & (images.c.state == "running")
    jobs.hold(connection, connection.scalars(select(images.c.job).where(lost)))
    found = connection.execute(
        select(images.c.id, images.c.job, images.c.number, images.c.worker, images.c.attempts, images.c.group)
        .where(lost)
        .order_by(images.c.order)
    ).all()
    for row in found:
        if row.attempts >= ATTEMPTS:
            reason = f"set aside: the worker died {row.attempts} times while it generated this image"
            end(connection, now, row.worker, row.id, "failed", reason=reason)
    together = [row for row in found if row.attempts < TOGETHER]
    if together:
        group = together[0].group
        return [_start_again(connection, worker, group, [row.id for row in together if row.group == group])]
    alone = [row for row in found if row.attempts < ATTEMPTS]
    if alone:
        return [_start_alone(connection, now, worker, alone[0], tell)]
    connection.execute(delete(workers).where(workers.c.id.in_(dead)))
    return []


def _start_again(connection: Connection, worker: str, group: str, ids: Sequence[str]) -> Group:
    """Start the remaining images of a recorded group once more."""
    _take(connection, worker, ids)
    started = update(groups).where(groups.c.id == group).values(attempt=groups.c.attempt + 1)
    row = connection.execute(started.returning(groups.c.plan, groups.c.attempt)).one()
    return Group(group, tuple(ids), row.plan, row.attempt)


def _start_alone(connection: Connection, now: float, worker: str, row: Any, tell: Tell | None) -> Group:
    """Start one image with the plan of its group, as a group of its own if it had others."""
    before = connection.execute(select(groups).where(groups.c.id == row.group)).mappings().one()
    if before["images"] == [row.id]:
        return _start_again(connection, worker, row.group, [row.id])
    group = _single(connection, now, row, before["plan"], row.attempts + 1, tell)
    _take(connection, worker, [row.id])
    return group


def _single(connection: Connection, now: float, row: Any, plan: Any, attempt: int, tell: Tell | None) -> Group:
    """Make one image a group of its own."""
    group = Group(new_id("grp"), (row.id,), plan, attempt)
    values = {"images": [row.id], "plan": plan, "attempt": attempt, "created": now}
    connection.execute(insert(groups).values(id=group.id, **values))
    connection.execute(update(images).where(images.c.id == row.id).values(group=group.id))
    _announce(connection, now, row.job, group, [row.id], tell)
    return group


def _take(connection: Connection, worker: str, ids: Sequence[str]) -> None:
    for start in range(0, len(ids), jobs.CHUNK):
        part = update(images).where(images.c.id.in_(ids[start : start + jobs.CHUNK]))
        connection.execute(part.values(worker=worker, attempts=images.c.attempts + 1))


def split(connection: Connection, now: float, worker: str, group: str, tell: Tell | None) -> list[Group]:
    """Make a group of its own of each image of a group that cannot run together; not an attempt."""
    own = (images.c.group == group) & (images.c.worker == worker) & (images.c.state == "running")
    jobs.hold(connection, connection.scalars(select(images.c.job).where(own)))
    query = select(images.c.id, images.c.job, images.c.attempts).where(own).order_by(images.c.order)
    found = connection.execute(query).all()
    plan = connection.scalar(select(groups.c.plan).where(groups.c.id == group))
    return [_single(connection, now, row, plan, row.attempts, tell) for row in found]
