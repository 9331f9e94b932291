"""Metrics of sets of images, with confidence intervals: Frechet distance, diversity in groups, alignment, bleed."""

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
Groups = Sequence[Sequence[int]]  # indices of the images of each group
DRAWS = 1000  # bootstrap resamples
FRECHET_DRAWS = 400  # for Frechet distances, which need matrix roots per resample
FULL_DRAWS = 100  # for Frechet distances in all dimensions, whose matrix roots take seconds


@dataclass(frozen=True)
class Figure:
    """A measured number with its 95 % interval by bootstrap."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    @property
    def is_clear(self) -> bool:
        """Return whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Change:
    """The difference of two measurements, absolute and relative to the second; NaN if the second is zero."""

    absolute: Figure
    relative: Figure


def mean(values: Values, groups: Groups | None = None, seed: int = 0) -> Figure:
    """Return the mean of values (n,), ignoring NaN.

    Args:
        groups: resampled for the interval. Images of a group are similar, so only groups are independent. None
            resamples single values.
    """
    _check_count(values)
    parts = [[i] for i in range(len(values))] if groups is None else groups
    known = ~np.isnan(values)
    sums = np.array([values[list(part)][known[list(part)]].sum() for part in parts])
    counts = np.array([known[list(part)].sum() for part in parts])
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(parts), size=(DRAWS, len(parts)))
    means = sums[chosen].sum(axis=1) / np.maximum(counts[chosen].sum(axis=1), 1)
    return Figure(float(sums.sum() / max(counts.sum(), 1)), *_interval(means))


def difference(values: Values, others: Values, groups: Groups | None = None, seed: int = 0) -> Figure:
    """Return the mean of values - others, paired by prompt and seed, which narrows the interval."""
    return mean(values - others, groups, seed)


def change(values: Values, others: Values, groups: Groups | None = None, seed: int = 0) -> Change:
    """Return `difference`, absolute and relative to the mean of `others`. Both means use the same resampled groups."""
    _check_count(values)
    parts = [[i] for i in range(len(values))] if groups is None else groups
    both = np.stack([values, others], axis=1)
    known = np.isfinite(values - others)
    owns = [np.array(part, int)[known[list(part)]] for part in parts]
    sums = np.stack([both[own].sum(axis=0) for own in owns])
    counts = np.array([len(own) for own in owns])
    chosen = np.random.default_rng(seed).integers(len(parts), size=(DRAWS, len(parts)))
    resampled = sums[chosen].sum(axis=1) / np.maximum(counts[chosen].sum(axis=1), 1)[:, None]
    return _change(sums.sum(axis=0) / max(counts.sum(), 1), resampled)


def frechet_distance(features: torch.Tensor, reference: torch.Tensor, dimensions: int | None = 64) -> float:
    """Return the Frechet distance between two Gaussians (Heusel et al. 2017).

    Args:
        features, reference: (n, d) and (m, d).
        dimensions: dimensions of the subspace of the reference's first principal components. A reference of m images
            has at most m - 1 of them. With fewer than about ten thousand images, a covariance of 2,048 dimensions is
            mostly noise. None for all dimensions, as in FID.

    Raises:
        CotrunkError: there are fewer than two images, or the images of the reference are all equal.
    """
    projected, target = _projected(reference, dimensions, features, reference)
    return _Gaussian.of(target).distance(_Gaussian.of(projected))


def frechet(
    features: torch.Tensor,
    reference: torch.Tensor,
    groups: Groups | None = None,
    reference_groups: Groups | None = None,
    dimensions: int | None = 64,
    seed: int = 0,
) -> Figure:
    """Return `frechet_distance` with its interval.

    Args:
        groups: as for `mean`.
        reference_groups: the images of the reference by the same groups, which are then resampled together. None
            resamples single images of the reference.
    """
    projected, target = _projected(reference, dimensions, features, reference)
    resampled = []
    for (times,), real in _draws([len(projected)], len(target), groups, reference_groups, dimensions, seed):
        resampled.append(_Gaussian.of(target, real).distance(_Gaussian.of(projected, times)))
    value = _Gaussian.of(target).distance(_Gaussian.of(projected))
    # resampled sets repeat images and so have larger distances: shift the interval back by the mean excess
    shift = float(np.mean(resampled)) - value
    low, high = _interval(resampled)
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
    """Return the Frechet distance of `features` minus that of `others`, both to the reference.

    The same groups and the same images of the reference are resampled for both. Arguments are as for `frechet`.
    """
    first, second, real = _projected(reference, dimensions, features, others, reference)
    sets, resampled = (first, second), []
    for times, of_real in _draws([len(own) for own in sets], len(real), groups, reference_groups, dimensions, seed):
        centre = _Gaussian.of(real, of_real)
        resampled.append([centre.distance(_Gaussian.of(own, some)) for own, some in zip(sets, times, strict=True)])
    centre = _Gaussian.of(real)
    value, moved = np.array([centre.distance(_Gaussian.of(own)) for own in sets]), np.array(resampled)
    return _change(value, moved - moved.mean(axis=0) + value)  # shifted back, as in `frechet`


