"""The figures in the report of a run: rows, seconds, comparisons, groups that failed."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..planning.tree import Difference, Real, Steps, Text, Whole
from .journal import Progress


@dataclass(frozen=True)
class Spared:
    """Denoiser rows that were not computed, by the method that saved them.

    Attributes:
        sharing: of images that share rows, and of trunks that were computed in this run.
        skipping, guidance: of skipped evaluations, and of steps without guidance.
        replay: of trunks that the trunk cache had.
    """

    sharing: Difference = 0
    skipping: Difference = 0
    guidance: Difference = 0
    replay: Difference = 0


@dataclass(frozen=True)
class Rows:
    """Denoiser rows of a run.

    Attributes:
        used: computed rows.
        independent: rows that the same images would use with independent sampling.
        saving: the fraction of the independent rows that was saved.
    """

    used: Whole
    independent: Whole
    saving: Real
    spared: Spared


@dataclass(frozen=True)
class Seconds:
    """Where the time went. `total` is more than the sum, because it also includes what no other entry counts."""

    load: Real = 0.0
    embed: Real = 0.0
    denoise: Real = 0.0
    decode: Real = 0.0
    total: Real = 0.0


@dataclass(frozen=True)
class Distance:
    """How close images are to those of another arm: PSNR in decibels: the median of the images, and the worst one."""

    median: Real
    worst: Real


@dataclass(frozen=True)
class Comparison:
    """The same images, made in another way.

    Attributes:
        steps: inference steps; of the first part if there are several.
        rows: denoiser rows.
        folder: of its images, relative to the folder of the run.
        flagged: images that the safety checker replaced.
        distance: of its images from the independent ones; None for these themselves.
    """

    steps: Steps
    rows: Whole
    seconds: Seconds
    folder: Text
    flagged: tuple[Whole, ...]
    distance: Distance | None = None


@dataclass(frozen=True)
class FailedGroup:
    """A group that could not be generated, on a cluster of machines.

    Attributes:
        group: its index in `RunReport.groups`.
        images: its images.
        error: the last line of its traceback.
        file: the whole traceback, relative to the folder of the run.
    """

    group: Whole
    images: tuple[Whole, ...]
    error: Text
    file: Text


def seconds_of(progress: Progress, other: Mapping[str, float]) -> Seconds:
    """Return the times of finished batches and other times."""
    seconds = {"load": 0.0, **progress.seconds}
    for name, value in other.items():
        seconds[name] = seconds.get(name, 0.0) + value
    seconds.setdefault("total", sum(seconds.values()))
    return Seconds(**{name: round(value, 3) for name, value in seconds.items()})
