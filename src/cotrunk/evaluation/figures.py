"""Figures of an experiment, like Figures 2 to 4 of the paper, and curves over rows, as PNG and SVG."""

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import write_bytes, write_text
from ..plotting import log_axis, new_figure
from .measuring import Result
from .tables import MEASURES


def write_grid(columns: dict[str, np.ndarray], prompts: Sequence[str], out: Path, name: str = "figure2") -> None:
    """Write Figure 2: a grid with one row per prompt and one column per model.

    Args:
        columns: images (n, 3, height, width) in bytes, by title.
    """
    count, _, height, width = next(iter(columns.values())).shape
    gap, words, top, small = 6, 210, 26, 14
    size = (words + len(columns) * (width + gap), top + count * (height + gap))
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=small)
    elements = []
    for column, (title, own) in enumerate(columns.items()):
        x = words + column * (width + gap)
        draw.text((x + width / 2, 4), title, "#333333", font, anchor="ma")
        elements.append(f'<text x="{x + width / 2}" y="{small + 4}" text-anchor="middle">{escape(title)}</text>')
        for row in range(count):
            image, y = Image.fromarray(own[row].transpose(1, 2, 0)), top + row * (height + gap)
            canvas.paste(image, (x, y))
            elements.append(f'<image x="{x}" y="{y}" width="{width}" height="{height}" href="{_data_url(image)}"/>')
    for row, prompt in enumerate(prompts):
        lines, y = _wrapped(prompt, 26), top + row * (height + gap) + 4
        draw.multiline_text((4, y), "\n".join(lines), "black", font)
        elements += [
            f'<text x="4" y="{y + (line + 1) * (small + 4)}">{escape(text)}</text>' for line, text in enumerate(lines)
        ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" font-size="{small}"'
    svg = "\n".join([f'{head} font-family="sans-serif">', *elements, "</svg>"])
    write_bytes(out / f"{name}.png", lambda file: canvas.save(file, "PNG"))
    write_text(out / f"{name}.svg", svg + "\n")


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _wrapped(text: str, length: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= length:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def write_curves(
    lines: Mapping[str, Sequence[Result]],
    x: str | Sequence[float],
    out: Path,
    name: str,
    *,
    label: str,
    measures: Sequence[str] = tuple(MEASURES),
) -> None:
    """Write curves of metrics with their intervals: one panel per metric, one colour per model and kind of trunk.

    If some lines are of shared sampling, the lines of independent sampling are dashed.

    Args:
        lines: the results along each line, by its name.
        x: "rows" or "seconds" of the results, or the x values of every line.
        label: of the horizontal axis.
    """
    figure = new_figure(figsize=(4.4 * len(measures), 3.7), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    kinds = list(dict.fromkeys(_kind(results) for results in lines.values()))
    shared = {own for own, results in lines.items() if any(result.cell.share for result in results)}
    faint = 0.15 if len(lines) <= 4 else 0.05  # many intervals cover each other
    for panel, measure in zip(panels, measures, strict=True):
        title, more = MEASURES[measure]
        for own, results in lines.items():
            places = [getattr(result, x) for result in results] if isinstance(x, str) else list(x)
            ordered = sorted(zip(places, results, strict=True), key=lambda pair: pair[0])
            at, found = [place for place, _ in ordered], [result.figures[measure] for _, result in ordered]
            colour = f"C{kinds.index(_kind(results)) % 10}"
            style = "--" if shared and own not in shared else "-"
            panel.plot(at, [f.value for f in found], style, marker="o", markersize=3.5, color=colour, label=own)
            panel.fill_between(at, [f.low for f in found], [f.high for f in found], color=colour, alpha=faint)
        panel.set_xlabel(label)
        panel.set_title(f"{title} ({'higher' if more else 'lower'} is better)", fontsize=10)
        if isinstance(x, str):
            log_axis(panel)
        panel.grid(alpha=0.25)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    for form in ("png", "svg"):
        write_bytes(out / f"{name}.{form}", functools.partial(figure.savefig, format=form, dpi=110))


def _kind(results: Sequence[Result]) -> tuple[str, str, float]:
    """Return what gives a line its colour: the model, and how trunks are sampled."""
    cell = results[-1].cell
    return cell.model, *cell.trunk