def diversity(network: PerceptualNetwork, images: torch.Tensor, groups: Groups) -> Values:
    """Return the mean distance between two images of each group (groups,), without groups of one image."""
    pairs = [list(itertools.combinations(group, 2)) for group in groups if len(group) > 1]
    if not pairs:
        raise CotrunkError("No group has two images: diversity within groups needs groups of two or more.")
    distances = network.distances(images, torch.tensor([pair for own in pairs for pair in own])).double().numpy()
    ends = np.cumsum([len(own) for own in pairs])[:-1]
    return np.array([own.mean() for own in np.split(distances, ends)])


def alignment(images: torch.Tensor, texts: torch.Tensor) -> Values:
    """Return the dot product (n,) of the vectors of each image and of its prompt, both (n, d)."""
    return (images * texts).sum(dim=1).double().numpy()


def bleed(images: torch.Tensor, texts: torch.Tensor, groups: Groups) -> Values:
    """Return 1 for images that match another prompt of their group better than their own, and 0 for others (n,).

    Images without a group get NaN. Vectors are as for `alignment`.
    """
    wrong = np.full(len(images), np.nan)
    for group in groups:
        if len(group) > 1:
            own = list(group)
            scores = images[own] @ texts[own].T
            wrong[own] = (scores.argmax(dim=1) != torch.arange(len(own))).double().numpy()
    if np.isnan(wrong).all():
        raise CotrunkError("No group has two images: prompt bleed needs groups of two or more.")
    return wrong


def _projected(reference: torch.Tensor, dimensions: int | None, *features: torch.Tensor) -> list[Values]:
    """Project features onto the reference's first principal components, or leave them unchanged.

    Axes along which the reference does not vary are dropped: a decomposition chooses them arbitrarily, and differently
    for another order of the same images.
    """
    for own in features:
        _check_count(own)
    if dimensions is None:
        return [own.double().numpy() for own in features]
    exact = reference.double()
    _, spreads, axes = torch.linalg.svd(exact - exact.mean(dim=0), full_matrices=False)
    # in float32, features of equal images in two batches differ by rounding, which is not variance
    rounding = torch.finfo(torch.float32).eps * max(exact.shape) * float(exact.norm())
    chosen = axes[: min(dimensions, int((spreads > rounding).sum()))].T
    if not chosen.shape[1]:
        raise CotrunkError(f"The {len(reference)} real images are all equal: a Frechet distance needs different ones.")
    return [(own.double() @ chosen).numpy() for own in features]


def _draws(
    counts: Sequence[int],
    real: int,
    groups: Groups | None,
    real_groups: Groups | None,
    dimensions: int | None,
    seed: int,
) -> Iterator[tuple[list[Values], Values]]:
    """Yield, per resample, how often each image of some sets and each real image is drawn.

    The sets have the same groups, which are drawn together.
    """
    rng = np.random.default_rng(seed)

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
        chosen = rng.integers(number, size=number)
        alone = chosen if real_groups is not None else rng.integers(real, size=real)
        yield [times(chosen, count, groups) for count in counts], times(alone, real, real_groups)


@dataclass(frozen=True)
class _Gaussian:
    """Mean (d,) and covariance (d, d) of features."""

    mean: Values
    covariance: Values

    @classmethod
    def of(cls, features: Values, times: Values | None = None) -> "_Gaussian":
        """Return the Gaussian of features (n, d), each weighted by how often it was drawn (n,)."""
        often = np.ones(len(features)) if times is None else times
        count = max(often.sum(), 2.0)  # all images of the drawn groups may have failed
        mean = often @ features / count
        centred = features - mean
        return cls(mean, (centred * often[:, None]).T @ centred / (count - 1))

    @functools.cached_property
    def root(self) -> Values:
        """Return the square root of the covariance."""
        values, vectors = np.linalg.eigh(self.covariance)
        return np.asarray(vectors * np.sqrt(values.clip(min=0)) @ vectors.T)

    def distance(self, other: "_Gaussian") -> float:
        """Return the Frechet distance."""
        # trace of the root of a product, by symmetric matrices: the root of a singular product is inaccurate
        shared = float(np.sqrt(np.linalg.eigvalsh(self.root @ other.covariance @ self.root).clip(min=0)).sum())
        squared = float(np.square(self.mean - other.mean).sum())
        traces = float(np.trace(self.covariance) + np.trace(other.covariance))
        return max(0.0, squared + traces - 2 * shared)


def _change(value: Values, resampled: Values) -> Change:
    """Return the change from the second to the first of two values (2,), given their resamples (resamples, 2)."""
    apart, moved = value[0] - value[1], resampled[:, 0] - resampled[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):  # the second may be zero
        part, parts = apart / abs(value[1]), moved / abs(resampled[:, 1])
    return Change(Figure(float(apart), *_interval(moved)), Figure(float(part), *_interval(parts)))


def _interval(resampled: Sequence[float] | Values) -> tuple[float, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def _check_count(values: Values | torch.Tensor) -> None:
    if len(values) < 2:
        raise CotrunkError(f"{len(values)} images or groups are too few to measure: use two or more.")
