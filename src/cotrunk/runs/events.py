"""What a running job reports: each event is a frozen object for the callback of `runner.run_job`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .job_plan import JobPlan


@dataclass(frozen=True)
class Unlocked:
    """The folder is on a file system without locks: nothing keeps other commands from writing to it."""

    folder: Path


@dataclass(frozen=True)
class Loading:
    """The model is being loaded; `has_denoiser` is False where only a plan is made."""

    model: str
    has_denoiser: bool = True


@dataclass(frozen=True)
class Planning:
    """The prompts are being compared and grouped."""

    prompts: int


@dataclass(frozen=True)
class Embedded:
    """So many of the different prompts have their vectors in files, those of an earlier process included."""

    done: int
    prompts: int


@dataclass(frozen=True)
class Planned:
    """The plan is complete, with its findings about the prompts. Nothing is denoised yet.

    Attributes:
        warning: a sentence that users should read before the run begins.
    """

    plan: "JobPlan"
    warning: str | None = None


@dataclass(frozen=True)
class WarmingUp:
    """A short first batch is running; `compiles` says whether the denoiser is compiled meanwhile."""

    compiles: bool


@dataclass(frozen=True)
class Denoising:
    """Denoising begins. This comes once for the run itself, and once more for its comparisons.

    Attributes:
        rows, images: planned rows and images, including those of an earlier part of the run.
        rows_done, images_done: what an earlier part has finished.
    """

    rows: int
    images: int
    rows_done: int
    images_done: int


@dataclass(frozen=True)
class StepDone:
    """A step of the batch in progress is done.

    Attributes:
        rows: planned rows done so far in this batch. A planned row is done when it is computed or skipped.
    """

    rows: int


@dataclass(frozen=True)
class BatchDone:
    """A batch is finished and its images are on disk.

    Attributes:
        arm: "shared", or the name of a comparison.
        images: indices of its images.
        rows: its planned rows.
    """

    arm: str
    images: tuple[int, ...]
    rows: int


@dataclass(frozen=True)
class Machines:
    """How many machines of a cluster have finished something so far."""

    count: int


@dataclass(frozen=True)
class DenoisingDone:
    """Every image of the current `Denoising` is finished, or the job was stopped."""


@dataclass(frozen=True)
class Interrupted:
    """The job was interrupted from the keyboard; resuming it continues where it stopped."""

    images_done: int
    images: int


@dataclass(frozen=True)
class Extended:
    """A resumed run has new prompts at the end. They share only among themselves, because finished images stay."""

    prompts: int


@dataclass(frozen=True)
class Retrying:
    """Images that failed, or that a safety checker replaced, are about to be generated again with new seeds."""

    images: int


@dataclass(frozen=True)
class AlreadyFinished:
    """The run was finished before: nothing is left to resume."""


Event = (
    Unlocked
    | Loading
    | Planning
    | Embedded
    | Planned
    | WarmingUp
    | Denoising
    | StepDone
    | BatchDone
    | Machines
    | DenoisingDone
    | Interrupted
    | Extended
    | Retrying
    | AlreadyFinished
)
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Do nothing with an event."""
