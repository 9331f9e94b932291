"""Remove what has ended long ago."""

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select

from . import jobs as job_rows
from .tables import batches, files, groups, images, jobs, workers

LIMIT = 1000  # jobs per transaction, so that others can write in between


def ended(connection: Connection, before: float) -> list[tuple[str, list[str]]]:
    """Return jobs that ended before a time, with the ids of their images. A batch must have written its output."""
    unwritten = select(batches.c.job).where(
        batches.c.job.is_not(None), batches.c.state.in_(("finalizing", "cancelling"))
    )
    query = select(jobs.c.id).where(jobs.c.finished < before, jobs.c.id.not_in(unwritten))
    found: dict[str, list[str]] = {job: [] for job in connection.scalars(query.order_by(jobs.c.finished).limit(LIMIT))}
    names = [*found]
    for start in range(0, len(names), job_rows.CHUNK):
        part = images.c.job.in_(names[start : start + job_rows.CHUNK])
        for row in connection.execute(select(images.c.job, images.c.id).where(part).order_by(images.c.order)):
            found[row.job].append(row.id)
    return [*found.items()]


def remove(connection: Connection, names: Sequence[str]) -> None:
    """Remove jobs with their images and events."""
    job_rows.hold(connection, names)
    for start in range(0, len(names), job_rows.CHUNK):
        connection.execute(delete(jobs).where(jobs.c.id.in_(names[start : start + job_rows.CHUNK])))


def remove_rest(connection: Connection, before: float) -> None:
    """Remove what is older than a time and has no use: groups, ended batches, files without a batch, workers."""
    unused = ~select(images.c.id).where(images.c.group == groups.c.id).exists()
    connection.execute(delete(groups).where(groups.c.created < before, unused))
    over = batches.c.state.in_(("failed", "completed", "expired", "cancelled"))
    connection.execute(delete(batches).where(over, batches.c.job.is_(None), batches.c.expires < before))
    needed = select(batches.c.input_file)
    kept = [
        needed,
        *(select(column).where(column.is_not(None)) for column in (batches.c.output_file, batches.c.error_file)),
    ]
    unneeded = files.c.created < before
    for query in kept:
        unneeded &= files.c.id.not_in(query)
    connection.execute(delete(files).where(unneeded))
    running = select(images.c.worker).where(images.c.worker.is_not(None))
    connection.execute(delete(workers).where(workers.c.expires < before, workers.c.id.not_in(running)))
