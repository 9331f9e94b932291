"""Measure the cells of an experiment, with intervals.

Results are stored next to the cells, because a Frechet distance in all dimensions of Inception takes minutes.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from ..errors import CotrunkError
from ..files import write_text, writing
from . import metrics
from .experiment import Experiment
from .networks import Inception
from .observation import Cell, Observation

T = TypeVar("T")
VERSION = 3  # version of the metrics; stored results of another version are not used


@dataclass(frozen=True)
class Result:
    """The metrics of a scheme over all its seeds.

    Attributes:
        cell: the scheme, with its first seed.
        seeds: number of seeds.
        rows, seconds: denoising cost per image.
        saving: fraction of the rows that sharing saved.
        failed: number of images that contained a NaN; the metrics ignore them.
        figures: by metric. "frechet" is the distance to the real images, and "diversity" is within groups. "bleed" is
            the fraction of images that match another prompt of their group better than their own.
    """

    cell: Cell
    seeds: int
    rows: float
    seconds: float
    saving: float
    failed: int
    figures: dict[str, metrics.Figure]


class Measures:
    """Measures the cells of an experiment.

    Args:
        experiment: the cells.
        real: (m, 3, height, width) bytes, the real images for Frechet distances.
        real_groups: for each group of prompts, the indices of its images in `real`.

    Raises:
        CotrunkError: the real images are all equal.
    """

    def __init__(self, experiment: Experiment, real: torch.Tensor, real_groups: Sequence[Sequence[int]]) -> None:
        self.experiment, self._real, self._real_groups = experiment, real, real_groups
        if self._dimensions is not None and bool((real == real[:1]).all()):
            raise CotrunkError(f"The {len(real)} real images are all equal: Frechet distances need different ones.")
        self._mark = hashlib.sha256(real.contiguous().numpy().data)
        self._mark.update(json.dumps([list(places) for places in real_groups]).encode())

    def of(self, cells: Sequence[Cell], groups: Sequence[int] | None = None) -> Result:
        """Measure cells that differ only in their seeds, as one.

        Args:
            groups: numbers of the groups to measure; None for all.
        """
        observed = [self.experiment.observe(cell) for cell in cells]
        chosen = list(range(len(self.experiment.groups)) if groups is None else groups)

        def measure() -> dict[str, Any]:
            rows, parts = self._rows([~one.failed for one in observed], chosen)
            features = torch.cat([one.features for one in observed])[rows]
            vectors = torch.cat([one.vectors for one in observed])[rows]
            real, real_parts = self._real_of(chosen)
            bleeds = [metrics.bleed(one.vectors, self._texts, self.experiment.groups) for one in observed]
            figures = {
                "frechet": metrics.frechet(features, real, parts, real_parts, self._dimensions),
                "alignment": metrics.mean(metrics.alignment(vectors, self._texts_of(len(observed))[rows]), parts),
                "diversity": metrics.mean(_diversity(observed)[chosen]),
                "bleed": metrics.mean(np.concatenate(bleeds)[rows], parts),
            }
            return {name: asdict(figure) for name, figure in figures.items()}

        figures = self._stored("measured", observed, chosen, measure, _figures)
        mean = {
            name: float(np.mean([getattr(one, name) for one in observed])) for name in ("rows", "seconds", "saving")
        }
        failed = sum(int(one.failed.sum()) for one in observed)
        return Result(cells[0], len(cells), **mean, failed=failed, figures=figures)

    def compare(
        self, cells: Sequence[Cell], others: Sequence[Cell], groups: Sequence[int] | None = None
    ) -> dict[str, metrics.Change]:
        """Return the change of each metric from `others` to `cells`, paired by prompt and seed.

        Args:
            groups: numbers of the groups to compare; None for all.
        """
        first, second = ([self.experiment.observe(cell) for cell in part] for part in (cells, others))
        chosen = list(range(len(self.experiment.groups)) if groups is None else groups)

        def measure() -> dict[str, Any]:
            good = [~(one.failed | other.failed) for one, other in zip(first, second, strict=True)]
            rows, parts = self._rows(good, chosen)
            texts = self._texts_of(len(good))[rows]
            features, other_features = (
                torch.cat([one.features for one in observed])[rows] for observed in (first, second)
            )
            aligned, other_aligned = (
                metrics.alignment(torch.cat([one.vectors for one in observed])[rows], texts)
                for observed in (first, second)
            )
            real, real_parts = self._real_of(chosen)
            changes = {
                "frechet": metrics.frechet_change(features, other_features, real, parts, real_parts, self._dimensions),
                "alignment": metrics.change(aligned, other_aligned, parts),
                "diversity": metrics.change(_diversity(first)[chosen], _diversity(second)[chosen]),
            }
            return {name: asdict(change) for name, change in changes.items()}

        return self._stored("compared", [*first, *second], chosen, measure, _changes)

    def _stored(
        self,
        kind: str,
        observed: Sequence[Observation],
        chosen: list[int],
        measure: Callable[[], Any],
        read: Callable[[Any], dict[str, T]],
    ) -> dict[str, T]:
        """Return the stored result, or measure and store it if there is no valid file."""
        mark = self._mark.copy()
        mark.update(json.dumps([[one.digest for one in observed], chosen, self._dimensions, VERSION]).encode())
        path = self.experiment.out / "cells" / kind / f"{mark.hexdigest()[:24]}.json"
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            # not files.read_json: changes relative to zero are NaN
            return read(json.loads(path.read_text(encoding="utf-8")))
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(measure()) + "\n")
        return read(json.loads(path.read_text(encoding="utf-8")))

    def _rows(self, good: Sequence[np.ndarray], chosen: Sequence[int]) -> tuple[torch.Tensor, list[list[int]]]:
        """Return the indices of the good images of these groups over all seeds, and each group as places among them.

        Images of one group from several seeds stay together, because they have the same prompts.
        """
        count, rows, parts = len(self.experiment.prompts), list[int](), list[list[int]]()
        for number in chosen:
            images = self.experiment.groups[number]
            own = [run * count + image for run, fine in enumerate(good) for image in images if fine[image]]
            parts.append(list(range(len(rows), len(rows) + len(own))))
            rows += own
        return torch.tensor(rows, dtype=torch.long), parts

    def _real_of(self, chosen: Sequence[int]) -> tuple[torch.Tensor, list[list[int]]]:
        """Return the features of the real images of these groups, and each group as places among them.

        Each image occurs once; one that several groups contain belongs to the first of them.
        """
        rows, parts = dict[int, int](), list[list[int]]()
        for number in chosen:
            own = [place for place in dict.fromkeys(self._real_groups[number]) if place not in rows]
            rows |= {place: len(rows) + at for at, place in enumerate(own)}
            parts.append([rows[place] for place in own])
        return self._real_features[list(rows)], parts

    @functools.cached_property
    def _real_features(self) -> torch.Tensor:
        return self.experiment.networks.features.features(self._real).double()

    @functools.cached_property
    def _texts(self) -> torch.Tensor:
        return self.experiment.networks.alignment.text_vectors(self.experiment.prompts).double()

    def _texts_of(self, runs: int) -> torch.Tensor:
        return self._texts.repeat(runs, 1)

    @property
    def _dimensions(self) -> int | None:
        """Return None, for all dimensions, with Inception (FID), else 64, which suits a few hundred images."""
        return None if isinstance(self.experiment.networks.features, Inception) else 64


def _figure(kept: Any) -> metrics.Figure:
    """Return a figure from the content of its file.

    Raises:
        TypeError: the content is not a figure.
    """
    figure = metrics.Figure(**kept)
    if not all(isinstance(number, float) for number in (figure.value, figure.low, figure.high)):
        raise TypeError("not numbers")
    return figure


def _figures(kept: Any) -> dict[str, metrics.Figure]:
    return {name: _figure(kept[name]) for name in ("frechet", "alignment", "diversity", "bleed")}


def _changes(kept: Any) -> dict[str, metrics.Change]:
    return {
        name: metrics.Change(_figure(kept[name]["absolute"]), _figure(kept[name]["relative"]))
        for name in ("frechet", "alignment", "diversity")
    }


def _diversity(observed: Sequence[Observation]) -> np.ndarray:
    """Return the mean diversity of each group (groups,) over the seeds with two of its images; NaN without any."""
    found = np.stack([one.diversity for one in observed])
    known = ~np.isnan(found)
    return np.where(known, found, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
