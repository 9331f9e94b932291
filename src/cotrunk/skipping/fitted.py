"""Predict the output of a skipped step from computed ones by the weights with the smallest expected error."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

# The error of a computed output as a support point, relative to the error of its own prediction. The denoiser ran on a
# sample that predictions had led to, which is not quite on the trajectory. Without it, trends amplify such errors.
SUPPORT_ERROR = 0.25
RIDGE = 1e-9  # relative; outputs at equal times have equal moments
SMALLEST_ERROR = 1e-6

Support = tuple[int, ...]  # computed steps, latest first; the number of steps stands for the noise of the first sample


class FittedPredictions:
    """The best linear predictions of the outputs of one run, and their expected errors.

    Args:
        moments: (T + 1, T + 1) second moments of the outputs at each step and, last, of the noise of the first sample.
    """

    def __init__(self, moments: np.ndarray) -> None:
        self._moments = moments
        self.noise = len(moments) - 1  # the noise of the first sample, as a support point
        self.error = cache(self._error)

    def weights(self, support: Support, step: int, errors: Sequence[float]) -> list[float]:
        """Return the weights of the support points in the prediction at a step.

        Args:
            support: the support points.
            step: the predicted step.
            errors: the RMS errors of the predictions of each computed support point, before it was computed.
        """
        return self._fitted(support, step, errors)[0].tolist()

    def _error(self, support: Support, step: int) -> float:
        """Return the expected RMS error of the prediction at a step from support points without an error."""
        return math.sqrt(max(self._fitted(support, step)[1], SMALLEST_ERROR**2))

    def _fitted(self, support: Support, step: int, errors: Sequence[float] = ()) -> tuple[np.ndarray, float]:
        """Return the weights, and the expected square of the error."""
        own = list(support)
        among, with_step = self._moments[np.ix_(own, own)], self._moments[own, step]
        for place, error in enumerate(errors):
            among[place, place] += (SUPPORT_ERROR * error) ** 2
        scale = 1 / np.sqrt(np.diag(among))
        weights = np.linalg.solve(among * np.outer(scale, scale) + RIDGE * np.eye(len(own)), with_step * scale) * scale
        return weights, self._moments[step, step] - 2 * weights @ with_step + weights @ among @ weights
