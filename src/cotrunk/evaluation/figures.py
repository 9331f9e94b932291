"""Tables and figures of an experiment: the form of the paper's Table 1 and Figures 2 to 4, and curves over rows."""

import csv
import functools
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import CotrunkError
from ..files import write_bytes, write_text
from . import metrics
from .experiment import Judges, Result
from .networks import Inception

MEASURES = {  # name -> label, whether larger is better
    "frechet": ("Frechet distance", False),
    "alignment": ("alignment", True),
    "diversity": ("diversity in groups", True),
    "bleed": ("prompt bleed", False),
}


def scheme(result: Result) -> str:
    cell = result.cell
    return f"shared {cell.share:.0%}, {cell.steps} steps" if cell.share else f"independent, {cell.steps} steps"


def write_table(results: Sequence[Result], judges: Judges, out: Path, name: str = "table1") -> str:
    """`NAME.md`, `.csv` and `.json`; returns the Markdown. Every figure with its 95 % interval."""
    heads = ["scheme", "model", *(f"{label} {'↑' if more else '↓'}" for label, more in MEASURES.values())]
    heads += ["rows a picture", "saving", "seconds a picture"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    cells = []
    for result in results:
        figures = [str(result.figures[measure]) for measure in MEASURES]
        cost = [f"{result.rows:.1f}", f"{result.saving:.1%}", f"{result.seconds:.3f}"]
        cells.append([scheme(result), result.cell.model, *figures, *cost])
        lines.append("| " + " | ".join(cells[-1]) + " |")
    text = "\n".join(lines) + f"\n\n{_networks(judges)}\n"
    write_text(out / f"{name}.md", text)
    buffer = io.StringIO()
    csv.writer(buffer).writerows([heads, *cells])
    write_text(out / f"{name}.csv", buffer.getvalue())
    kept = [asdict(result) | {"scheme": scheme(result)} for result in results]
    write_text(out / f"{name}.json", json.dumps({"networks": _networks(judges), "results": kept}, indent=1) + "\n")
    return text


def write_differences(
    rows: Sequence[tuple[str, str, dict[str, metrics.Figure]]], judges: Judges, out: Path, name: str = "differences"
) -> str:
    """`NAME.md` and `.json`: what one scheme has more than another. rows: (this, than this, by measure)."""
    measures = list(rows[0][2]) if rows else []
    lines = ["| | less | " + " | ".join(MEASURES[measure][0] for measure in measures) + " |"]
    lines.append("|---|---|" + "---:|" * len(measures))
    for mine, theirs, figures in rows:
        cells = []
        for measure in measures:
            figure = figures[measure]
            # an interval on one side of zero is no chance
            mark = "**" if figure.low > 0 or figure.high < 0 else ""
            cells.append(f"{mark}{figure}{mark}")
        lines.append(f"| {mine} | {theirs} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + f"\n\nBold: the interval does not hold zero. {_networks(judges)}\n"
    write_text(out / f"{name}.md", text)
    kept = [{"this": a, "less": b, **{m: asdict(f) for m, f in figures.items()}} for a, b, figures in rows]
    write_text(out / f"{name}.json", json.dumps(kept, indent=1) + "\n")
    return text


def _networks(judges: Judges) -> str:
    return (
        f"Frechet distance in the features of {judges.features.name} ({_space(judges)}); diversity by "
        f"{judges.perceptual.name}; alignment and bleed by {judges.alignment.name}. In brackets the 95 % interval by "
        "bootstrap over groups."
    )


def _space(judges: Judges) -> str:
    return "all of them" if isinstance(judges.features, Inception) else "the first 64 principal components"


def write_grid(columns: dict[str, np.ndarray], prompts: Sequence[str], out: Path, name: str = "figure2") -> None:
    """Figure 2: a row a prompt, a column a model. columns: by title, pictures (n, 3, height, width) in bytes."""
    pictures = list(columns.values())
    count, _, height, width = pictures[0].shape
    gap, words, top = 6, 210, 26
    canvas = Image.new("RGB", (words + len(columns) * (width + gap), top + count * (height + gap)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    for column, (title, own) in enumerate(columns.items()):
        x = words + column * (width + gap)
        draw.text((x + width / 2, 4), title, "#333333", font, anchor="ma")
        for row in range(count):
            canvas.paste(Image.fromarray(own[row].transpose(1, 2, 0)), (x, top + row * (height + gap)))
    for row, prompt in enumerate(prompts):
        draw.multiline_text((4, top + row * (height + gap) + 4), _wrapped(prompt, 26), "black", font)
    write_bytes(out / f"{name}.png", lambda file: canvas.save(file, "PNG"))


def _wrapped(text: str, length: int) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= length:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def write_curves(
    lines: Mapping[str, Sequence[Result]],
    x: str | Sequence[float],
    out: Path,
    name: str,
    *,
    label: str,
    measures: Sequence[str] = tuple(MEASURES),
) -> None:
    """Measures over something, a panel a measure and a line a model, with their intervals; as PNG and SVG.

    Args:
        lines: by name, the results along it.
        x: "rows" or "seconds" of the results, or the places of every line's results.
        label: of the horizontal axis.
    """
    figure = new_figure(figsize=(4.4 * len(measures), 3.7), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for panel, measure in zip(panels, measures, strict=True):
        title, more = MEASURES[measure]
        for number, (own, results) in enumerate(lines.items()):
            places = [getattr(result, x) for result in results] if isinstance(x, str) else list(x)
            ordered = sorted(zip(places, results, strict=True), key=lambda pair: pair[0])
            at, found = [place for place, _ in ordered], [result.figures[measure] for _, result in ordered]
            colour = f"C{number % 10}"
            panel.plot(at, [f.value for f in found], marker="o", markersize=3.5, color=colour, label=own)
            panel.fill_between(at, [f.low for f in found], [f.high for f in found], color=colour, alpha=0.15)
        panel.set_xlabel(label)
        panel.set_title(f"{title} ({'higher' if more else 'lower'} is better)", fontsize=10)
        if isinstance(x, str):
            panel.set_xscale("log")
        panel.grid(alpha=0.25)
    panels[0].legend(fontsize=8)
    for form in ("png", "svg"):
        write_bytes(out / f"{name}.{form}", functools.partial(figure.savefig, format=form, dpi=110))


def new_figure(**settings: Any) -> Any:
    """A figure of matplotlib, which draws to files alone."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CotrunkError("Figures need matplotlib: pip install 'cotrunk[evaluate]'.") from error
    return Figure(**settings)
