"""The trunk cache of a job."""

from ..errors import CotrunkError
from ..trunks.access import Trunks
from .job import Job


def trunks_of(job: Job, database: str | None = None) -> Trunks | None:
    """Return the trunk cache of a job; None if it uses none.

    Args:
        job: with its folder of trunks.
        database: of the index, as for `Trunks`.

    Raises:
        CotrunkError: the job cannot use one, or its folder cannot be used.
    """
    if job.trunks is None:
        return None
    why = None
    if job.settings.sharing is None:
        why = "A trunk cache is given, and nothing is to be shared"
    elif job.weights:
        why = "Prompts with weights are encoded before the call, and a trunk cache computes trunks from texts"
    elif job.shard is not None:
        why = "All shares of a run follow one plan, and a trunk cache changes while they run"
    if why is not None:
        raise CotrunkError(f"{why}: leave out trunks (--trunks).")
    return Trunks(job.trunks, database=database)
