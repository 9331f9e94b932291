"""Predict the output of a skipped step from computed ones by the weights with the smallest expected error."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

# The error of a computed output as a support point, relative to the error of its own prediction. The denoiser ran on a
# sample that predictions had led to, which is not quite on the trajectory. Without it, trends amplify such errors.
SUPPORT_ERROR = 0.25
RIDGE = 1e-9  # relative; outputs at equal times have equal moments
SMALLEST_ERROR = 1e-6
FITS = 1024  # fits kept: images, and layouts of their gaps, need many of them again

Support = tuple[int, ...]  # computed steps, latest first; the number of steps stands for the start of the trajectory


class FittedPredictions:
    """The best linear predictions of the outputs of one run, and their expected errors.

    Args:
        moments: (T + 1, T + 1) second moments of the outputs at each step and, last, of the start of the trajectory.
    """

    def __init__(self, moments: np.ndarray) -> None:
        self._moments = moments
        self.start = len(moments) - 1  # the start of the trajectory, as a support point
        self._fits = lru_cache(FITS)(self._fitted)

    def weights(self, support: Support, step: int, errors: Sequence[float]) -> list[float]:
        """Return the weights of the support points in the prediction at a step.

        Args:
            support: the support points.
            step: the predicted step.
            errors: the RMS errors of the predictions of each computed support point, before it was computed.
        """
        weights: list[float] = self._fits(support, tuple(errors))[0][step].tolist()
        return weights

    def errors(self, support: Support) -> np.ndarray:
        """Return (T + 1,) the expected RMS error of each step's prediction, from support points without errors."""
        return self._fits(support, ())[1]

    def _fitted(self, support: Support, errors: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights for the prediction at each step, and their expected errors (T + 1,)."""
        own = list(support)
        among, with_steps = self._moments[np.ix_(own, own)], self._moments[own]
        for place, error in enumerate(errors):
            among[place, place] += (SUPPORT_ERROR * error) ** 2
        scale = 1 / np.sqrt(np.diag(among))
        scaled = among * np.outer(scale, scale) + RIDGE * np.eye(len(own))
        weights = np.linalg.solve(scaled, with_steps * scale[:, None]) * scale[:, None]
        squares = np.diag(self._moments) + (weights * (among @ weights - 2 * with_steps)).sum(axis=0)
        return weights.T, np.sqrt(np.maximum(squares, SMALLEST_ERROR**2))
