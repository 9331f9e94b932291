"""The evaluation of the paper: its cells, Table 1 and Figures 2 to 4.

It adds what the paper does not show: differences with intervals, curves over denoiser rows, and comparisons of shared
sampling with fewer steps.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..settings import TrunkNoise
from .experiment import Experiment
from .figures import write_curves, write_grid
from .measuring import Measures, Result
from .observation import PUBLISHED, SHOWN, Cell
from .tables import Comparison, as_dict, describe_networks, short, write_comparisons, write_json, write_table

SAVED = 0.2  # fraction of the rows that shared sampling should save at the quality of independent sampling


@dataclass(frozen=True)
class Design:
    """Which models and sampling schemes are evaluated.

    Attributes:
        models: names of models in the experiment; the first is the baseline.
        shares: fractions of the steps that are shared, in addition to independent sampling.
        steps: number of inference steps.
        fewer: other numbers of steps, for the curves over rows.
        seeds: number of runs of every cell, each with other initial noise.
        more_shares: further shares that only Figure 4 shows.
        trunks: how trunks are sampled: pairs of noise and trunk guidance, as in `Sharing`.
    """

    models: Sequence[str]
    shares: Sequence[float] = (0.2, 0.3, 0.4)
    steps: int = 30
    fewer: Sequence[int] = ()
    seeds: int = 1
    more_shares: Sequence[float] = ()
    trunks: Sequence[tuple[TrunkNoise, float]] = (PUBLISHED,)

    def cells(self, experiment: Experiment) -> list[Cell]:
        """Return all cells, with their first seed, ordered by model, because changing the model takes time."""
        own = [*self.table(), *(experiment.equal_cost(cell) for cell in self.table() if cell.share)]
        own += self.curves(experiment)
        own += [cell for kind in self.kinds() for cell in self.cells_by_share(*kind)]
        return sorted(dict.fromkeys(own), key=lambda cell: self.models.index(cell.model))

    def table(self) -> list[Cell]:
        """Return the cells of Table 1: every model with independent sampling, and with each share and trunk."""
        alone = [Cell(name, 0.0, self.steps) for name in self.models]
        return [*alone, *(self._cell(*kind, share) for share in self.shares for kind in self.kinds())]

    def kinds(self) -> list[tuple[str, tuple[TrunkNoise, float]]]:
        """Return every model with every way to sample trunks."""
        return [(name, trunk) for trunk in self.trunks for name in self.models]

    def _cell(self, model: str, trunk: tuple[TrunkNoise, float], share: float, steps: int | None = None) -> Cell:
        own = Cell(model, share, steps or self.steps)
        return replace(own, noise=trunk[0], trunk_guidance=trunk[1]) if share else own

    @property
    def middle(self) -> float:
        """Return the share that image grids and curves show."""
        return self.shares[len(self.shares) // 2] if self.shares else 0.0

    @property
    def curved(self) -> list[float]:
        """Return the shares that have a curve over rows; 0 is independent sampling."""
        return list(dict.fromkeys([0.0, self.middle])) if self.fewer else []

    def curve(
        self, experiment: Experiment, model: str, share: float, trunk: tuple[TrunkNoise, float] = PUBLISHED
    ) -> list[Cell]:
        """Return the cells of a line, one per number of steps, without those where no step is shared."""
        cells = [self._cell(model, trunk, share, steps) for steps in sorted({*self.fewer, self.steps})]
        return [cell for cell in cells if not share or experiment.shares(cell)]

    def lines(self) -> list[tuple[str, float, tuple[TrunkNoise, float]]]:
        """Return the lines of the curves: every model, independently and with the middle share of every trunk."""
        return [
            (name, share, trunk)
            for name in self.models
            for share in self.curved
            for trunk in (self.trunks if share else self.trunks[:1])
        ]

    def curves(self, experiment: Experiment) -> list[Cell]:
        """Return the cells of all curves."""
        return [cell for line in self.lines() for cell in self.curve(experiment, *line)]

    def cells_by_share(self, model: str, trunk: tuple[TrunkNoise, float] = PUBLISHED) -> list[Cell]:
        """Return the cells of a model over all shares, for Figure 4."""
        return [self._cell(model, trunk, share) for share in sorted({0.0, *self.shares, *self.more_shares})]

    def pairs(self, experiment: Experiment) -> list[tuple[Cell, Cell]]:
        """Return the pairs of cells to compare.

        Every shared cell of the table is compared with independent sampling of its own model and of the first model.
        Each of these comparisons is made with the same number of steps and at equal cost. Models are compared with each
        other at the same share.
        """
        shared = [cell for cell in self.table() if cell.share]
        found = []
        for cell in shared:
            for own in self._baselines(cell):
                found += [(cell, own.alone), (cell, experiment.equal_cost(own))]
        found += [(two, one) for one, two in itertools.combinations(shared, 2) if one.share == two.share]
        return list(dict.fromkeys(found))

    def knees(self, experiment: Experiment) -> list[tuple[Cell, Cell]]:
        """Pair each shared cell with an independent one: the fewest steps of whose rows it saves the fraction `SAVED`.

        Fewer steps are the strongest alternative to sharing. The independent cells have a number of steps of the
        curves, and the shared cell's own model or the first model.
        """
        rows = {cell: experiment.rows(cell) for cell in dict.fromkeys([*self.table(), *self.curves(experiment)])}
        found = []
        for cell in [cell for cell in rows if cell.share and self.fewer]:
            for own in self._baselines(cell):
                independent = self.curve(experiment, own.model, 0.0)
                costlier = [other for other in independent if rows[cell] <= (1 - SAVED) * rows[other]]
                if costlier:
                    found.append((cell, min(costlier, key=rows.__getitem__)))
        return found

    def _baselines(self, cell: Cell) -> list[Cell]:
        """Return a cell with its own model and with the first model."""
        return list(dict.fromkeys([cell, replace(cell, model=self.models[0])]))

    def runs(self, cell: Cell) -> list[Cell]:
        """Return a cell with each of its seeds."""
        return [replace(cell, seed=seed) for seed in range(self.seeds)]


def write_paper(
    measures: Measures,
    design: Design,
    bins: Mapping[float, Sequence[int]],
    out: Path,
    on_measured: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Write tables and figures to the folder `out` and all their numbers to `results.json`; return the tables.

    Args:
        measures: of an experiment whose cells are observed.
        design: the cells.
        bins: numbers of the groups of each bin of Figure 3, by the similarity of the bin.
        on_measured: called with the number of measurements done so far, and with their total number.
    """
    experiment = measures.experiment
    cells, pairs, knees = design.cells(experiment), design.pairs(experiment), design.knees(experiment)
    similar = bins if design.shares else {}
    total = len(cells) + len({*pairs, *knees}) + len(design.kinds()) * len(similar)
    done = itertools.count(1)

    def measured(cell: Cell, groups: Sequence[int] | None = None) -> Result:
        result = measures.of(design.runs(cell), groups)
        on_measured(next(done), total)
        return result

    results = {cell: measured(cell) for cell in cells}
    compared = {}
    for this, other in dict.fromkeys([*pairs, *knees]):
        changes = measures.compare(design.runs(this), design.runs(other))
        compared[this, other] = Comparison(this, other, 1 - results[this].rows / results[other].rows, changes)
        on_measured(next(done), total)
    middle = [cell for cell in design.table() if cell.share == design.middle]
    under = {short(cell): cell for cell in middle}
    by_similarity = {name: [measured(cell, groups) for groups in similar.values()] for name, cell in under.items()}
    equal = [experiment.equal_cost(cell) for cell in design.table() if cell.share]
    networks, rows = experiment.networks, dict.fromkeys([*design.table(), *equal])
    text = write_table([results[cell] for cell in rows], networks, out)
    text += "\n" + write_comparisons([compared[pair] for pair in pairs], networks, out, "differences")
    if knees:
        text += "\n" + write_comparisons([compared[pair] for pair in knees], networks, out, "knee")
    if design.shares:
        write_grid(
            {name: experiment.observe(cell).shown for name, cell in under.items()}, experiment.prompts[:SHOWN], out
        )
        write_curves(by_similarity, list(bins), out, "figure3", label="smallest similarity in a group")
    if design.shares or design.more_shares:
        _write_shares(design, results, out)
    if design.curved:
        text += "\n" + _write_curve(design, experiment, results, out)
    content = {
        "networks": describe_networks(networks),
        "cells": [as_dict(result) for result in results.values()],
        "differences": [compared[pair].as_dict() for pair in pairs],
        "knee": [compared[pair].as_dict() for pair in knees],
        "similarity": [
            {"similarity": similarity, "groups": len(bins[similarity]), **as_dict(result)}
            for own in by_similarity.values()
            for similarity, result in zip(similar, own, strict=True)
        ],
    }
    write_json(content, out / "results.json")
    return text


def _write_shares(design: Design, results: Mapping[Cell, Result], out: Path) -> None:
    """Write Figure 4."""
    lines = [design.cells_by_share(*kind) for kind in design.kinds()]
    over = {short(cells[-1]): [results[cell] for cell in cells] for cells in lines}
    steps = [int(cell.share * design.steps + 1e-9) for cell in lines[0]]
    write_curves(over, steps, out, "figure4", label=f"shared steps of {design.steps}")


def _write_curve(design: Design, experiment: Experiment, results: Mapping[Cell, Result], out: Path) -> str:
    """Write curves over rows, as the figure `rows` and the table `curve`, and return the table."""
    lines = {}
    for line in design.lines():
        cells = design.curve(experiment, *line)
        kind = f"shared {line[1]:.0%}" if line[1] else "independent"
        # without any cell, the line is named after its model alone
        lines[f"{short(cells[-1]) if cells else line[0]}, {kind}"] = [results[cell] for cell in cells]
    write_curves(lines, "rows", out, "rows", label="denoiser rows per image")
    return write_table(list(itertools.chain(*lines.values())), experiment.networks, out, "curve")
