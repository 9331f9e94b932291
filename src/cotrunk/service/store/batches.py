"""Batches, in the states that OpenAI's API names.

The API validates the file of a batch (`start` or `fail`) and writes its outputs (`finish`). Both are found again after
a crash: a batch stays "validating" or "finalizing" until the transaction that ends that state.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, case, func, insert, select, update

from . import files, jobs
from .ids import id_of
from .records import Batch, IdempotencyConflict, ImageRequest, TooManyBatches
from .tables import batches, images

OPEN = ("validating", "in_progress")
UNENDED = (*OPEN, "finalizing", "cancelling")
WINDOW_SECONDS = {"24h": 86_400}  # the only window that OpenAI's API knows


@dataclass(frozen=True)
class Asked:
    """What a client asks for."""

    owner: str
    input_file: str
    endpoint: str
    window: str
    metadata: dict[str, Any]


def add(connection: Connection, now: float, asked: Asked, max_open: int | None, key: str | None) -> Batch:
    """Record a batch that is still to be validated, or return the one that came with the same key before.

    Raises:
        IdempotencyConflict: the key came with another batch before.
        TooManyBatches: the owner has `max_open` batches that have not ended.
    """
    identifier = id_of("batch", asked.owner, key)
    if key is not None and (before := find(connection, asked.owner, identifier)):
        if asked != Asked(before.owner, before.input_file, before.endpoint, before.window, before.metadata):
            raise IdempotencyConflict
        return before
    if max_open is not None:
        unended = select(func.count()).where(batches.c.owner == asked.owner, batches.c.state.in_(UNENDED))
        if (connection.scalar(unended) or 0) >= max_open:
            raise TooManyBatches(max_open)
    made = insert(batches).values(
        id=identifier,
        **asdict(asked),
        state="validating",
        ending="completed",
        expires=now + WINDOW_SECONDS[asked.window],
        errors=[],
        times={"created": now},
    )
    connection.execute(made)
    return _one(connection, identifier)


def find(connection: Connection, owner: str, identifier: str) -> Batch | None:
    query = select(batches).where(batches.c.id == identifier, batches.c.owner == owner)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _to_batch(connection, row)


def listed(connection: Connection, owner: str, limit: int, after: str | None) -> list[Batch]:
    """Return batches, newest first, from the one that follows `after`."""
    query = select(batches).where(batches.c.owner == owner)
    if after is not None:
        query = query.where(batches.c.number < select(batches.c.number).where(batches.c.id == after).scalar_subquery())
    found = connection.execute(query.order_by(batches.c.number.desc()).limit(limit)).mappings().all()
    return [_to_batch(connection, row) for row in found]


def validating(connection: Connection) -> list[Batch]:
    query = select(batches).where(batches.c.state == "validating").order_by(batches.c.number)
    return [_to_batch(connection, row) for row in connection.execute(query).mappings().all()]


def finalizing(connection: Connection) -> list[Batch]:
    """Return batches whose images have all ended, but whose output is not written."""
    query = select(batches).where(batches.c.state.in_(("finalizing", "cancelling"))).order_by(batches.c.number)
    return [_to_batch(connection, row) for row in connection.execute(query).mappings().all()]


def start(
    connection: Connection,
    now: float,
    identifier: str,
    requests: Sequence[ImageRequest],
    max_waiting_rows: int | None,
) -> Batch:
    """Accept the requests of a validated batch as a job; a batch that was cancelled meanwhile stays as it is.

    With `max_waiting_rows`, its images enter the queue in parts.
    """
    row = _hold(connection, identifier)
    if row["state"] == "validating":
        job, _ = jobs.accept(
            connection,
            now,
            row["owner"],
            "batch",
            requests,
            body={"batch": identifier},
            metadata=row["metadata"],
            max_waiting_rows=max_waiting_rows,
        )
        _change(connection, now, row, "in_progress", job=job.id)
    return _one(connection, identifier)


def fail(connection: Connection, now: float, identifier: str, errors: Sequence[dict[str, Any]]) -> Batch:
    """Refuse a batch whose file is wrong."""
    row = _hold(connection, identifier)
    if row["state"] == "validating":
        _change(connection, now, row, "failed", errors=[*errors], counts=_counts(connection, None))
    return _one(connection, identifier)


def stop(connection: Connection, now: float, identifier: str, ending: str) -> None:
    """Cancel a batch, or let it expire. What is done already still goes to its output file."""
    job = connection.scalar(select(batches.c.job).where(batches.c.id == identifier))
    jobs.hold(connection, [job] if job else [])  # before the batch, as every transaction that ends a job does
    row = _hold(connection, identifier)
    if row["state"] not in OPEN:
        return
    if row["job"] is None:  # still validating
        _change(connection, now, row, ending, counts=_counts(connection, None))
        return
    _change(connection, now, row, "cancelling" if ending == "cancelled" else "finalizing", ending=ending)
    jobs.cancel(connection, now, row["job"], ending)


def overdue(connection: Connection, now: float) -> list[str]:
    query = select(batches.c.id).where(batches.c.state.in_(OPEN), batches.c.expires <= now)
    return list(connection.scalars(query.order_by(batches.c.number)))


def finish(connection: Connection, now: float, identifier: str, output: bytes, errors: bytes) -> Batch:
    """Record the output files of a batch; an empty one is not made. Does nothing if it was done before."""
    row = _hold(connection, identifier)
    if row["state"] not in ("finalizing", "cancelling"):
        return _one(connection, identifier)
    made = {}
    for name, content in (("output", output), ("error", errors)):
        if content:
            file = f"{identifier}_{name}.jsonl"
            made[f"{name}_file"] = files.add(connection, now, row["owner"], file, "batch_output", content).id
    counts = _counts(connection, row["job"])
    _change(connection, now, row, row["ending"], counts=counts, **made)
    return _one(connection, identifier)


def _hold(connection: Connection, identifier: str) -> RowMapping:
    query = select(batches).where(batches.c.id == identifier).with_for_update()
    return connection.execute(query).mappings().one()


def _change(connection: Connection, now: float, row: RowMapping, state: str, **values: Any) -> None:
    times = row["times"] | {state: now}
    connection.execute(update(batches).where(batches.c.id == row["id"]).values(state=state, times=times, **values))


def _one(connection: Connection, identifier: str) -> Batch:
    return _to_batch(connection, connection.execute(select(batches).where(batches.c.id == identifier)).mappings().one())


def _to_batch(connection: Connection, row: RowMapping) -> Batch:
    return Batch(
        id=row["id"],
        owner=row["owner"],
        job=row["job"],
        state=row["state"],
        endpoint=row["endpoint"],
        window=row["window"],
        input_file=row["input_file"],
        output_file=row["output_file"],
        error_file=row["error_file"],
        errors=row["errors"],
        metadata=row["metadata"],
        counts=row["counts"] or _counts(connection, row["job"]),
        times=row["times"] | {"expires": row["expires"]},
    )


def _counts(connection: Connection, job: str | None) -> dict[str, int]:
    """Count requests: one is completed when all of its images are done, and failed when any of them failed."""
    if job is None:
        return {"total": 0, "completed": 0, "failed": 0}
    per_request = (
        select(
            func.count().label("images"),
            func.sum(case((images.c.state == "done", 1), else_=0)).label("done"),
            func.sum(case((images.c.state.in_(("failed", "cancelled")), 1), else_=0)).label("failed"),
        )
        .where(images.c.job == job)
        .group_by(images.c.custom_id)
        .subquery()
    )
    row = connection.execute(
        select(
            func.count().label("total"),
            func.coalesce(func.sum(case((per_request.c.done == per_request.c.images, 1), else_=0)), 0).label(
                "completed"
            ),
            func.coalesce(func.sum(case((per_request.c.failed > 0, 1), else_=0)), 0).label("failed"),
        )
    ).one()
    return {"total": int(row.total), "completed": int(row.completed), "failed": int(row.failed)}
