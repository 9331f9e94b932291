"""Jobs and their images: accept, look up, cancel, end. Functions on a transaction that `Store` opens.

The counts in the row of a job change in the same transaction as its images, and every such transaction holds that row
first. So those of one job follow each other, and two of them cannot wait for each other.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from . import events, room
from .ids import new_id
from .records import ENDED, IdempotencyConflict, ImageRequest, ImageRow, Job, JobKind, Queue, digest
from .tables import batches, images, jobs

COUNTED = ("waiting", "running", *ENDED)
CHUNK = 500  # ids per statement: SQLite takes at most 32,766 parameters
LARGE = ("body", "result", "requests")  # columns of megabytes, which lists do not read
_COLUMNS = [column for column in jobs.c if column.name not in LARGE]


def accept(
    connection: Connection,
    now: float,
    owner: str,
    kind: JobKind,
    requests: Sequence[ImageRequest],
    *,
    body: Any,
    metadata: dict[str, Any] | None = None,
    idempotency_key: str | None = None,
    max_waiting_rows: int | None = None,
    max_owner_rows: int | None = None,
    max_plans: int | None = None,
) -> tuple[Job, bool]:
    """Record a job and its images, and return it, or the one that came with the same key before.

    Raises:
        ValueError: there are no requests.
        QueueFull: the queue has no room for the job, or the owner has too much in it (`room.is_in_parts`).
        TooManyPlans: the owner has asked for too many.
        IdempotencyConflict: the key came with another body before.
    """
    if not requests:
        raise ValueError("a job without requests would never end")
    key = None if idempotency_key is None else _digest_of_key(idempotency_key)
    rows = 0 if kind == "plan" else sum(request.rows for request in requests)
    count = 0 if kind == "plan" else len(requests)
    made = _insert(connection).values(
        id=new_id("job"),
        owner=owner,
        kind=kind,
        state="waiting",
        created=now,
        body=body,
        model=requests[0].settings.get("model"),
        metadata=metadata or {},
        idempotency=key,
        digest=None if key is None else digest(body),
        images=count,
        waiting=count,
        running=0,
        done=0,
        failed=0,
        cancelled=0,
        attempts=0,
        requests=[request.to_json() for request in requests] if kind == "plan" else None,
    )
    made = made.on_conflict_do_nothing(index_elements=["owner", "idempotency"]).returning(jobs.c.id)
    identifier = connection.scalar(made)
    if identifier is None:
        return _accepted_before(connection, owner, key, digest(body)), False
    if kind == "plan":
        room.check_plans(connection, owner, max_plans)
    else:
        is_held = room.is_in_parts(connection, owner, kind, rows, max_waiting_rows, max_owner_rows)
        add_images(connection, now, owner, identifier, requests, room.HELD if is_held else "waiting")
    events.add(connection, now, identifier, "accepted", {"images": count})
    return find(connection, owner, identifier), True  # type: ignore[return-value]


def _insert(connection: Connection) -> Any:
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(jobs)


def _digest_of_key(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _accepted_before(connection: Connection, owner: str, key: str | None, body: str) -> Job:
    found = connection.execute(
        select(jobs.c.id, jobs.c.digest).where(jobs.c.owner == owner, jobs.c.idempotency == key)
    ).one()
    if found.digest != body:
        raise IdempotencyConflict
    return find(connection, owner, found.id)  # type: ignore[return-value]


def add_images(
    connection: Connection, now: float, owner: str, job: str, requests: Sequence[ImageRequest], state: str = "waiting"
) -> None:
    made = [
        {
            "id": new_id("img"),
            "job": job,
            "number": number,
            "owner": owner,
            "bucket": request.bucket(owner),
            "request": request.to_json(),
            "custom_id": request.custom_id,
            "rows": request.rows,
            "state": state,
            "attempts": 0,
            "accepted": now,
        }
        for number, request in enumerate(requests)
    ]
    if made:
        connection.execute(insert(images), made)


def queue(connection: Connection, now: float) -> Queue:
    """Return how much waits and how much runs."""
    totals = select(func.count().label("images"), func.coalesce(func.sum(images.c.rows), 0).label("rows"))
    waiting, running = (
        connection.execute(totals.where(images.c.state == state)).one() for state in ("waiting", "running")
    )
    first = select(images.c.accepted).where(images.c.state == "waiting").order_by(images.c.order).limit(1)
    oldest = connection.scalar(first)
    return Queue(
        images=waiting.images,
        rows=waiting.rows,
        oldest=0.0 if oldest is None else max(0.0, now - oldest),
        running_images=running.images,
        running_rows=running.rows,
    )


def find(connection: Connection, owner: str, identifier: str, *, whole: bool = False) -> Job | None:
    """Return a job; with its body and its result, which may be large, only if it is wanted whole."""
    query = select(*(jobs.c if whole else _COLUMNS)).where(jobs.c.id == identifier, jobs.c.owner == owner)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else to_job(row)


def listed(connection: Connection, owner: str, limit: int, after: str | None, kind: JobKind | None) -> list[Job]:
    """Return jobs, newest first, from the one that follows `after`."""
    query = select(*_COLUMNS).where(jobs.c.owner == owner)
    if kind is not None:
        query = query.where(jobs.c.kind == kind)
    if after is not None:
        query = query.where(jobs.c.number < select(jobs.c.number).where(jobs.c.id == after).scalar_subquery())
    return [to_job(row) for row in connection.execute(query.order_by(jobs.c.number.desc()).limit(limit)).mappings()]


def to_job(row: RowMapping) -> Job:
    return Job(
        id=row["id"],
        owner=row["owner"],
        kind=row["kind"],
        state=row["state"],
        created=row["created"],
        finished=row["finished"],
        model=row["model"] or "",
        metadata=row["metadata"],
        images=row["images"],
        counts={state: row[state] for state in COUNTED},
        body=row.get("body"),
        result=row.get("result"),
        reason=row["reason"],
    )


def image_rows(connection: Connection, query: Select[Any]) -> list[ImageRow]:
    """Return the images that a query on their table selects."""
    return [
        ImageRow(
            id=row["id"],
            job=row["job"],
            number=row["number"],
            owner=row["owner"],
            bucket=row["bucket"],
            request=ImageRequest(**row["request"]),
            state="waiting" if row["state"] == room.HELD else row["state"],
            attempts=row["attempts"],
            accepted=row["accepted"],
            group=row["group"],
            result=row["result"],
            reason=row["reason"],
            finished=row["finished"],
        )
        for row in connection.execute(query).mappings()
    ]


def hold(connection: Connection, identifiers: Iterable[str]) -> set[str]:
    """Keep other transactions away from these jobs until this one ends; return those that exist.

    They are held in the order of their ids, so that two transactions never wait for each other.
    """
    query = select(jobs.c.id).with_for_update()
    return {job for job in sorted({*identifiers}) if connection.scalar(query.where(jobs.c.id == job)) is not None}


def move(
    connection: Connection,
    now: float,
    job: str,
    identifiers: Sequence[str],
    before: Sequence[str],
    after: str,
    **values: Any,
) -> list[str]:
    """Change the state of those images of a job that are in `before`, and its counts, and return their ids."""
    moved: list[str] = []
    was: Counter[str] = Counter()
    for start in range(0, len(identifiers), CHUNK):
        part = images.c.id.in_(identifiers[start : start + CHUNK])
        ready = select(images.c.id, images.c.state).where(part, images.c.job == job, images.c.state.in_(before))
        found = connection.execute(ready.order_by(images.c.order)).all()
        was.update("waiting" if row.state == room.HELD else row.state for row in found)
        moved += [row.id for row in found]
        if found:
            ended = {"finished": now} if after in ENDED else {}
            changed = update(images).where(images.c.id.in_([row.id for row in found]))
            connection.execute(changed.values(state=after, **ended, **values))
    if not moved:
        return moved
    counts = {state: jobs.c[state] - count for state, count in was.items()}
    counts[after] = counts.get(after, jobs.c[after]) + len(moved)
    left = update(jobs).where(jobs.c.id == job).values(**counts)
    row = connection.execute(left.returning(*(jobs.c[name] for name in ("kind", *COUNTED)))).one()
    if after == "running":
        connection.execute(update(jobs).where(jobs.c.id == job).values(state="running"))
    elif after in ENDED and not row.waiting and not row.running:
        _end(connection, now, job, row)
    return moved


def _end(connection: Connection, now: float, job: str, row: Any) -> None:
    """Record that the last image of a job has ended."""
    state = "done" if row.done else "failed" if row.failed else "cancelled"
    if row.cancelled:
        state = "cancelled"
    connection.execute(update(jobs).where(jobs.c.id == job).values(state=state, finished=now))
    if row.kind == "batch":
        ending = update(batches).where(batches.c.job == job, batches.c.state == "in_progress")
        connection.execute(ending.values(state="finalizing"))


def state_of(connection: Connection, job: str) -> str:
    return connection.scalar(select(jobs.c.state).where(jobs.c.id == job)) or "cancelled"


def cancel(connection: Connection, now: float, job: str, reason: str = "cancelled") -> bool:
    """Cancel what a job has not finished; return whether there was anything. Running images stop at their next step."""
    hold(connection, [job])
    row = connection.execute(select(jobs.c.kind, jobs.c.state).where(jobs.c.id == job)).one_or_none()
    if row is None or row.state in ENDED:
        return False
    before = ("waiting", "running", room.HELD)
    open_images = select(images.c.id).where(images.c.job == job, images.c.state.in_(before))
    ids = list(connection.scalars(open_images.order_by(images.c.number)))
    move(connection, now, job, ids, before, "cancelled", reason=reason)
    if row.kind == "plan":
        connection.execute(update(jobs).where(jobs.c.id == job).values(state="cancelled", finished=now, reason=reason))
    events.add(connection, now, job, "cancelled", {"images": ids, "state": state_of(connection, job)})
    return True
