"""Jobs that ask for a plan only: they have prompts, but no images."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from . import assignments, events, jobs
from .leases import storable
from .records import ENDED, ImageRequest, PlanJob
from .tables import jobs as table
from .tables import planners

ATTEMPTS = 3  # a plan during which the worker died so often is set aside


def waiting(connection: Connection, now: float, limit: int, worker: str | None, longest: int | None) -> list[PlanJob]:
    """Return plans that are wanted, oldest first, without those that living workers other than this one make.

    With `longest`, it is only those whose requests have at most so many characters.
    """
    query = select(table).where(table.c.kind == "plan", table.c.state.in_(("waiting", "running")))
    if worker is not None:
        others = assignments.alive(connection, now) - {worker}
        query = query.where(table.c.id.not_in(select(planners.c.job).where(planners.c.worker.in_(others))))
    if longest is not None:
        query = query.where(func.length(table.c.requests) <= longest)
    return [
        PlanJob(jobs.to_job(row), tuple(ImageRequest(**request) for request in row["requests"]), row["attempts"])
        for row in connection.execute(query.order_by(table.c.number).limit(limit)).mappings()
    ]


def start(connection: Connection, now: float, job: str, worker: str | None) -> bool:
    """Count an attempt; return False if the plan is not wanted any more, or was tried too often and has failed now.

    With a worker, it is False also while another living worker makes the plan.
    """
    jobs.hold(connection, [job])
    row = connection.execute(select(table.c.state, table.c.attempts).where(table.c.id == job)).one_or_none()
    if row is None or row.state in ENDED:
        return False
    if worker is not None:
        maker = connection.scalar(select(planners.c.worker).where(planners.c.job == job))
        if maker is not None and maker in assignments.alive(connection, now) - {worker}:
            return False
        connection.execute(delete(planners).where(planners.c.job == job))
        connection.execute(insert(planners).values(job=job, worker=worker))
    if row.attempts >= ATTEMPTS:
        reason = f"set aside: the worker died {row.attempts} times while it made this plan"
        end(connection, now, job, "failed", reason=reason)
        return False
    connection.execute(update(table).where(table.c.id == job).values(state="running", attempts=row.attempts + 1))
    return True


def pause(connection: Connection, job: str) -> None:
    """Take back an attempt: a part of the plan is made, and the worker goes on with something else."""
    jobs.hold(connection, [job])
    paused = update(table).where(table.c.id == job, table.c.state == "running")
    connection.execute(paused.values(attempts=table.c.attempts - 1))


def end(connection: Connection, now: float, job: str, state: str, **values: Any) -> bool:
    """Record a plan, or the reason why there is none; return False if the job has ended already."""
    jobs.hold(connection, [job])
    ended = update(table).where(table.c.id == job, table.c.kind == "plan", table.c.state.not_in(ENDED))
    if "reason" in values:
        values["reason"] = storable(values["reason"])
    if not connection.execute(ended.values(state=state, finished=now, **values)).rowcount:
        return False
    data: Mapping[str, Any] = {name: value for name, value in values.items() if name == "reason"}
    events.add(connection, now, job, state, {"state": state, **data})
    return True
