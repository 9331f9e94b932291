"""Remove jobs, images and files that were kept long enough."""

from .images import ImageFiles
from .store import Store


def sweep(store: Store, files: ImageFiles, before: float) -> int:
    """Remove what ended before a time, in seconds since 1970; return the number of jobs.

    The files go first: if the process dies in between, the next sweep finds their jobs again.
    """
    count, names = 0, None
    while jobs := store.ended(before):
        names = files.names() if names is None else names  # once: the folder may be large, and these jobs are over
        files.remove((image for _, images in jobs for image in images), names)
        store.remove_jobs([job for job, _ in jobs])
        count += len(jobs)
    store.remove_rest(before)
    return count
