"""What is measured on sets of pictures: Frechet distance, diversity in groups, alignment, prompt bleed; each with the
interval that chance allows it."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import CotrunkError
from .networks import PerceptualNetwork

Values = NDArray[np.float64]
Groups = Sequence[Sequence[int]]  # of pictures
DRAWS = 1000  # of a bootstrap
FRECHET_DRAWS = 400  # of one whose every draw needs matrix roots
FULL_DRAWS = 100  # where these are of all dimensions of a network, and take seconds


@dataclass(frozen=True)
class Figure:
    """A measured number and its 95 % interval, by bootstrap."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    @property
    def is_clear(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Change:
    """What one measure has more than another, as it is and as a part of the other; NaN where that is zero."""

    absolute: Figure
    relative: Figure


def mean(values: Values, groups: Groups | None = None, seed: int = 0) -> Figure:
    """The mean of values (n,), those that are NaN left out.

    groups: what is drawn anew for the interval: pictures of a group are alike, so it is groups that are independent.
    None: every value by itself.
    """
    _enough(values)
    parts = [[i] for i in range(len(values))] if groups is None else groups
    known = ~np.isnan(values)
    sums = np.array([values[list(part)][known[list(part)]].sum() for part in parts])
    counts = np.array([known[list(part)].sum() for part in parts])
    draw = np.random.default_rng(seed)
    chosen = draw.integers(len(parts), size=(DRAWS, len(parts)))
    means = sums[chosen].sum(axis=1) / np.maximum(counts[chosen].sum(axis=1), 1)
    return Figure(float(sums.sum() / max(counts.sum(), 1)), *_interval(means))


def difference(values: Values, others: Values, groups: Groups | None = None, seed: int = 0) -> Figure:
    """The mean of values - others, pairs of the same prompt and seed: a narrower interval than that of either."""
    return mean(values - others, groups, seed)


def change(values: Values, others: Values, groups: Groups | None = None, seed: int = 0) -> Change:
    """`difference`, and the same as a part of the mean of others: both means are taken over the same drawn groups."""
    _enough(values)
    parts = [[i] for i in range(len(values))] if groups is None else groups
    both = np.stack([values, others], axis=1)
    known = np.isfinite(values - others)
    owns = [np.array(part, int)[known[list(part)]] for part in parts]
    sums = np.stack([both[own].sum(axis=0) for own in owns])
    counts = np.array([len(own) for own in owns])
    chosen = np.random.default_rng(seed).integers(len(parts), size=(DRAWS, len(parts)))
    drawn = sums[chosen].sum(axis=1) / np.maximum(counts[chosen].sum(axis=1), 1)[:, None]
    return _change(sums.sum(axis=0) / max(counts.sum(), 1), drawn)


def frechet_distance(features: torch.Tensor, reference: torch.Tensor, dimensions: int | None = 64) -> float:
    """Frechet distance between two Gaussians (Heusel et al. 2017).

    Args:
        features, reference: (n, d) and (m, d).
        dimensions: of the subspace it is taken in, the reference's first principal components, or all of them where it
            has fewer: m pictures differ along m - 1 axes at most. With fewer than some ten thousand pictures a
            covariance of 2,048 dimensions is mostly chance. None: all dimensions, which is what FID takes.

    Raises:
        CotrunkError: fewer than two pictures, or a reference of equal ones, which has no principal component.
    """
    mine, theirs = _projected(reference, dimensions, features, reference)
    return _Gaussian.of(theirs).distance(_Gaussian.of(mine))


def frechet(
    features: torch.Tensor,
    reference: torch.Tensor,
    groups: Groups | None = None,
    reference_groups: Groups | None = None,
    dimensions: int | None = 64,
    seed: int = 0,
) -> Figure:
    """`frechet_distance` with its interval.

    Args:
        groups: as for `mean`.
        reference_groups: the reference's pictures by the same groups, which are drawn for both; None: its pictures are
            drawn one by one, on their own.
    """
    mine, theirs = _projected(reference, dimensions, features, reference)
    drawn = []
    for (times,), real in _draws([len(mine)], len(theirs), groups, reference_groups, dimensions, seed):
        drawn.append(_Gaussian.of(theirs, real).distance(_Gaussian.of(mine, times)))
    value = _Gaussian.of(theirs).distance(_Gaussian.of(mine))
    # sets with repeated pictures lie further apart than the sets themselves: the interval is moved back by that much
    shift = float(np.mean(drawn)) - value
    low, high = _interval(drawn)
    return Figure(value, max(0.0, low - shift), high - shift)


def frechet_change(
    features: torch.Tensor,
    others: torch.Tensor,
    reference: torch.Tensor,
    groups: Groups,
    reference_groups: Groups | None = None,
    dimensions: int | None = 64,
    seed: int = 0,
) -> Change:
    """Frechet distance of features against that of others, both to the reference: the same groups and the same real
    pictures are drawn for both. Arguments as of `frechet`."""
    mine, theirs, real = _projected(reference, dimensions, features, others, reference)
    sets, drawn = (mine, theirs), []
    for times, of_real in _draws([len(own) for own in sets], len(real), groups, reference_groups, dimensions, seed):
        centre = _Gaussian.of(real, of_real)
        drawn.append([centre.distance(_Gaussian.of(own, some)) for own, some in zip(sets, times, strict=True)])
    centre = _Gaussian.of(real)
    value, moved = np.array([centre.distance(_Gaussian.of(own)) for own in sets]), np.array(drawn)
    return _change(value, moved - moved.mean(axis=0) + value)  # moved back, as in `frechet`


def diversity(network: PerceptualNetwork, pictures: torch.Tensor, groups: Groups) -> Values:
    """(groups,): mean distance between two pictures of a group. Groups of one say nothing and are left out."""
    pairs = [list(itertools.combinations(group, 2)) for group in groups if len(group) > 1]
    if not pairs:
        raise CotrunkError("There is no group of two pictures or more: diversity within groups needs some.")
    distances = network.distances(pictures, torch.tensor([pair for own in pairs for pair in own])).double().numpy()
    ends = np.cumsum([len(own) for own in pairs])[:-1]
    return np.array([own.mean() for own in np.split(distances, ends)])


def alignment(pictures: torch.Tensor, texts: torch.Tensor) -> Values:
    """(n,): the product of each picture's vector (n, d) and its own prompt's (n, d)."""
    return (pictures * texts).sum(dim=1).double().numpy()


def bleed(pictures: torch.Tensor, texts: torch.Tensor, groups: Groups) -> Values:
    """(n,): 1 where a picture matches another prompt of its group better than its own, else 0; NaN for a picture that
    is alone. Vectors as for `alignment`."""
    wrong = np.full(len(pictures), np.nan)
    for group in groups:
        if len(group) > 1:
            own = list(group)
            scores = pictures[own] @ texts[own].T
            wrong[own] = (scores.argmax(dim=1) != torch.arange(len(own))).double().numpy()
    if np.isnan(wrong).all():
        raise CotrunkError("There is no group of two pictures or more: prompt bleed needs some.")
    return wrong


def _projected(reference: torch.Tensor, dimensions: int | None, *features: torch.Tensor) -> list[Values]:
    """Features in the subspace of the reference's first principal components, or as they are. Axes along which the
    reference does not vary are no components: a decomposition returns some, at will, and another one for the same
    pictures in another order."""
    for own in features:
        _enough(own)
    if dimensions is None:
        return [own.double().numpy() for own in features]
    exact = reference.double()
    _, spreads, axes = torch.linalg.svd(exact - exact.mean(dim=0), full_matrices=False)
    # networks work in float32: equal pictures in two batches differ by its rounding, which is not variance
    rounding = torch.finfo(torch.float32).eps * max(exact.shape) * float(exact.norm())
    chosen = axes[: min(dimensions, int((spreads > rounding).sum()))].T
    if not chosen.shape[1]:
        raise CotrunkError(
            f"The {len(reference)} real pictures are all alike: a Frechet distance needs different ones."
        )
    return [(own.double() @ chosen).numpy() for own in features]


def _draws(
    counts: Sequence[int],
    real: int,
    groups: Groups | None,
    real_groups: Groups | None,
    dimensions: int | None,
    seed: int,
) -> Iterator[tuple[list[Values], Values]]:
    """How many times each picture of some sets, that are grouped alike, and each real one is drawn: draw by draw."""
    draw = np.random.default_rng(seed)

    def times(chosen: NDArray[np.intp], count: int, parts: Groups | None) -> Values:
        often = np.bincount(chosen, minlength=count if parts is None else len(parts)).astype(np.float64)
        if parts is None:
            return often
        found = np.zeros(count)
        for part, number in zip(parts, often, strict=True):
            found[list(part)] += number
        return found

    for _ in range(FRECHET_DRAWS if dimensions else FULL_DRAWS):
        number = counts[0] if groups is None else len(groups)
        chosen = draw.integers(number, size=number)
        alone = chosen if real_groups is not None else draw.integers(real, size=real)
        yield [times(chosen, count, groups) for count in counts], times(alone, real, real_groups)


@dataclass(frozen=True)
class _Gaussian:
    """Mean (d,) and covariance (d, d) of features."""

    mean: Values
    covariance: Values

    @classmethod
    def of(cls, features: Values, times: Values | None = None) -> "_Gaussian":
        """Of features (n, d), each as many times as drawn (n,)."""
        often = np.ones(len(features)) if times is None else times
        count = max(often.sum(), 2.0)  # groups may be drawn in which every picture failed
        mean = often @ features / count
        apart = features - mean
        return cls(mean, (apart * often[:, None]).T @ apart / (count - 1))

    @functools.cached_property
    def root(self) -> Values:
        """Of the covariance."""
        values, vectors = np.linalg.eigh(self.covariance)
        return np.asarray(vectors * np.sqrt(values.clip(min=0)) @ vectors.T)

    def distance(self, other: "_Gaussian") -> float:
        """Frechet distance."""
        # the trace of the root of a product, by symmetric matrices: a root of a singular product is not to be trusted
        shared = float(np.sqrt(np.linalg.eigvalsh(self.root @ other.covariance @ self.root).clip(min=0)).sum())
        apart = float(np.square(self.mean - other.mean).sum())
        traces = float(np.trace(self.covariance) + np.trace(other.covariance))
        return max(0.0, apart + traces - 2 * shared)


def _change(value: Values, drawn: Values) -> Change:
    """Of two measures (2,) and their draws (draws, 2): the first against the second."""
    apart, moved = value[0] - value[1], drawn[:, 0] - drawn[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):  # the second may be zero
        part, parts = apart / abs(value[1]), moved / abs(drawn[:, 1])
    return Change(Figure(float(apart), *_interval(moved)), Figure(float(part), *_interval(parts)))


def _interval(drawn: Sequence[float] | Values) -> tuple[float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _enough(values: Values | torch.Tensor) -> None:
    if len(values) < 2:
        raise CotrunkError(f"{len(values)} pictures or groups are too few to measure: take two or more.")
