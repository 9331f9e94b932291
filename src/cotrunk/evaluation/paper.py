"""The evaluation of the paper: which cells it takes, and from them Table 1 and Figures 2 to 4; and what it leaves out:
differences with their intervals, curves over denoiser rows, and shared schemes beside fewer steps."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .experiment import SHOWN, Cell, Experiment
from .figures import write_curves, write_grid
from .measuring import Measures, Result
from .tables import Comparison, as_dict, networks, write_comparisons, write_json, write_table

SPARED = 0.2  # part of the rows of independent sampling that shared sampling is to do without, at the same quality


@dataclass(frozen=True)
class Design:
    """Models by sampling schemes.

    Attributes:
        models: by their names in the experiment, the one to improve on first.
        shares: parts of the steps that are shared, beside independent sampling.
        steps: of the solver.
        fewer: other numbers of steps, for the curves over rows.
        seeds: runs of every cell, each from other noise.
        more_shares: parts of the steps that Figure 4 shows, too; they are in no table.
    """

    models: Sequence[str]
    shares: Sequence[float] = (0.2, 0.3, 0.4)
    steps: int = 30
    fewer: Sequence[int] = ()
    seeds: int = 1
    more_shares: Sequence[float] = ()

    def cells(self, experiment: Experiment) -> list[Cell]:
        """All that are looked at, once each, with their first seed; model by model, for each is loaded anew."""
        own = [*self.table(), *(experiment.equal_cost(cell) for cell in self.table() if cell.share)]
        own += self.curves(experiment)
        own += [cell for name in self.models for cell in self.shared_parts(name)]
        return sorted(dict.fromkeys(own), key=lambda cell: self.models.index(cell.model))

    def table(self) -> list[Cell]:
        """Those of Table 1: every model independently, and under each share."""
        return [Cell(name, share, self.steps) for share in (0.0, *self.shares) for name in self.models]

    @property
    def middle(self) -> float:
        """The share that pictures and curves show."""
        return self.shares[len(self.shares) // 2] if self.shares else 0.0

    @property
    def curved(self) -> list[float]:
        """The shares that have a curve over rows; 0 is independent sampling."""
        return list(dict.fromkeys([0.0, self.middle])) if self.fewer else []

    def curve(self, experiment: Experiment, model: str, share: float) -> list[Cell]:
        """A model under a share, over numbers of steps; without those of which this share is no step."""
        cells = [Cell(model, share, steps) for steps in sorted({*self.fewer, self.steps})]
        return [cell for cell in cells if not share or experiment.shares(cell)]

    def curves(self, experiment: Experiment) -> list[Cell]:
        """Every model, independently and under the share in the middle, over numbers of steps."""
        return [cell for name in self.models for share in self.curved for cell in self.curve(experiment, name, share)]

    def shared_parts(self, model: str) -> list[Cell]:
        """A model over the parts of the steps that are shared: Figure 4."""
        return [Cell(model, share, self.steps) for share in sorted({0.0, *self.shares, *self.more_shares})]

    def pairs(self, experiment: Experiment) -> list[tuple[Cell, Cell]]:
        """Every shared cell of the table against independent sampling, in as many steps and at equal cost, of its own
        model and of the first; and models under the same share against each other."""
        shared = [cell for cell in self.table() if cell.share]
        found = []
        for cell in shared:
            for own in self._rivals(cell):
                found += [(cell, replace(own, share=0.0)), (cell, experiment.equal_cost(own))]
        found += [(two, one) for one, two in itertools.combinations(shared, 2) if one.share == two.share]
        return list(dict.fromkeys(found))

    def knees(self, experiment: Experiment) -> list[tuple[Cell, Cell]]:
        """Every shared cell against the fewest independent steps in whose rows it leaves out `SPARED` or more, of its
        own model and of the first: more steps would be a weaker rival for the rows. Steps are those of the curves."""
        rows = {cell: experiment.rows(cell) for cell in dict.fromkeys([*self.table(), *self.curves(experiment)])}
        found = []
        for cell in [cell for cell in rows if cell.share and self.fewer]:
            for own in self._rivals(cell):
                alone = self.curve(experiment, own.model, 0.0)
                dearer = [other for other in alone if rows[cell] <= (1 - SPARED) * rows[other]]
                if dearer:
                    found.append((cell, min(dearer, key=rows.__getitem__)))
        return found

    def _rivals(self, cell: Cell) -> list[Cell]:
        """A cell with its own model, and with the first."""
        return list(dict.fromkeys([cell, replace(cell, model=self.models[0])]))

    def runs(self, cell: Cell) -> list[Cell]:
        """A cell with all its seeds."""
        return [replace(cell, seed=seed) for seed in range(self.seeds)]


def write_paper(
    measures: Measures,
    design: Design,
    bins: Mapping[float, Sequence[int]],
    out: Path,
    on_measured: Callable[[int, int], None] = lambda done, of: None,
) -> str:
    """Tables and figures of cells that have been looked at, to the folder `out`, and every number of them to
    `results.json`. Returns the tables as Markdown.

    Args:
        bins: groups, by the similarity that stands for them in Figure 3.
        on_measured: called with how much is measured, and of how much.
    """
    experiment = measures.experiment
    cells, pairs, knees = design.cells(experiment), design.pairs(experiment), design.knees(experiment)
    similar = bins if design.shares else {}
    total = len(cells) + len({*pairs, *knees}) + len(design.models) * len(similar)
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
    under = {name: Cell(name, design.middle, design.steps) for name in design.models}
    by_similarity = {name: [measured(cell, groups) for groups in similar.values()] for name, cell in under.items()}
    equal = [experiment.equal_cost(cell) for cell in design.table() if cell.share]
    judges, rows = experiment.judges, dict.fromkeys([*design.table(), *equal])
    text = write_table([results[cell] for cell in rows], judges, out)
    text += "\n" + write_comparisons([compared[pair] for pair in pairs], judges, out, "differences")
    if knees:
        text += "\n" + write_comparisons([compared[pair] for pair in knees], judges, out, "knee")
    if design.shares:
        write_grid({name: experiment.look(cell).shown for name, cell in under.items()}, experiment.prompts[:SHOWN], out)
        write_curves(by_similarity, list(bins), out, "figure3", label="smallest similarity in a group")
    if design.shares or design.more_shares:
        _write_shares(design, results, out)
    if design.curved:
        text += "\n" + _write_curve(design, experiment, results, out)
    content = {
        "networks": networks(judges),
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
    """Figure 4."""
    over = {name: [results[cell] for cell in design.shared_parts(name)] for name in design.models}
    steps = [int(cell.share * design.steps + 1e-9) for cell in design.shared_parts(design.models[0])]
    write_curves(over, steps, out, "figure4", label=f"steps that are shared, of {design.steps}")


def _write_curve(design: Design, experiment: Experiment, results: Mapping[Cell, Result], out: Path) -> str:
    """Every model under every curved share over its rows: `rows`, the figure, and `curve`, its table, line by line."""
    lines = {
        f"{name}, {f'shared {share:.0%}' if share else 'independent'}": [
            results[cell] for cell in design.curve(experiment, name, share)
        ]
        for name in design.models
        for share in design.curved
    }
    write_curves(lines, "rows", out, "rows", label="denoiser rows a picture")
    return write_table(list(itertools.chain(*lines.values())), experiment.judges, out, "curve")
