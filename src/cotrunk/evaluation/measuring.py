"""What is measured on the cells of an experiment: each with its interval, and kept beside them, for a Frechet distance
in all dimensions of Inception takes minutes."""

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
from .experiment import Cell, Experiment, Seen
from .networks import Inception

T = TypeVar("T")
WAY = 3  # of measuring: what was measured in another way is measured again


@dataclass(frozen=True)
class Result:
    """What was measured on a scheme, over all its seeds.

    `frechet` is to the real pictures, `diversity` within groups, `bleed` the part of the pictures that match another
    prompt of their group better than their own. `failed` pictures are left out of all of them.
    """

    cell: Cell
    seeds: int
    rows: float
    seconds: float
    saving: float
    failed: int
    figures: dict[str, metrics.Figure]


class Measures:
    """Measures of an experiment.

    Args:
        experiment: the cells.
        real: (m, 3, height, width) bytes, the pictures that Frechet distances are taken to.
        real_groups: for each group of prompts, the places of its pictures in `real`.

    Raises:
        CotrunkError: real pictures that are all equal, known before a picture is made.
    """

    def __init__(self, experiment: Experiment, real: torch.Tensor, real_groups: Sequence[Sequence[int]]) -> None:
        self.experiment, self._real, self._real_groups = experiment, real, real_groups
        if self._dimensions is not None and bool((real == real[:1]).all()):
            raise CotrunkError(f"The {len(real)} real pictures are all alike: Frechet distances need different ones.")
        self._mark = hashlib.sha256(real.contiguous().numpy().data)
        self._mark.update(json.dumps([list(places) for places in real_groups]).encode())

    def of(self, cells: Sequence[Cell], groups: Sequence[int] | None = None) -> Result:
        """Measure cells that differ in their seeds alone, as one; on these groups only, or on all."""
        seen = [self.experiment.look(cell) for cell in cells]
        chosen = list(range(len(self.experiment.groups)) if groups is None else groups)

        def measure() -> dict[str, Any]:
            rows, parts = self._rows([~one.failed for one in seen], chosen)
            features = torch.cat([one.features for one in seen])[rows]
            vectors = torch.cat([one.vectors for one in seen])[rows]
            real, real_parts = self._real_of(chosen)
            bleeds = [metrics.bleed(one.vectors, self._texts, self.experiment.groups) for one in seen]
            figures = {
                "frechet": metrics.frechet(features, real, parts, real_parts, self._dimensions),
                "alignment": metrics.mean(metrics.alignment(vectors, self._texts_of(len(seen))[rows]), parts),
                "diversity": metrics.mean(_diversity(seen)[chosen]),
                "bleed": metrics.mean(np.concatenate(bleeds)[rows], parts),
            }
            return {name: asdict(figure) for name, figure in figures.items()}

        figures = self._kept("measured", seen, chosen, measure, _figures)
        mean = {name: float(np.mean([getattr(one, name) for one in seen])) for name in ("rows", "seconds", "saving")}
        failed = sum(int(one.failed.sum()) for one in seen)
        return Result(cells[0], len(cells), **mean, failed=failed, figures=figures)

    def compare(
        self, cells: Sequence[Cell], others: Sequence[Cell], groups: Sequence[int] | None = None
    ) -> dict[str, metrics.Change]:
        """What cells have more than others, by measure: with the same prompts and seeds, and groups drawn alike; on
        these groups only, or on all."""
        mine, theirs = ([self.experiment.look(cell) for cell in part] for part in (cells, others))
        chosen = list(range(len(self.experiment.groups)) if groups is None else groups)

        def measure() -> dict[str, Any]:
            good = [~(one.failed | other.failed) for one, other in zip(mine, theirs, strict=True)]
            rows, parts = self._rows(good, chosen)
            texts = self._texts_of(len(good))[rows]
            features, other_features = (torch.cat([one.features for one in seen])[rows] for seen in (mine, theirs))
            aligned, other_aligned = (
                metrics.alignment(torch.cat([one.vectors for one in seen])[rows], texts) for seen in (mine, theirs)
            )
            real, real_parts = self._real_of(chosen)
            changes = {
                "frechet": metrics.frechet_change(features, other_features, real, parts, real_parts, self._dimensions),
                "alignment": metrics.change(aligned, other_aligned, parts),
                "diversity": metrics.change(_diversity(mine)[chosen], _diversity(theirs)[chosen]),
            }
            return {name: asdict(change) for name, change in changes.items()}

        return self._kept("compared", [*mine, *theirs], chosen, measure, _changes)

    def _kept(
        self,
        kind: str,
        seen: Sequence[Seen],
        chosen: list[int],
        measure: Callable[[], Any],
        read: Callable[[Any], dict[str, T]],
    ) -> dict[str, T]:
        """What was measured on this before, or is now: also where the file of it is damaged."""
        mark = self._mark.copy()
        mark.update(json.dumps([[one.digest for one in seen], chosen, self._dimensions, WAY]).encode())
        path = self.experiment.out / "cells" / kind / f"{mark.hexdigest()[:24]}.json"
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return read(json.loads(path.read_text(encoding="utf-8")))
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(measure()) + "\n")
        return read(json.loads(path.read_text(encoding="utf-8")))

    def _rows(self, good: Sequence[np.ndarray], chosen: Sequence[int]) -> tuple[torch.Tensor, list[list[int]]]:
        """The good pictures of these groups in all runs: their places among all pictures of all runs, and the groups by
        their places among those. Pictures of a group from several seeds belong together, for they share its prompts."""
        count, rows, parts = len(self.experiment.prompts), list[int](), list[list[int]]()
        for number in chosen:
            images = self.experiment.groups[number]
            own = [run * count + image for run, fine in enumerate(good) for image in images if fine[image]]
            parts.append(list(range(len(rows), len(rows) + len(own))))
            rows += own
        return torch.tensor(rows, dtype=torch.long), parts

    def _real_of(self, chosen: Sequence[int]) -> tuple[torch.Tensor, list[list[int]]]:
        """The features of the real pictures of these groups, each once, and the groups by their places among those: a
        picture that several groups have is the first one's."""
        rows, parts = dict[int, int](), list[list[int]]()
        for number in chosen:
            own = [place for place in dict.fromkeys(self._real_groups[number]) if place not in rows]
            rows |= {place: len(rows) + at for at, place in enumerate(own)}
            parts.append([rows[place] for place in own])
        return self._real_features[list(rows)], parts

    @functools.cached_property
    def _real_features(self) -> torch.Tensor:
        return self.experiment.judges.features.features(self._real).double()

    @functools.cached_property
    def _texts(self) -> torch.Tensor:
        return self.experiment.judges.alignment.of_texts(self.experiment.prompts).double()

    def _texts_of(self, runs: int) -> torch.Tensor:
        return self._texts.repeat(runs, 1)

    @property
    def _dimensions(self) -> int | None:
        """FID is taken in all dimensions; elsewhere the main ones, in which some hundred pictures tell something."""
        return None if isinstance(self.experiment.judges.features, Inception) else 64


def _figure(kept: Any) -> metrics.Figure:
    """A figure from its file.

    Raises:
        TypeError: it holds something else.
    """
    figure = metrics.Figure(**kept)
    if not all(isinstance(number, float) for number in (figure.value, figure.low, figure.high)):
        raise TypeError("no numbers")
    return figure


def _figures(kept: Any) -> dict[str, metrics.Figure]:
    return {name: _figure(kept[name]) for name in ("frechet", "alignment", "diversity", "bleed")}


def _changes(kept: Any) -> dict[str, metrics.Change]:
    return {
        name: metrics.Change(_figure(kept[name]["absolute"]), _figure(kept[name]["relative"]))
        for name in ("frechet", "alignment", "diversity")
    }


def _diversity(seen: Sequence[Seen]) -> np.ndarray:
    """(groups,) mean over the runs in which a group has two pictures; NaN where there is none."""
    found = np.stack([one.diversity for one in seen])
    known = ~np.isnan(found)
    return np.where(known, found, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
