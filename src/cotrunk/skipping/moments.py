"""How a denoiser's outputs at different steps depend on each other: their second moments along trajectories.

Along its trajectory, the x0 that a model predicts changes with the noise level in much the same way for every image and
every model: the moments of a UNet that predicts v serve a transformer that follows a rectified flow nearly as well as
its own. So they are measured once (`benchmarks/moments.py`) and stored with the package. For a run, they are
interpolated to its noise levels, and turned from x0 into the model's own kind of output.
"""

import functools
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from ..pipelines.noise_schedule import SMALLEST_ALPHA, NoiseSchedule

SMALLEST_SIGMA = 1e-8  # avoids a division by zero at the end of a schedule


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of x0 predictions, averaged over images and latent values.

    Attributes:
        times: (G,) `NoiseSchedule.time` of each prediction, falling.
        values: (G + 1, G + 1) moments of the predictions and, last, of the noise that the trajectory starts from.
    """

    times: np.ndarray
    values: np.ndarray

    @classmethod
    @functools.cache
    def stored(cls) -> "Moments":
        """Return the moments that come with the package: the mean of those of both embedded models."""
        data = json.loads(files("cotrunk.skipping").joinpath("moments.json").read_text())
        return cls.from_json(data)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Moments":
        """Return the moments from `to_json`."""
        times = np.array(data["times"])
        values = np.zeros((len(times) + 1, len(times) + 1))
        values[np.tril_indices(len(values))] = data["lower_triangle"]
        return cls(times, values + np.tril(values, -1).T)

    def to_json(self) -> dict[str, Any]:
        """Return the times and the lower triangle of the values, as JSON values with eight digits."""
        lower = self.values[np.tril_indices(len(self.values))]
        numbers = {"times": self.times, "lower_triangle": lower}
        return {name: [float(f"{value:.8g}") for value in array] for name, array in numbers.items()}

    def of_outputs(self, schedule: NoiseSchedule, *, from_noise: bool) -> np.ndarray:
        """Return the second moments (T + 1, T + 1) of the outputs at the steps of a run and, last, of its first noise.

        An output is a linear combination of the x0 that it predicts and of its sample. The sample is one of the noise
        and of the earlier x0 predictions, by the first-order solver (DDIM).

        Args:
            schedule: of the run.
            from_noise: whether its first sample is pure noise. If not, the sample is taken to lie on the trajectory from
                pure noise to its noise level.
        """
        ratios = [alpha / max(sigma, SMALLEST_SIGMA) for alpha, sigma in schedule.levels]
        noise = np.eye(len(self.values))[-1]
        # the first-order solver adds to sample / sigma the change of alpha / sigma times x0
        scaled = noise if from_noise else noise + self._gained(ratios[0])
        rows = []
        for step, (_, sigma) in enumerate(schedule.levels):
            x0 = self.at(schedule.time(step))
            rows.append(schedule.output_for(step, sigma * scaled, x0))
            scaled = scaled + (ratios[min(step + 1, len(ratios) - 1)] - ratios[step]) * x0
        combined = np.stack([*rows, noise])
        return combined @ self.values @ combined.T

    def _gained(self, ratio: float) -> np.ndarray:
        """Return what sample / sigma has gained (G + 1,) on its way from pure noise to this alpha / sigma."""
        inverse = 1 / np.sinh(self.times)  # the root of (alpha / sigma)^2 + SMALLEST_ALPHA^2, see `NoiseSchedule.time`
        known = np.sqrt(np.clip(inverse**2 - SMALLEST_ALPHA**2, 0, None))
        bounds = np.append(known, np.inf).clip(max=ratio)
        return np.append(np.diff(bounds), 0.0)

    def at(self, time: float) -> np.ndarray:
        """Return the x0 prediction at a time as a combination (G + 1,) of the known ones."""
        grid = -self.times
        after = int(np.clip(np.searchsorted(grid, -time), 1, len(grid) - 1))
        part = float(np.clip((-time - grid[after - 1]) / (grid[after] - grid[after - 1]), 0, 1))
        combination = np.zeros(len(grid) + 1)
        combination[after - 1], combination[after] = 1 - part, part
        return combination

    def _sample_at(self, alpha: float, sigma: float) -> np.ndarray:
        """Return the sample (G + 1,) at the level at which a run begins, on the trajectory from pure noise to it."""
        sample = np.eye(len(self.values))[-1]  # at alpha 0 and sigma 1
        levels = [level for level in map(_level_at, self.times) if level[0] * sigma < alpha * level[1]]
        before = (0.0, 1.0)
        for alpha_next, sigma_next in [*levels, (alpha, sigma)]:
            kept = sigma_next / before[1]
            sample = kept * sample + (alpha_next - before[0] * kept) * self.at(_time_of(*before))
            before = (alpha_next, sigma_next)
        return sample
