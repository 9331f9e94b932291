"""Tables of an experiment: the form of the paper's Table 1, and what one scheme has more than another."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import write_text
from . import metrics
from .experiment import Cell, Judges
from .measuring import Result
from .networks import Inception

MEASURES = {  # name -> label, whether larger is better
    "frechet": ("Frechet distance", False),
    "alignment": ("alignment", True),
    "diversity": ("diversity in groups", True),
    "bleed": ("prompt bleed", False),
}


@dataclass(frozen=True)
class Comparison:
    """A scheme against another: `spared` is the part of the other's denoiser rows that it does without, `changes` are
    by measure."""

    this: Cell
    other: Cell
    spared: float
    changes: dict[str, metrics.Change]

    @property
    def not_shown_worse(self) -> bool:
        """Whether neither alignment nor Frechet distance is measurably worse: with few groups hardly anything is."""
        return self.changes["alignment"].absolute.high >= 0 and self.changes["frechet"].absolute.low <= 0

    def as_dict(self) -> dict[str, Any]:
        changes = {name: asdict(change) for name, change in self.changes.items()}
        ends = {"this": named(self.this), "other": named(self.other)}
        return {**ends, "rows_spared": self.spared, "not_shown_worse": self.not_shown_worse, **changes}


def scheme(cell: Cell) -> str:
    return f"shared {cell.share:.0%}, {cell.steps} steps" if cell.share else f"independent, {cell.steps} steps"


def named(cell: Cell) -> str:
    return f"{cell.model}, {scheme(cell)}"


def as_dict(result: Result) -> dict[str, Any]:
    return asdict(result) | {"scheme": scheme(result.cell)}


def write_table(results: Sequence[Result], judges: Judges, out: Path, name: str = "table1") -> str:
    """`NAME.md` and `.csv`; returns the Markdown. Every figure with its 95 % interval."""
    heads = ["scheme", "model", *(f"{label} {'↑' if more else '↓'}" for label, more in MEASURES.values())]
    heads += ["rows a picture", "saving", "seconds a picture", "left out (NaN)"]
    cells = []
    for result in results:
        figures = [str(result.figures[measure]) for measure in MEASURES]
        cost = [f"{result.rows:.1f}", f"{result.saving:.1%}", f"{result.seconds:.3f}", str(result.failed)]
        cells.append([scheme(result.cell), result.cell.model, *figures, *cost])
    text = f"{_markdown(heads, cells)}\n\n{networks(judges)}\n"
    write_text(out / f"{name}.md", text)
    buffer = io.StringIO()
    csv.writer(buffer).writerows([heads, *cells])
    write_text(out / f"{name}.csv", buffer.getvalue())
    return text


def write_comparisons(rows: Sequence[Comparison], judges: Judges, out: Path, name: str = "differences") -> str:
    """`NAME.md`: what one scheme has more than another; returns the Markdown."""
    measures = list(rows[0].changes) if rows else []
    heads = ["this", "less that", *(MEASURES[measure][0] for measure in measures), "rows spared", "not shown worse"]
    cells = []
    for row in rows:
        changes = [_change(row.changes[measure]) for measure in measures]
        cells.append([named(row.this), named(row.other), *changes])
        cells[-1] += [f"{row.spared:.1%}", "yes" if row.not_shown_worse else "no"]
    text = (
        f"{_markdown(heads, cells)}\n\nIn parentheses as a part of the other's. Bold: the interval does not hold zero. "
        f"Not shown worse: neither alignment nor Frechet distance is measurably worse. {networks(judges)}\n"
    )
    write_text(out / f"{name}.md", text)
    return text


def write_json(content: Any, path: Path) -> None:
    """What is not finite (a part of nothing) becomes null, which every reader of JSON knows."""
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def networks(judges: Judges) -> str:
    return (
        f"Frechet distance in the features of {judges.features.name} (pictures brought to {judges.features.resize}; "
        f"{_space(judges)}); diversity by {judges.perceptual.name}; alignment and bleed by {judges.alignment.name}. In "
        "brackets the 95 % interval by bootstrap over groups."
    )


def _space(judges: Judges) -> str:
    if isinstance(judges.features, Inception):
        return "all dimensions"
    return "the first 64 principal components of the real pictures, or all where they have fewer"


def _change(change: metrics.Change) -> str:
    mark, part = "**" if change.absolute.is_clear else "", change.relative
    return f"{mark}{change.absolute}{mark} ({part.value:+.1%} [{part.low:+.1%}, {part.high:+.1%}])"


def _markdown(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)])


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
