"""Before a large run: which settings give the same quality for the fewest rows, on a sample of the user's prompts?

Settings are tried in order, the most informative first, until the budget of rows is used up. Each is compared with the
reference, which is independent sampling in all steps. Fewer steps come first, because they are the alternative to beat.
Distances are to images from other noise: with the same noise, fewer steps resemble the reference however bad they are,
and the images of a group do not.

A setting is recommended as "same quality" only if that is shown: the intervals of its alignment loss and of its excess
of distance must lie below their margins (see `equivalence`). The intervals of all settings hold together with 95 %
(Bonferroni). Otherwise the cheapest of many settings would be one that chance favoured.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..errors import CotrunkError
from ..evaluation import metrics
from ..evaluation.metrics import Groups
from ..evaluation.networks import AlignmentNetwork, FeatureNetwork
from ..settings import Settings
from .candidates import MIN_PROMPTS, candidate, candidates, neighbours
from .equivalence import Estimate, distance_excess, estimate, spread
from .outcome import Point, Tuned, recommend
from .trials import Trial, Trials

UNKNOWN = metrics.Figure(np.nan, np.nan, np.nan)  # for fewer than two images
UNMEASURED = Estimate(np.nan, np.nan, 1, 1)


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
    """Try settings until `budget` denoiser rows are used up, or all settings if it is None.

    Settings that the pipeline refuses are reported with its reason. Those whose images are stored are not run again.

    Args:
        trials: of a pipeline and at least `MIN_PROMPTS` prompts.
        steps: number of steps of the reference.
        similarity: minimum cosine in a group; None for the encoder's own threshold.
        margin: the largest loss that still counts as equal quality, from 0 to below 1. For alignment it is relative to
            how much better images match their own prompt than the others. For distance it is relative to the distance
            of two images of one prompt from different noise. These scales depend on neither the networks nor the number
            of prompts.
        rows: rows per image, for the best setting within a limit; None for half of the reference's.
        seed: random seed of the images.
        on_point: called after each setting.

    Raises:
        CotrunkError: the pipeline refuses the reference, or nearly all its images contain NaN; the budget does not
            allow the reference; or `rows` is more than it needs.
    """
    full = candidate(steps)
    costs = {full: trials.predicted(full, seed)}
    if budget is not None and 2 * costs[full] > budget:
        raise CotrunkError(
            f"A budget of {budget} rows is not enough: use {2 * costs[full]} or more, for independent sampling alone."
        )
    whole = costs[full] / len(trials.prompts)
    if rows is not None and rows > whole:
        raise CotrunkError(
            f"{rows:g} rows per image are more than the {whole:g} of {steps} steps: use fewer rows, or more steps."
        )
    equal_cost = int(steps / 2 if rows is None else steps * rows / whole)
    refused: dict[str, list[Settings]] = {}
    for settings in candidates(steps, similarity, _other_similarities(trials, similarity), equal_cost):
        try:
            costs[settings] = trials.predicted(settings, seed)
        except CotrunkError as error:
            refused.setdefault(str(error), []).append(settings)
    texts = alignment.text_vectors(trials.prompts)
    first, other = trials.of(full, seed), trials.of(full, seed + 1)
    both = sorted({*first.good} & {*other.good})
    if len(both) < MIN_PROMPTS:
        raise CotrunkError("Nearly all images of independent sampling contain NaN: use another dtype or scheduler.")
    expected = _scores(first, alignment, texts)
    same_noise, other_noise = (
        _spread_out(trial, features.features(trial.images[trial.good])) for trial in (first, other)
    )
    margins = (margin * _lead(other, alignment, texts), margin * spread(same_noise[both], other_noise[both]))
    count = len(trials.prompts)
    used, over_budget = other.rows * count, 0
    points: list[Point] = []
    for settings, cost in costs.items():
        if points and budget is not None and used + cost > budget:
            over_budget += 1
            continue
        try:
            trial = trials.of(settings, seed)
        except CotrunkError as error:  # some models refuse skipping only when they run
            refused.setdefault(str(error), []).append(settings)
            continue
        used += trial.rows * count
        scores = _scores(trial, alignment, texts)
        good = sorted({*trial.good} & {*both})
        groups = _restricted(trial.groups, good)
        loss = excess = UNMEASURED
        if len(good) > 2 and len(groups) > 1:
            own = _spread_out(trial, features.features(trial.images[trial.good]))
            loss = estimate((expected - scores)[good], groups)
            excess = estimate(distance_excess(own[good], same_noise[good], other_noise[good]), groups)
        point = Point(
            settings=settings,
            rows=trial.rows,
            seconds=trial.seconds,
            alignment=metrics.mean(scores) if len(trial.good) > 1 else UNKNOWN,
            alignment_loss=loss,
            distance_excess=excess,
            saved_by_sharing=trial.saved_by_sharing,
            failed=count - len(trial.good),
            scores=tuple(scores.tolist()),
            groups=tuple(map(tuple, trial.groups)),
        )
        points.append(point)
        on_point(point)
    return recommend(points, margins, over_budget, refused, rows)


def _other_similarities(trials: Trials, similarity: float | None) -> list[float]:
    try:
        return neighbours(trials.threshold if similarity is None else similarity)
    except CotrunkError:  # prompts cannot be compared: settings with sharing are refused for this reason
        return []


def _spread_out(trial: Trial, features: torch.Tensor) -> torch.Tensor:
    """Return features (n, d) at the places of all images, from those of the good ones; NaN where an image failed."""
    found = torch.full((len(trial.images), features.shape[1]), torch.nan, dtype=features.dtype)
    found[trial.good] = features
    return found


def _restricted(groups: Groups, places: Sequence[int]) -> list[list[int]]:
    """Return groups without images that are not in `places`, as indices into `places`."""
    order = {place: number for number, place in enumerate(places)}
    found = [[order[place] for place in group if place in order] for group in groups]
    return [group for group in found if group]


def _scores(trial: Trial, alignment: AlignmentNetwork, texts: torch.Tensor) -> metrics.Values:
    """Return the alignment of each image with its prompt (n,); NaN where an image failed."""
    scores = np.full(len(texts), np.nan)
    scores[trial.good] = metrics.alignment(alignment.image_vectors(trial.images[trial.good]), texts[trial.good])
    return scores


def _lead(trial: Trial, alignment: AlignmentNetwork, texts: torch.Tensor) -> float:
    """Return how much better images match their own prompt than the others' prompts; at least 0."""
    products = (alignment.image_vectors(trial.images[trial.good]) @ texts[trial.good].T).double()
    own, count = products.diagonal().sum(), len(products)
    return max(0.0, float(own / count - (products.sum() - own) / (count * (count - 1))))
