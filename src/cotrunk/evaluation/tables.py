"""Tables of an experiment: Table 1 of the paper, and differences between schemes."""

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
from .measuring import Result
from .networks import Inception, MetricNetworks
from .observation import Cell

MEASURES = {  # name -> label, whether larger is better
    "frechet": ("Frechet distance", False),
    "alignment": ("alignment", True),
    "diversity": ("diversity in groups", True),
    "bleed": ("prompt bleed", False),
}


@dataclass(frozen=True)
class Comparison:
    """One scheme compared with another.

    Attributes:
        saved: the fraction of the other's denoiser rows that this scheme saves.
        changes: by metric, from the other to this one.
    """

    this: Cell
    other: Cell
    saved: float
    changes: dict[str, metrics.Change]

    @property
    def not_shown_worse(self) -> bool:
        """Return whether neither alignment nor Frechet distance is measurably worse; with few groups little is."""
        return self.changes["alignment"].absolute.high >= 0 and self.changes["frechet"].absolute.low <= 0

    def as_dict(self) -> dict[str, Any]:
        changes = {name: asdict(change) for name, change in self.changes.items()}
        ends = {"this": named(self.this), "other": named(self.other)}
        return {**ends, "rows_saved": self.saved, "not_shown_worse": self.not_shown_worse, **changes}


def scheme(cell: Cell) -> str:
    kind = f"shared {cell.share:.0%}" if cell.share else "independent"
    return ", ".join([kind, f"{cell.steps} steps", *_trunk(*cell.trunk)])


def short(cell: Cell) -> str:
    """Return the model, and how its trunks are sampled if they are not the paper's."""
    return ", ".join([cell.model, *_trunk(*cell.trunk)])


def _trunk(noise: str, guidance: float) -> list[str]:
    guided = [] if guidance == 1 else [f"trunk guidance {guidance:g}" if guidance else "unguided trunk"]
    return [*(["own noise"] if noise == "own" else []), *guided]


def named(cell: Cell) -> str:
    return f"{cell.model}, {scheme(cell)}"


def as_dict(result: Result) -> dict[str, Any]:
    return asdict(result) | {"scheme": scheme(result.cell)}


def write_table(results: Sequence[Result], networks: MetricNetworks, out: Path, name: str = "table1") -> str:
    """Write `NAME.md` and `NAME.csv`, with 95 % intervals, and return the Markdown."""
    heads = ["scheme", "model", *(f"{label} {'↑' if more else '↓'}" for label, more in MEASURES.values())]
    heads += ["rows per image", "saving", "seconds per image", "failed (NaN)"]
    cells = []
    for result in results:
        figures = [str(result.figures[measure]) for measure in MEASURES]
        cost = [f"{result.rows:.1f}", f"{result.saving:.1%}", f"{result.seconds:.3f}", str(result.failed)]
        cells.append([scheme(result.cell), result.cell.model, *figures, *cost])
    text = f"{_markdown(heads, cells)}\n\n{describe_networks(networks)}\n"
    write_text(out / f"{name}.md", text)
    buffer = io.StringIO()
    csv.writer(buffer).writerows([heads, *cells])
    write_text(out / f"{name}.csv", buffer.getvalue())
    return text


def write_comparisons(
    rows: Sequence[Comparison], networks: MetricNetworks, out: Path, name: str = "differences"
) -> str:
    """Write `NAME.md` with the differences between schemes, and return the Markdown."""
    measures = list(rows[0].changes) if rows else []
    heads = [
        "scheme",
        "compared with",
        *(MEASURES[measure][0] for measure in measures),
        "rows saved",
        "not shown worse",
    ]
    cells = []
    for row in rows:
        changes = [_change(row.changes[measure]) for measure in measures]
        cells.append([named(row.this), named(row.other), *changes])
        cells[-1] += [f"{row.saved:.1%}", "yes" if row.not_shown_worse else "no"]
    text = (
        f"{_markdown(heads, cells)}\n\nIn parentheses: relative to the other. Bold: the interval does not contain "
        "zero. Not shown worse: neither alignment nor Frechet distance is measurably worse. "
        f"{describe_networks(networks)}\n"
    )
    write_text(out / f"{name}.md", text)
    return text


def write_json(content: Any, path: Path) -> None:
    """Write JSON; numbers that are not finite, such as changes relative to zero, become null."""
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def describe_networks(networks: MetricNetworks) -> str:
    """Return the sentence that names the metric networks."""
    return (
        f"Frechet distance in the features of {networks.features.name} (images resized to {networks.features.resize}; "
        f"{_space(networks)}); diversity by {networks.perceptual.name}; alignment and bleed by "
        f"{networks.alignment.name}. In brackets: the 95 % interval by bootstrap over groups."
    )


def _space(networks: MetricNetworks) -> str:
    if isinstance(networks.features, Inception):
        return "all dimensions"
    return "the first 64 principal components of the real images, or all if they have fewer"


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
