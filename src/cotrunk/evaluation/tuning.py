"""Before a large run: which setting, on a sample of the user's own prompts, gives the same quality for the fewest rows?

Settings are tried from the most telling on, until the rows are used up. Each is held against independent sampling in
all steps; fewer steps are tried first, for they are the rival that counts. Distances are to pictures from other noise:
pictures of fewer steps resemble those from the same noise, whatever they are worth, and pictures of a group do not.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import CotrunkError
from . import metrics
from .networks import AlignmentNetwork, FeatureNetwork
from .setting import LEAST, Setting
from .trials import Trial, Trials

SHARES, TOLERANCES, INTERVAL = (0.2, 0.3, 0.4), (0.01, 0.02, 0.05), (0.1, 0.8)
FEWER = (0.67, 0.5, 0.34, 0.25, 0.17, 0.12)  # parts of the steps that are asked for
UNKNOWN = metrics.Figure(np.nan, np.nan, np.nan)  # where next to no picture is left to measure


@dataclass(frozen=True)
class Point:
    """A setting, what it cost for one picture, and how good it was.

    Attributes:
        alignment: of a picture with its prompt.
        behind: alignment of independent sampling in all steps, less this one's, prompt by prompt.
        distance: kernel distance to pictures of independent sampling in all steps, from other noise.
        saved_by_sharing: part of the rows.
        failed: pictures that held a NaN; the figures are of the others.
        scores: (n,) the alignment of each prompt's picture, NaN where it failed.
    """

    setting: Setting
    rows: float
    seconds: float
    alignment: metrics.Figure
    behind: metrics.Figure
    distance: metrics.Figure
    saved_by_sharing: float
    failed: int
    scores: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class Tuned:
    """What a sweep found.

    Attributes:
        points: in the order in which they were tried; the first is independent sampling in all steps.
        floor: kernel distance between two sets of pictures by all steps from different noise.
        margin: the loss of alignment that still counts as the same quality.
        same_quality: the setting with the fewest rows that is shown to lose no more, with its distance in the floor.
        given: rows a picture that may be spent.
        best_in_rows: the best setting for them; one with its distance in the floor where there is any.
        sharing_pays: whether a shared point is measurably better than all independent ones of no more rows.
        undecided: settings cheaper than `same_quality` that more prompts may show to lose no more.
        left_out: settings that the budget had no room for.
        refused: settings that are not possible here, by the reason.
    """

    points: list[Point]
    floor: metrics.Figure
    margin: float
    same_quality: Point
    given: float
    best_in_rows: Point | None
    sharing_pays: bool
    undecided: int
    left_out: int
    refused: dict[str, list[Setting]]

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
        margin: the loss of alignment that counts as none, as a part of what pictures have more of it with their own
            prompt than with the others: a scale that does not depend on network or number of prompts. 0 to below 1.
        rows: a picture, for which the best setting is wanted; None: half of those of independent sampling.

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
            f"{rows:g} rows a picture are more than the {whole:g} of {steps} steps: use fewer rows, or more steps."
        )
    fitting = int(steps / 2 if rows is None else steps * rows / whole)
    refused: dict[str, list[Setting]] = {}
    for setting in settings(steps, similarity, _others(trials, similarity), fitting):
        try:
            costs[setting] = trials.predicted(setting, seed)
        except CotrunkError as error:
            refused.setdefault(str(error), []).append(setting)
    texts = alignment.of_texts(trials.prompts)
    first, other = trials.of(full, seed), trials.of(full, seed + 1)
    if min(len(first.good), len(other.good)) < LEAST:
        raise CotrunkError("Nearly all pictures of independent sampling hold NaN: use another dtype or scheduler.")
    expected = _scores(first, alignment, texts)
    lost = margin * _lead(other, alignment, texts)
    unlike = features.features(other.pictures[other.good])
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
        scores, measurable = _scores(trial, alignment, texts), len(trial.good) > 1
        point = Point(
            setting=setting,
            rows=trial.rows,
            seconds=trial.seconds,
            alignment=metrics.mean(scores) if measurable else UNKNOWN,
            behind=metrics.difference(expected, scores) if measurable else UNKNOWN,
            distance=metrics.kernel(features.features(trial.pictures[trial.good]), unlike) if measurable else UNKNOWN,
            saved_by_sharing=trial.shared,
            failed=count - len(trial.good),
            scores=tuple(scores.tolist()),
        )
        points.append(point)
        on_point(point)
    return _recommended(points, lost, left_out, refused, rows)


def _others(trials: Trials, similarity: float | None) -> list[float]:
    try:
        return neighbours(trials.threshold if similarity is None else similarity)
    except CotrunkError:  # prompts that cannot be compared: the settings that share are refused for it
        return []


def _scores(trial: Trial, alignment: AlignmentNetwork, texts: torch.Tensor) -> metrics.Values:
    """(n,) alignment of each picture with its prompt; NaN for those that failed."""
    scores = np.full(len(texts), np.nan)
    scores[trial.good] = metrics.alignment(alignment.of_pictures(trial.pictures[trial.good]), texts[trial.good])
    return scores


def _lead(trial: Trial, alignment: AlignmentNetwork, texts: torch.Tensor) -> float:
    """How much more alignment pictures have with their own prompt than with the others, at least 0."""
    products = (alignment.of_pictures(trial.pictures[trial.good]) @ texts[trial.good].T).double()
    own, count = products.diagonal().sum(), len(products)
    return max(0.0, float(own / count - (products.sum() - own) / (count * (count - 1))))


def _recommended(
    points: list[Point],
    margin: float,
    left_out: int = 0,
    refused: dict[str, list[Setting]] | None = None,
    rows: float | None = None,
) -> Tuned:
    """The answers to the questions that people ask. A setting is as good as all steps if its loss is shown to be small,
    not if a loss is not shown: with fewer prompts nothing is shown, and little is recommended."""
    full = points[0]
    floor = full.distance
    sound = [p for p in points if not p.failed]
    alike = [p for p in sound if p.distance.value <= floor.high]
    same = min((p for p in alike if p.behind.high <= margin), key=lambda p: p.rows, default=full)
    undecided = [p for p in alike if p.rows < same.rows and p.behind.value <= margin < p.behind.high]
    given = full.rows / 2 if rows is None else rows
    cheap = [p for p in alike if p.rows <= given] or [p for p in sound if p.rows <= given]
    return Tuned(
        points=points,
        floor=floor,
        margin=margin,
        same_quality=same,
        given=given,
        best_in_rows=max(cheap, key=lambda p: p.alignment.value, default=None),
        sharing_pays=any(_pays(p, sound) for p in sound if p.setting.share),
        undecided=len(undecided),
        left_out=left_out,
        refused=refused or {},
    )


def _pays(shared: Point, points: list[Point]) -> bool:
    """Whether a shared point is measurably better, prompt by prompt, than all independent ones of no more rows."""
    rivals = [p for p in points if not p.setting.share and p.rows <= shared.rows]
    gains = (metrics.difference(np.array(shared.scores), np.array(rival.scores)) for rival in rivals)
    return bool(rivals) and all(gain.low > 0 for gain in gains)
