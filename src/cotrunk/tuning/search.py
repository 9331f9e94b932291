"""Before a large run: which setting, on a sample of the user's own prompts, gives the same quality for the fewest rows?

Settings are tried from the most telling on, until the rows are used up. Each is held against independent sampling in
all steps; fewer steps are tried first, for they are the rival that counts. Distances are to pictures from other noise:
pictures of fewer steps resemble those from the same noise, whatever they are worth, and pictures of a group do not.

A setting is recommended as the same quality only if that is shown: if the intervals of its loss of alignment and of its
excess of distance lie below their margins (`equivalence`). The intervals of all settings hold together with 95 %
(Bonferroni), for the cheapest of many would else be one that chance favoured.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ..errors import CotrunkError
from ..evaluation import metrics
from ..evaluation.metrics import Groups
from ..evaluation.networks import AlignmentNetwork, FeatureNetwork
from .equivalence import Estimate, are_below, distance_excess, estimate, prompts_to_decide, spread
from .setting import LEAST, Setting
from .trials import Trial, Trials

SHARES, TOLERANCES, INTERVAL = (0.2, 0.3, 0.4), (0.01, 0.02, 0.05), (0.1, 0.8)
FEWER = (0.67, 0.5, 0.34, 0.25, 0.17, 0.12)  # parts of the steps that are asked for
ERROR = 0.05  # the chance that any interval of a sweep misses its truth
UNKNOWN = metrics.Figure(np.nan, np.nan, np.nan)  # where next to no picture is left to measure
UNMEASURED = Estimate(np.nan, np.nan, 1, 1)


@dataclass(frozen=True)
class Point:
    """A setting, what it cost for one picture, and how good it was.

    Attributes:
        alignment: of a picture with its prompt.
        behind: alignment of independent sampling in all steps, less this one's, prompt by prompt.
        distance: kernel distance to pictures of independent sampling in all steps from other noise, less that of
            independent sampling in all steps itself.
        saved_by_sharing: part of the rows.
        failed: pictures that held a NaN; the figures are of the others.
        scores: (n,) the alignment of each prompt's picture, NaN where it failed.
        groups: of prompts whose pictures share steps.
    """

    setting: Setting
    rows: float
    seconds: float
    alignment: metrics.Figure
    behind: Estimate
    distance: Estimate
    saved_by_sharing: float
    failed: int
    scores: tuple[float, ...] = field(repr=False)
    groups: tuple[tuple[int, ...], ...] = field(repr=False)

    @property
    def is_compared(self) -> bool:
        """Whether there were pictures enough, and not all of one group."""
        return bool(np.isfinite(self.behind.error))


@dataclass(frozen=True)
class Tuned:
    """What a sweep found.

    Attributes:
        points: in the order in which they were tried; the first is independent sampling in all steps.
        margins: the loss of alignment and the excess of distance that still count as the same quality.
        same_quality: the setting with the fewest rows that is shown to lose no more.
        given: rows per picture that may be spent.
        best_in_rows: the best aligned setting for them; one that is not shown to lose more where there is any.
        sharing_pays: whether a shared point is measurably better than all independent ones of no more rows.
        left_out: settings that the budget had no room for.
        refused: settings that are not possible here, by the reason.
    """

    points: list[Point]
    margins: tuple[float, float]
    same_quality: Point
    given: float
    best_in_rows: Point | None
    sharing_pays: bool
    left_out: int
    refused: dict[str, list[Setting]]

    @property
    def confidence(self) -> float:
        """Of each interval, so that those of all settings hold together."""
        return _confidence(self.points)

    def is_as_good(self, point: Point) -> bool | None:
        """Whether a setting is shown to be as good as independent sampling in all steps; None: that is not decided."""
        if point is self.points[0]:
            return True
        if point.failed:
            return False
        return are_below((point.behind, point.distance), self.margins, self.confidence)

    def prompts_to_decide(self, point: Point) -> int:
        """For a setting of which it is not decided."""
        return prompts_to_decide((point.behind, point.distance), self.margins, self.confidence)

    @property
    def undecided(self) -> list[Point]:
        """Settings cheaper than `same_quality` of which it is not decided whether they are as good, cheapest first."""
        cheaper = [p for p in self.points if p.rows < self.same_quality.rows and p.is_compared]
        return sorted((p for p in cheaper if self.is_as_good(p) is None), key=lambda p: p.rows)

    @property
    def frontier(self) -> list[Point]:
        """Points that no other is better than for as few rows, dearest first; those with failed pictures left out."""
        found: list[Point] = []
        for point in sorted((p for p in self.points if not p.failed), key=lambda p: (p.rows, -p.alignment.value)):
            if not found or point.alignment.value > found[0].alignment.value:
                found.insert(0, point)
        return found


def settings(
    steps: int, similarity: float | None = None, others: Sequence[float] = (), fitting: int = 0
) -> Iterator[Setting]:
    """What is tried, the most telling first.

    Args:
        others: similarities to try beside the first.
        fitting: independent steps that take just the rows that are given: the rival there. 0 for none.
    """
    yield Setting(steps)
    fewer = [few for few in dict.fromkeys(max(2, round(part * steps)) for part in FEWER) if few < steps]
    yield from (Setting(few) for few in dict.fromkeys([*fewer, fitting]) if 0 < few < steps)
    yield from (Setting(steps, tolerance=tolerance) for tolerance in TOLERANCES)
    yield from (Setting(steps, share, similarity) for share in SHARES)
    yield from (Setting(steps, share, similarity, tolerance) for share in SHARES[:2] for tolerance in TOLERANCES)
    yield from (Setting(few, SHARES[1], similarity) for few in fewer[:4])
    yield from (Setting(steps, SHARES[1], other) for other in others)
    for share, tolerance in itertools.product((0.0, SHARES[1]), TOLERANCES[:2]):
        yield Setting(steps, share, similarity if share else None, tolerance, INTERVAL)


def neighbours(threshold: float) -> list[float]:
    """A looser and a tighter similarity than this one: half as far again from 1, and half as far."""
    found = (max(-1.0, round(1 - part * (1 - threshold), 3)) for part in (1.5, 0.5))
    return [similarity for similarity in found if similarity != threshold]


def tune(
    trials: Trials,
    features: FeatureNetwork,
    alignment: AlignmentNetwork,
    *,
    steps: int = 30,
    similarity: float | None = None,
    budget: int | None = None,
    margin: float = 0.1,
    rows: float | None = None,
    seed: int = 0,
    on_point: Callable[[Point], None] = lambda point: None,
) -> Tuned:
    """Try settings until `budget` denoiser rows are used up; None: all of them. Those that the pipeline refuses are
    left out, with its reason; one that it does not refuse is not tried again where its pictures are kept.

    Args:
        trials: of a pipeline and `LEAST` prompts or more.
        margin: the loss that counts as none, 0 to below 1. Of alignment as a part of what pictures have more of it with
            their own prompt than with the others; of distance as a part of how far two pictures of one prompt from
            different noise lie apart. These scales do not depend on the networks or on the number of prompts.
        rows: per picture, for which the best setting is wanted; None: half of those of independent sampling.

    Raises:
        CotrunkError: a pipeline that refuses independent sampling or whose pictures hold NaN, a budget that is not
            enough for it, or more `rows` than it takes.
    """
    full = Setting(steps)
    costs = {full: trials.predicted(full, seed)}
    if budget is not None and 2 * costs[full] > budget:
        raise CotrunkError(f"A budget of {budget} rows is not enough: independent sampling takes {2 * costs[full]}.")
    whole = costs[full] / len(trials.prompts)
    if rows is not None and rows > whole:
        raise CotrunkError(
            f"{rows:g} rows per picture are more than the {whole:g} of {steps} steps: use fewer rows, or more steps."
        )
    fitting = int(steps / 2 if rows is None else steps * rows / whole)
    refused: dict[str, list[Setting]] = {}
    for setting in settings(steps, similarity, _others(trials, similarity), fitting):
        try:
            costs[setting] = trials.predicted(setting, seed)
        except CotrunkError as error:
            refused.setdefault(str(error), []).append(setting)
    texts = alignment.text_vectors(trials.prompts)
    first, other = trials.of(full, seed), trials.of(full, seed + 1)
    both = sorted({*first.good} & {*other.good})
    if len(both) < LEAST:
        raise CotrunkError("Nearly all pictures of independent sampling hold NaN: use another dtype or scheduler.")
    expected = _scores(first, alignment, texts)
    seen, unlike = (_everywhere(trial, features.features(trial.pictures[trial.good])) for trial in (first, other))
    margins = (margin * _lead(other, alignment, texts), margin * spread(seen[both], unlike[both]))
    count = len(trials.prompts)
    used, left_out = other.rows * count, 0
    points: list[Point] = []
    for setting, cost in costs.items():
        if points and budget is not None and used + cost > budget:
            left_out += 1
            continue
        try:
            trial = trials.of(setting, seed)
        except CotrunkError as error:  # some models show only when they run that rows cannot be left out
            refused.setdefault(str(error), []).append(setting)
            continue
        used += trial.rows * count
        scores = _scores(trial, alignment, texts)
        good = sorted({*trial.good} & {*both})
        groups = _among(good, trial.groups)
        behind = distance = UNMEASURED
        if len(good) > 2 and len(groups) > 1:
            own = _everywhere(trial, features.features(trial.pictures[trial.good]))
            behind = estimate((expected - scores)[good], groups)
            distance = estimate(distance_excess(own[good], seen[good], unlike[good]), groups)
        point = Point(
            setting=setting,
            rows=trial.rows,
            seconds=trial.seconds,
            alignment=metrics.mean(scores) if len(trial.good) > 1 else UNKNOWN,
            behind=behind,
            distance=distance,
            saved_by_sharing=trial.shared,
            failed=count - len(trial.good),
            scores=tuple(scores.tolist()),
            groups=tuple(map(tuple, trial.groups)),
        )
        points.append(point)
        on_point(point)
    return _recommended(points, margins, left_out, refused, rows)


def _others(trials: Trials, similarity: float | None) -> list[float]:
    try:
        return neighbours(trials.threshold if similarity is None else similarity)
    except CotrunkError:  # prompts that cannot be compared: the settings that share are refused for it
        return []


def _everywhere(trial: Trial, features: torch.Tensor) -> torch.Tensor:
    """Features of the good pictures of a trial, by the places of all: (n, d), NaN where one failed."""
    found = torch.full((len(trial.pictures), features.shape[1]), torch.nan, dtype=features.dtype)
    found[trial.good] = features
    return found


def _among(places: Sequence[int], groups: Groups) -> list[list[int]]:
    """Groups by the order of these places, without what is not among them."""
    order = {place: number for number, place in enumerate(places)}
    found = [[order[place] for place in group if place in order] for group in groups]
    return [group for group in found if group]


def _scores(trial: Trial, alignment: AlignmentNetwork, texts: torch.Tensor) -> metrics.Values:
    """(n,) alignment of each picture with its prompt; NaN for those that failed."""
    scores = np.full(len(texts), np.nan)
    scores[trial.good] = metrics.alignment(alignment.image_vectors(trial.pictures[trial.good]), texts[trial.good])
    return scores


def _lead(trial: Trial, alignment: AlignmentNetwork, texts: torch.Tensor) -> float:
    """How much more alignment pictures have with their own prompt than with the others, at least 0."""
    products = (alignment.image_vectors(trial.pictures[trial.good]) @ texts[trial.good].T).double()
    own, count = products.diagonal().sum(), len(products)
    return max(0.0, float(own / count - (products.sum() - own) / (count * (count - 1))))


def _recommended(
    points: list[Point],
    margins: tuple[float, float],
    left_out: int = 0,
    refused: dict[str, list[Setting]] | None = None,
    rows: float | None = None,
) -> Tuned:
    """The answers to the questions that people ask. A setting is as good as all steps if its loss is shown to be small,
    not if no loss is shown: with fewer prompts less is shown, and less is recommended."""
    full = points[0]
    given = full.rows / 2 if rows is None else rows
    found = Tuned(
        points=points,
        margins=margins,
        same_quality=full,
        given=given,
        best_in_rows=None,
        sharing_pays=_sharing_pays(points),
        left_out=left_out,
        refused=refused or {},
    )
    sound = [p for p in points if not p.failed]
    same = min((p for p in sound if found.is_as_good(p)), key=lambda p: p.rows, default=full)
    cheap = [p for p in sound if p.rows <= given]
    cheap = [p for p in cheap if found.is_as_good(p) is not False] or cheap
    best = max(cheap, key=lambda p: p.alignment.value, default=None)
    return replace(found, same_quality=same, best_in_rows=best)


def _confidence(points: Sequence[Point]) -> float:
    """Of one interval, so that those of all points but the first hold together."""
    return 1 - ERROR / max(1, len(points) - 1)


def _sharing_pays(points: Sequence[Point]) -> bool:
    """Whether any shared point is measurably better, prompt by prompt, than all independent ones of no more rows."""
    sound = [p for p in points if not p.failed]
    for shared in (p for p in sound if p.setting.share and p.is_compared):
        rivals = [p for p in sound if not p.setting.share and p.rows <= shared.rows]
        gains = (estimate(np.subtract(shared.scores, rival.scores), shared.groups) for rival in rivals)
        if rivals and all(gain.interval(_confidence(points)).low > 0 for gain in gains):
            return True
    return False
