"""Draw measures over denoiser rows: the figures of `sharing.py` and `together.py`."""

from pathlib import Path
from typing import Any

from cotrunk.files import write_bytes
from cotrunk.plotting import log_axis


def draw(panel: Any, points: list[dict[str, Any]], measure: str, intervals: str | None, fmt: str, **look: Any) -> None:
    """Draw a curve through the values of a measure, with the widths of the intervals of another measure."""
    values = [p[measure]["value"] for p in points]
    ends = intervals and [[abs(p[intervals][end] - p[intervals]["value"]) for p in points] for end in ("low", "high")]
    panel.errorbar([p["rows"] for p in points], values, ends, fmt=fmt, ms=4, capsize=2, elinewidth=0.8, **look)


def finish(panel: Any, title: str) -> None:
    log_axis(panel)
    panel.margins(x=0.12)
    panel.set_title(title, fontsize=9)
    panel.set_xlabel("denoiser rows per image")
    panel.grid(alpha=0.25)


def write(figure: Any, panel: Any, path: Path) -> None:
    """Write a figure with the legend of one of its panels below it."""
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    write_bytes(path, lambda file: figure.savefig(file, format="png", dpi=100))
