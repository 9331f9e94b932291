"""What a process on a machine of the cluster is started with. It loads no diffusers: a probe reads it too."""

import os
from contextlib import suppress
from dataclasses import dataclass, replace

from ..runs.job import Job


@dataclass(frozen=True)
class Setup:
    """What a painter is started with.

    Attributes:
        job: says what to load; its prompts are only examples of those of the run.
        place: the folder of the run, or a URL.
        folder: the driver's own folder, to which relative names of models and input images belong.
        dtype: the precision of the run: machines of different kinds must not choose different ones.
        threads: of torch on a CPU; None for one per core.
    """

    job: Job
    place: str
    folder: str = "."
    dtype: str = "auto"
    threads: int | None = None


def prepared_here(setup: Setup) -> Job:
    """Make this process one that can load the job of a setup, and return that job.

    Args:
        setup: of a painter.
    """
    import torch

    with suppress(OSError):  # another machine may not have this folder; then only absolute names can be found
        os.chdir(setup.folder)
    if not torch.cuda.is_available():  # Ray limits processes that ask for no CPU to one thread
        torch.set_num_threads(setup.threads or os.cpu_count() or 1)
    return replace(setup.job, dtype=setup.dtype)
