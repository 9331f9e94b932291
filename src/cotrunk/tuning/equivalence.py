"""Are the pictures of one setting as good as those of another? A test of equivalence, and how many prompts it takes.

That no difference was shown proves nothing: with few prompts none ever is. So a setting counts as equivalent only where
the whole confidence interval of its loss lies below a margin (Schuirmann 1987, "A comparison of the two one-sided tests
procedure and the power approach"). One side suffices here: pictures that are better than the reference are no fault.
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

POWER = 0.9  # of each measure; with two of them both are shown in 0.8 of the cases or more
MOST = 1_000_000  # prompts that are asked for; where more are needed the difference is the margin itself


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts.

    Attributes:
        value: the mean.
        error: its standard error.
        freedom: degrees of freedom of the error: independent groups of prompts, less one.
        prompts: over which the mean is taken.
    """

    value: float
    error: float
    freedom: int
    prompts: int

    def interval(self, confidence: float = 0.95) -> Figure:
        """By Student's t, which allows for few prompts; a bootstrap of a dozen values is too narrow."""
        reach = float(stats.t.ppf((1 + confidence) / 2, self.freedom)) * self.error
        return Figure(self.value, self.value - reach, self.value + reach)

    def prompts_to_decide(self, margin: float, confidence: float = 0.95) -> int:
        """How many prompts it takes, with probability `POWER`, until the interval lies on one side of the margin, if
        the value and the spread are those that were measured.

        n = (t_alpha + t_beta)^2 s^2 / (value - margin)^2, s the standard deviation of one prompt and t the quantiles of
        Student's distribution at 1 - alpha = (1 + confidence) / 2 and 1 - beta = POWER: the number of a paired
        non-inferiority trial (Julious 2004, "Sample sizes for clinical trials with Normal data", Statistics in Medicine
        23). The degrees of freedom depend on n, so that the least n that is enough is searched for. Prompts that share
        their steps come in groups as large as those measured.
        """
        gap = abs(self.value - margin)

        def is_enough(count: int) -> bool:
            freedom = max(1.0, (self.freedom + 1) * count / self.prompts - 1)
            reach = float(stats.t.ppf((1 + confidence) / 2, freedom) + stats.t.ppf(POWER, freedom))
            return reach * self.error * math.sqrt(self.prompts / count) <= gap

        return bisect.bisect_left(range(MOST), True, lo=3, key=is_enough)


def estimate(values: Values, groups: Groups | None = None) -> Estimate:
    """The mean of values (n,), with an error that allows for prompts of a group being drawn together.

    groups: of prompts whose pictures share steps, which are alike in whatever chance did to them: it is groups that are
    independent. The error is that of a mean of clusters (Liang and Zeger 1986); for groups of one it is that of a mean.
    None: every value by itself.

    Raises:
        CotrunkError: fewer than two groups.
    """
    mean = float(values.mean())
    apart = values - mean
    if groups is not None:
        apart = np.array([apart[list(group)].sum() for group in groups if len(group)])
    count = len(apart)
    if count < 2:
        raise CotrunkError(f"{count} independent groups of prompts are too few to compare: take more.")
    error = math.sqrt(count / (count - 1) * float(np.square(apart).sum())) / len(values)
    return Estimate(mean, error, count - 1, len(values))


def distance_excess(features: torch.Tensor, same: torch.Tensor, other: torch.Tensor) -> Values:
    """How much further than the reference's pictures are from those of other noise, prompt by prompt (n,).

    All (n, d), features of one picture per prompt: of a setting, of the reference from the same noise, and of the
    reference from other noise. The distance of two sets is the squared maximum mean discrepancy under the kernel
    (cosine + 1)^3, without pairs of one prompt, so that its expectation is zero for sets that are alike whatever their
    size (Gretton et al. 2012, "A kernel two-sample test", equation 4). Its excess over the reference's own is a
    U-statistic of the prompts; what is returned are its jackknife pseudo-values (Arvesen 1969, "Jackknifing
    U-statistics"), whose mean is the excess and whose standard error is that of the excess.

    Raises:
        CotrunkError: fewer than three prompts.
    """
    count = len(features)
    if count < 3:
        raise CotrunkError(f"{count} prompts are too few to compare sets of pictures: take three or more.")
    mine, own, theirs = (F.normalize(x.double(), dim=1) for x in (features, same, other))
    across = _kernel(mine, theirs) - _kernel(own, theirs)
    pairs = _kernel(mine, mine) - _kernel(own, own) - across - across.T
    np.fill_diagonal(pairs, 0)
    of_each = pairs.sum(axis=1)
    total = float(of_each.sum())
    without = (total - 2 * of_each) / ((count - 1) * (count - 2))
    return np.asarray(total / (count - 1) - (count - 1) * without)


def spread(features: torch.Tensor, other: torch.Tensor) -> float:
    """How far two pictures of one prompt from different noise lie apart, on the scale of `distance_excess`: half their
    mean squared distance under its kernel. All (n, d)."""
    mine, theirs = (F.normalize(x.double(), dim=1) for x in (features, other))
    return float((8 - ((mine * theirs).sum(dim=1) + 1) ** 3).mean())  # 8 = (1 + 1)^3 is that of a picture with itself


def _kernel(left: torch.Tensor, right: torch.Tensor) -> NDArray[np.float64]:
    return ((left @ right.T + 1) ** 3).numpy()


def are_below(losses: Sequence[Estimate], margins: Sequence[float], confidence: float) -> bool | None:
    """Whether all losses are shown to be below their margins (True), any is shown to be above its own (False), or
    neither is shown (None).

    Every loss is tested at the full level: to be called below, all tests must agree (an intersection-union test, Berger
    1982), which is as rare by chance as the strictest of them.
    """
    intervals = [loss.interval(confidence) for loss in losses]
    if all(found.high <= margin for found, margin in zip(intervals, margins, strict=True)):
        return True
    return False if any(found.low > margin for found, margin in zip(intervals, margins, strict=True)) else None


def prompts_to_decide(losses: Sequence[Estimate], margins: Sequence[float], confidence: float) -> int:
    """How many prompts it takes until `are_below` answers: all that are below must be shown, or one that is above."""
    both = [*zip(losses, margins, strict=True)]
    above = [loss.prompts_to_decide(margin, confidence) for loss, margin in both if loss.value > margin]
    return min(above) if above else max(loss.prompts_to_decide(margin, confidence) for loss, margin in both)
