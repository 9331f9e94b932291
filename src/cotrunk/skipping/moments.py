"""How a denoiser's outputs at different steps depend on each other: their second moments along trajectories.

Along its trajectory, the x0 that a model predicts changes with the noise level in much the same way for every image and
every model: the moments of a UNet that predicts v serve a transformer that follows a rectified flow nearly as well as
its own. So they are measured once (`benchmarks/moments.py`) and stored with the package. For a run, they are
interpolated to its noise levels, and turned from x0 into the model's own kind of output.

After a discontinuity (a branch, a switch of guidance, an input image), the sample is not on the trajectory of its
prompt, and x0 swings towards it. This too goes much the same way for every image and model, so these moments are
measured and stored as well, for discontinuities at several times.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from ..pipelines.noise_schedule import NoiseSchedule

SMALLEST_SIGMA = 1e-8  # avoids a division by zero at the end of a schedule
SMALLEST_TIME = 0.02  # a trajectory that begins later counts as one that begins at this time


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of x0 predictions, averaged over images and latent values.

    Attributes:
        times: (G,) `NoiseSchedule.time` of each prediction, falling.
        values: (G + 1, G + 1) moments of the predictions and, last, of what the trajectory starts from: its first
            sample divided by its sigma. In a run from noise, that is the noise.
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
    def after_discontinuity(cls, time: float) -> "Moments":
        """Return the stored moments of trajectories that begin at a discontinuity at this time."""
        known = _after_discontinuities()
        place = float(np.interp(-time, -known.times, np.arange(len(known.times))))
        low = min(int(place), len(known.times) - 2)
        values = (low + 1 - place) * known.values[low] + (place - low) * known.values[low + 1]
        return cls(known.parts * max(time, SMALLEST_TIME), values)

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

    def of_outputs(self, schedule: NoiseSchedule, begin: int = 0) -> np.ndarray:
        """Return the second moments (T + 1, T + 1) of the outputs at the steps of a run and, last, of its start.

        An output is a linear combination of the x0 that it predicts and of its sample. The sample is one of the first
        sample and of the earlier x0 predictions, by the first-order solver (DDIM).

        Args:
            schedule: of the run.
            begin: the step at which the trajectory begins. Moments of earlier steps are 0.
        """
        levels = schedule.levels[begin:]
        ratios = [alpha / max(sigma, SMALLEST_SIGMA) for alpha, sigma in levels]
        predictions, deviations = self._interpolated([schedule.time(begin + step) for step in range(len(levels))])
        start = scaled = np.eye(predictions.shape[1])[len(self.times)]
        rows = []
        for step, (x0, (_, sigma)) in enumerate(zip(predictions, levels, strict=True)):
            rows.append(schedule.output_for(begin + step, sigma * scaled, x0))
            # the first-order solver adds to sample / sigma the change of alpha / sigma times x0
            scaled = scaled + (ratios[min(step + 1, len(ratios) - 1)] - ratios[step]) * x0
        combined = np.stack([*rows, start])
        known = len(self.values)
        moments = combined[:, :known] @ self.values @ combined[:, :known].T + (
            combined[:, known:] * deviations @ combined[:, known:].T
        )
        return np.pad(moments, (begin, 0))

    def _interpolated(self, times: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Return x0 at T times as combinations (T, G + 1 + T), and the variances (T,) of their own deviations.

        The first G + 1 weights are those of the known predictions and of the noise. Between two known times, x0
        deviates from the straight line. Without these deviations, points between the same two times would predict
        each other perfectly.
        """
        steps, size = len(times), len(self.values)
        combinations, parts, cells = np.zeros((steps, size + steps)), np.zeros(steps), np.zeros(steps, dtype=int)
        grid = -self.times
        for step, time in enumerate(times):
            cells[step] = after = int(np.clip(np.searchsorted(grid, -time), 1, len(grid) - 1))
            parts[step] = part = float(np.clip((-time - grid[after - 1]) / (grid[after] - grid[after - 1]), 0, 1))
            combinations[step, after - 1], combinations[step, after] = 1 - part, part
            combinations[step, size + step] = 1
        return combinations, self._bends()[cells] * (parts * (1 - parts)) ** 2

    def _bends(self) -> np.ndarray:
        """Return (G,) the variance of each known prediction around the straight line between its two neighbours.

        A deviation grows with the square of the distance, so at a fraction p between two known times it is p (1 - p)
        times as large as at a known time between its neighbours.
        """
        variances = np.zeros(len(self.times))
        for middle in range(1, len(self.times) - 1):
            before, at, after = self.times[middle - 1 : middle + 2]
            part = (before - at) / (before - after)
            line = np.zeros(len(self.values))
            line[middle - 1 : middle + 2] = 1 - part, -1, part
            # at an even grid, the distance from the line is that at the middle of two cells
            variances[middle] = line @ self.values @ line / (4 * part * (1 - part)) ** 2
        variances[[0, -1]] = variances[[1, -2]]
        return variances


class AfterDiscontinuities(NamedTuple):
    """Moments of trajectories that begin at discontinuities at several times.

    Attributes:
        times: (J,) of the discontinuities, falling.
        parts: (G,) times of the predictions, as parts of that of the discontinuity.
        values: (J, G + 1, G + 1) moments as in `Moments`.
    """

    times: np.ndarray
    parts: np.ndarray
    values: np.ndarray


@functools.cache
def _after_discontinuities() -> AfterDiscontinuities:
    data = json.loads(files("cotrunk.skipping").joinpath("discontinuities.json").read_text())
    moments = [Moments.from_json(one) for one in data]
    times = np.array([one.times[0] for one in moments])
    return AfterDiscontinuities(times, moments[0].times / times[0], np.stack([one.values for one in moments]))
