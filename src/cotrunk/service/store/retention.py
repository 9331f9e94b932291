"""Remove what has ended long ago."""

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select

from . import jobs as job_rows
from .tables import batches, files, groups, images, jobs, workers

# per transaction, so that others can write in between; but all images of one job go together
JOBS, IMAGES, GROUPS = 1000, 5000, 5000


def ended(connection: Connection, before: float) -> list[tuple[str, list[str]]]:
    """Return some jobs that ended before a time, with the ids of their images. A batch must have written its output."""
    unwritten = select(batches.c.job).where(
        batches.c.job.is_not(None), batches.c.state.in_(("finalizing", "cancelling"))
    )
    query = select(jobs.c.id, jobs.c.images).where(jobs.c.finished < before, jobs.c.id.not_in(unwritten))
    found: dict[str, list[str]] = {}
    count = 0
    for row in connection.execute(query.order_by(jobs.c.finished).limit(JOBS)).all():
        count += row.images
        if found and count > IMAGES:
            break
        found[row.id] = []
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


def remove_groups(connection: Connection, before: float) -> bool:
    """Remove some groups that are older than a time and have no images; return whether there were any."""
    unused = ~select(images.c.id).where(images.c.group == groups.c.id).exists()
    some = select(groups.c.id).where(groups.c.created < before, unused).limit(GROUPS)
    return connection.execute(delete(groups).where(groups.c.id.in_(some))).rowcount > 0


def remove_rest(connection: Connection, before: float) -> None:
    """Remove what is older than a time and has no use: ended batches, files without a batch, workers."""
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
