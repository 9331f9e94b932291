"""The evaluation of the paper: which cells it takes, and from them Table 1 and Figures 2 to 4; and what it leaves out:
differences with their intervals, and curves over denoiser rows with fewer steps on them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .experiment import Cell, Experiment, Result
from .figures import scheme, write_curves, write_differences, write_grid, write_table

SHOWN = 8  # prompts in Figure 2


@dataclass(frozen=True)
class Design:
    """Models by sampling schemes.

    Attributes:
        models: by their names in the experiment, the one to improve on first.
        shares: parts of the steps that are shared, beside independent sampling.
        steps: of the solver.
        fewer: smaller numbers of steps, for the curves over rows.
        seeds: runs of every cell, each from other noise.
    """

    models: Sequence[str]
    shares: Sequence[float] = (0.2, 0.3, 0.4)
    steps: int = 30
    fewer: Sequence[int] = ()
    seeds: int = 1

    def cells(self, experiment: Experiment) -> list[Cell]:
        """All that are looked at, once each and with their first seed."""
        own = [*self.table(), *(experiment.equal_cost(cell) for cell in self.table() if cell.share)]
        own += [cell for name in self.models for share in self.curved for cell in self.curve(name, share)]
        return list(dict.fromkeys(own))

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

    def curve(self, model: str, share: float) -> list[Cell]:
        """A model under a share, over numbers of steps."""
        return [Cell(model, share, steps) for steps in (*self.fewer, self.steps)]

    def runs(self, cell: Cell) -> list[Cell]:
        """A cell with all its seeds."""
        return [replace(cell, seed=seed) for seed in range(self.seeds)]


def write_paper(experiment: Experiment, design: Design, bins: Mapping[float, Sequence[int]], out: Path) -> str:
    """Tables and figures of cells that have been looked at, to the folder `out`. Returns the tables as Markdown.

    bins: groups, by the similarity that stands for them in Figure 3.
    """
    results = {cell: experiment.measure(design.runs(cell)) for cell in design.cells(experiment)}
    shared = [cell for cell in design.table() if cell.share]
    equal = {cell: experiment.equal_cost(cell) for cell in shared}
    rows = dict.fromkeys([*design.table(), *equal.values()])
    text = write_table([results[cell] for cell in rows], experiment.judges, out)

    pairs = [(cell, replace(cell, share=0.0)) for cell in shared]
    pairs += equal.items()
    pairs += [(one, other) for other, one in itertools.pairwise(shared) if one.share == other.share]
    differences = [
        (_named(results[mine]), _named(results[theirs]), experiment.compare(design.runs(mine), design.runs(theirs)))
        for mine, theirs in pairs
    ]
    text += "\n" + write_differences(differences, experiment.judges, out)
    if shared:
        _figures(experiment, design, bins, out, lambda cell: results[cell])
    if design.curved:
        lines = {
            f"{name}, {f'shared {share:.0%}' if share else 'independent'}": [
                results[cell] for cell in design.curve(name, share)
            ]
            for name in design.models
            for share in design.curved
        }
        write_curves(lines, "rows", out, "rows", label="denoiser rows a picture")
    return text


def _figures(
    experiment: Experiment,
    design: Design,
    bins: Mapping[float, Sequence[int]],
    out: Path,
    result: Callable[[Cell], Result],
) -> None:
    under = {name: Cell(name, design.middle, design.steps) for name in design.models}
    pictures = {name: experiment.pictures(cell)[:SHOWN] for name, cell in under.items()}
    write_grid(pictures, experiment.prompts[:SHOWN], out)
    similar = {
        name: [experiment.measure(design.runs(cell), groups) for groups in bins.values()]
        for name, cell in under.items()
    }
    write_curves(similar, list(bins), out, "figure3", label="smallest similarity in a group")
    shares = (0.0, *design.shares)
    over = {name: [result(Cell(name, share, design.steps)) for share in shares] for name in design.models}
    shared_steps = [int(share * design.steps + 1e-9) for share in shares]
    write_curves(over, shared_steps, out, "figure4", label=f"steps that are shared, of {design.steps}")


def _named(result: Result) -> str:
    return f"{result.cell.model}, {scheme(result)}"
