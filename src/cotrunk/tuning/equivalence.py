"""Are the images of one setting as good as those of another? A test of equivalence, and how many prompts it needs.

A difference that was not shown proves nothing, because few prompts hardly ever show one. So a setting counts as
equivalent only if the whole confidence interval of its loss lies below a margin. This is one of the two one-sided tests
of Schuirmann (1987, "A comparison of the two one-sided tests procedure and the power approach"). One side suffices,
because images better than the reference's are welcome.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import stats

from ..errors import CotrunkError
from ..evaluation.metrics import Figure, Groups, Values

POWER = 0.9  # per metric; with two metrics, both are shown in at least 0.8 of the cases
MOST_PROMPTS = 1_000_000  # if more are needed, the difference practically equals the margin


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts.

    Attributes:
        value: the mean.
        error: its standard error.
        freedom: degrees of freedom of the error: the number of independent groups of prompts, less one.
        prompts: number of prompts.
    """

    value: float
    error: float
    freedom: int
    prompts: int

    def interval(self, confidence: float = 0.95) -> Figure:
        """Return the interval by Student's t, which suits few prompts; a bootstrap of a dozen is too narrow."""
        reach = float(stats.t.ppf((1 + confidence) / 2, self.freedom)) * self.error
        return Figure(self.value, self.value - reach, self.value + reach)

    def prompts_to_decide(self, margin: float, confidence: float = 0.95) -> int:
        """Return how many prompts put the interval on one side of the margin with probability `POWER`.

        It assumes the measured value and spread, and groups of the measured sizes. The number is that of a paired
        non-inferiority trial (Julious 2004, "Sample sizes for clinical trials with Normal data", Statistics in Medicine
        23): n = (t_alpha + t_beta)^2 s^2 / (value - margin)^2. Here s is the standard deviation of one prompt, and the
        t are quantiles of Student's distribution at 1 - alpha = (1 + confidence) / 2 and 1 - beta = POWER. Their
        degrees of freedom depend on n, so the smallest sufficient n is found by bisection.
        """
        gap = abs(self.value - margin)

        def is_enough(count: int) -> bool:
            freedom = max(1.0, (self.freedom + 1) * count / self.prompts - 1)
            reach = float(stats.t.ppf((1 + confidence) / 2, freedom) + stats.t.ppf(POWER, freedom))
            return reach * self.error * math.sqrt(self.prompts / count) <= gap

        return bisect.bisect_left(range(MOST_PROMPTS), True, lo=3, key=is_enough)


def estimate(values: Values, groups: Groups | None = None) -> Estimate:
    """Return the mean of values (n,), with an error that respects groups.

    Args:
        groups: prompts whose images share steps. Chance affects their images in the same way, so only groups are
            independent, and the error is that of a mean of clusters (Liang and Zeger 1986). None for no groups.

    Raises:
        CotrunkError: there are fewer than two groups.
    """
    mean = float(values.mean())
    deviations = values - mean
    if groups is not None:
        deviations = np.array([deviations[list(group)].sum() for group in groups if len(group)])
    count = len(deviations)
    if count < 2:
        raise CotrunkError(f"{count} independent groups of prompts are too few to compare: use more prompts.")
    error = math.sqrt(count / (count - 1) * float(np.square(deviations).sum())) / len(values)
    return Estimate(mean, error, count - 1, len(values))


def distance_excess(features: torch.Tensor, same: torch.Tensor, other: torch.Tensor) -> Values:
    """Return, per prompt (n,), how much farther images are from other-noise images than the reference's images are.

    The distance of two sets is the squared maximum mean discrepancy under the kernel (cosine + 1)^3, without pairs of
    one prompt. For sets of the same distribution it is zero on average, at any size (Gretton et al. 2012, "A kernel
    two-sample test", equation 4). The excess over the reference's own distance is a U-statistic of the prompts. The
    values returned are its jackknife pseudo-values (Arvesen 1969, "Jackknifing U-statistics"): their mean is the
    excess, and their standard error is that of the excess.

    Args:
        features: (n, d) features of one image per prompt, of the setting.
        same: (n, d) of the reference from the same noise.
        other: (n, d) of the reference from other noise.

    Raises:
        CotrunkError: there are fewer than three prompts.
    """
    count = len(features)
    if count < 3:
        raise CotrunkError(f"{count} prompts are too few to compare sets of images: use three or more.")
    tried, reference, others = (F.normalize(x.double(), dim=1) for x in (features, same, other))
    across = _kernel(tried, others) - _kernel(reference, others)
    pairs = _kernel(tried, tried) - _kernel(reference, reference) - across - across.T
    np.fill_diagonal(pairs, 0)
    of_each = pairs.sum(axis=1)
    total = float(of_each.sum())
    without = (total - 2 * of_each) / ((count - 1) * (count - 2))
    return np.asarray(total / (count - 1) - (count - 1) * without)


def spread(features: torch.Tensor, other: torch.Tensor) -> float:
    """Return the distance of two images of one prompt from different noise, on the scale of `distance_excess`.

    It is half their mean squared distance under its kernel. Both arguments are (n, d).
    """
    first, second = (F.normalize(x.double(), dim=1) for x in (features, other))
    return float((8 - ((first * second).sum(dim=1) + 1) ** 3).mean())  # (1 + 1)^3: an image with itself


def _kernel(left: torch.Tensor, right: torch.Tensor) -> NDArray[np.float64]:
    return ((left @ right.T + 1) ** 3).numpy()


def are_below(losses: Sequence[Estimate], margins: Sequence[float], confidence: float) -> bool | None:
    """Return True if all losses are shown to be below their margins, False if any is shown to be above, else None.

    Each loss is tested at the full level. True needs all tests to agree (an intersection-union test, Berger 1982),
    which chance achieves no more often than it passes the strictest of them.
    """
    intervals = [loss.interval(confidence) for loss in losses]
    if all(found.high <= margin for found, margin in zip(intervals, margins, strict=True)):
        return True
    return False if any(found.low > margin for found, margin in zip(intervals, margins, strict=True)) else None


def prompts_to_decide(losses: Sequence[Estimate], margins: Sequence[float], confidence: float) -> int:
    """Return how many prompts `are_below` needs to decide: to show all losses below, or one above its margin."""
    both = [*zip(losses, margins, strict=True)]
    above = [loss.prompts_to_decide(margin, confidence) for loss, margin in both if loss.value > margin]
    return min(above) if above else max(loss.prompts_to_decide(margin, confidence) for loss, margin in both)
