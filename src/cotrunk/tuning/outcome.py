"""What a sweep measured, and the settings that it recommends."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..evaluation.metrics import Figure
from ..settings import Settings
from .equivalence import Estimate, are_below, estimate, prompts_to_decide

ERROR = 0.05  # probability that any interval of a sweep misses its true value


@dataclass(frozen=True)
class Point:
    """Settings, their cost and their quality.

    Attributes:
        rows, seconds: denoising cost per image.
        alignment: how well images match their prompts.
        alignment_loss: the reference's alignment minus this one's, paired by prompt.
        distance_excess: kernel distance to the reference's images from other noise, minus the reference's own.
        saved_by_sharing: fraction of the rows that sharing saved.
        failed: number of images that contained a NaN; the metrics ignore them.
        scores: (n,) alignment per prompt; NaN where its image failed.
        groups: the prompts whose images share steps.
    """

    settings: Settings
    rows: float
    seconds: float
    alignment: Figure
    alignment_loss: Estimate
    distance_excess: Estimate
    saved_by_sharing: float
    failed: int
    scores: tuple[float, ...] = field(repr=False)
    groups: tuple[tuple[int, ...], ...] = field(repr=False)

    @property
    def is_compared(self) -> bool:
        """Return whether it had enough images, from more than one group."""
        return bool(np.isfinite(self.alignment_loss.error))


@dataclass(frozen=True)
class Tuned:
    """The outcome of a sweep.

    Attributes:
        points: in the order in which they were tried. The first is the reference: independent sampling in all steps.
        margins: the alignment loss and the excess of distance that count as the same quality.
        same_quality: the point with the fewest rows that is shown to lose no more than the margins.
        row_limit: rows per image that may be spent.
        best_in_rows: the point with the best alignment within the limit. Points that are shown to be worse than the
            reference are only chosen if there is no other.
        sharing_pays: whether a point with sharing is measurably better than all independent ones of no more rows.
        over_budget: number of settings that the budget did not allow.
        refused: settings that the pipeline refused, by the reason.
    """

    points: list[Point]
    margins: tuple[float, float]
    same_quality: Point
    row_limit: float
    best_in_rows: Point | None
    sharing_pays: bool
    over_budget: int
    refused: dict[str, list[Settings]]

    @property
    def confidence(self) -> float:
        """Return the confidence of each interval, so that all intervals hold together."""
        return _confidence(self.points)

    def is_as_good(self, point: Point) -> bool | None:
        """Return whether a point is shown to be as good as the reference; None if that is undecided."""
        if point is self.points[0]:
            return True
        if point.failed:
            return False
        return are_below((point.alignment_loss, point.distance_excess), self.margins, self.confidence)

    def prompts_to_decide(self, point: Point) -> int:
        """Return how many prompts would decide about an undecided point."""
        return prompts_to_decide((point.alignment_loss, point.distance_excess), self.margins, self.confidence)

    @property
    def undecided(self) -> list[Point]:
        """Return the undecided points that are cheaper than `same_quality`, cheapest first."""
        cheaper = [p for p in self.points if p.rows < self.same_quality.rows and p.is_compared]
        return sorted((p for p in cheaper if self.is_as_good(p) is None), key=lambda p: p.rows)

    @property
    def frontier(self) -> list[Point]:
        """Return the Pareto front of alignment over rows, most expensive first, without points with failed images."""
        found: list[Point] = []
        for point in sorted((p for p in self.points if not p.failed), key=lambda p: (p.rows, -p.alignment.value)):
            if not found or point.alignment.value > found[0].alignment.value:
                found.insert(0, point)
        return found


def recommend(
    points: list[Point],
    margins: tuple[float, float],
    over_budget: int = 0,
    refused: dict[str, list[Settings]] | None = None,
    rows: float | None = None,
) -> Tuned:
    """Choose the recommended points.

    A point is as good as the reference only if its loss is shown to be small. It is not enough that no loss is shown,
    because few prompts show little. So fewer prompts give fewer recommendations.

    Args:
        rows: the row limit; None for half of the reference's rows.
    """
    full = points[0]
    row_limit = full.rows / 2 if rows is None else rows
    found = Tuned(
        points=points,
        margins=margins,
        same_quality=full,
        row_limit=row_limit,
        best_in_rows=None,
        sharing_pays=_sharing_pays(points),
        over_budget=over_budget,
        refused=refused or {},
    )
    sound = [p for p in points if not p.failed]
    same = min((p for p in sound if found.is_as_good(p)), key=lambda p: p.rows, default=full)
    cheap = [p for p in sound if p.rows <= row_limit]
    cheap = [p for p in cheap if found.is_as_good(p) is not False] or cheap
    best = max(cheap, key=lambda p: p.alignment.value, default=None)
    return replace(found, same_quality=same, best_in_rows=best)


def _confidence(points: Sequence[Point]) -> float:
    """Return the confidence of one interval, so that those of all points but the first hold together (Bonferroni)."""
    return 1 - ERROR / max(1, len(points) - 1)


def _sharing_pays(points: Sequence[Point]) -> bool:
    """Return whether a point with sharing is measurably better than all independent ones of no more rows."""
    sound = [p for p in points if not p.failed]
    for shared in (p for p in sound if p.settings.sharing and p.is_compared):
        rivals = [p for p in sound if not p.settings.sharing and p.rows <= shared.rows]
        gains = (estimate(np.subtract(shared.scores, rival.scores), shared.groups) for rival in rivals)
        if rivals and all(gain.interval(_confidence(points)).low > 0 for gain in gains):
            return True
    return False
