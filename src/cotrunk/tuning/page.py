"""The page of a sweep: the frontier of quality over rows, and images along it."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from ..files import write_bytes, write_text, writing
from ..plotting import log_axis, new_figure
from ..settings import Settings
from .candidates import description, family
from .equivalence import MOST_PROMPTS
from .outcome import Point, Tuned
from .settings_file import Basis, write_settings

SHOWN = 8  # images per strip
UNDECIDED = 3  # undecided settings that are named one by one


def write_tuned(tuned: Tuned, images: dict[Point, np.ndarray], networks: str, basis: Basis, out: Path) -> None:
    """Write `index.html`, `frontier.png`, and one settings file per recommendation.

    Args:
        images: (n, 3, height, width) bytes, of the points to show, in their order.
        networks: the sentence that names the metric networks.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_settings(tuned.same_quality.settings, basis, out / "same-quality.json")
    if tuned.best_in_rows is None:
        (out / "best-in-rows.json").unlink(missing_ok=True)  # from a sweep with another --rows
    else:
        write_settings(tuned.best_in_rows.settings, basis, out / "best-in-rows.json")
    plot = _plot(tuned)
    write_bytes(out / "frontier.png", lambda file: file.write(plot))
    template = resources.files("cotrunk.tuning").joinpath("page.html").read_text(encoding="utf-8")
    values = {
        "title": escape(basis.model),
        "claim": escape(claim(tuned)),
        "lead": "<br>".join(map(escape, advice(tuned))),
        "figure": "data:image/png;base64," + base64.b64encode(plot).decode(),
        "strips": "\n".join(_strip(point, own) for point, own in images.items()),
        "rows": "\n".join(_row(point, tuned) for point in tuned.points),
        "margins": " and ".join(f"{margin:.2g}" for margin in tuned.margins),
        "networks": escape(networks),
    }
    write_text(out / "index.html", Template(template).substitute(values))


def claim(tuned: Tuned) -> str:
    """Return the headline of the page."""
    full, same = tuned.points[0], tuned.same_quality
    if same is full:
        return f"No setting was shown to be as good as {full.settings.steps} independent steps for fewer rows."
    name, (alignment, distance) = description(same.settings), tuned.margins
    return (
        f"{name[0].upper()}{name[1:]}: {same.rows:.1f} rows per image instead of {full.rows:.0f}, and shown to be as "
        f"good as {full.settings.steps} independent steps: it loses less than {alignment:.2g} of alignment and "
        f"{distance:.2g} of kernel distance."
    )


def advice(tuned: Tuned) -> list[str]:
    """Return the sentences below the headline of the page."""
    sentences = []
    if not any(point.settings.sharing for point in tuned.points):
        sentences.append("Sharing was not tried.")
    elif not tuned.sharing_pays:
        sentences.append(
            "Sharing was not shown to pay on these prompts: independent sampling may be as good at the same rows."
        )
    count = len(tuned.points[0].scores)
    for point in tuned.undecided[:UNDECIDED]:
        sentences.append(
            f"Undecided: {description(point.settings)}, {point.rows:.1f} rows per image; {_prompts(tuned, point)} "
            f"prompts would decide whether it is as good ({count} were tried)."
        )
    if len(tuned.undecided) > UNDECIDED:
        sentences.append(f"{len(tuned.undecided) - UNDECIDED} more cheap settings are undecided: see the table.")
    best = tuned.best_in_rows
    limit = f"at most {tuned.row_limit:.4g} rows per image"
    if best is None:
        sentences.append(f"No setting that was tried needs {limit}.")
    else:
        shown = "was shown" if tuned.is_as_good(best) else "was not shown"
        sentences.append(
            f"Best alignment for {limit}: {description(best.settings)}, {best.rows:.1f} rows. It {shown} to be as good "
            "as all steps."
        )
    if tuned.over_budget:
        were = "settings were" if tuned.over_budget > 1 else "setting was"
        sentences.append(f"{tuned.over_budget} {were} not tried, because the budget was used up.")
    for why, settings in tuned.refused.items():
        many = f"{len(settings)} setting{'s' if len(settings) > 1 else ''}"
        sentences.append(f"Not possible here: {_in_common(settings)} ({many}). {why}")
    sentences.append(
        "Metrics of few images are rough, and no network sees everything: look at the images before a large run."
    )
    return sentences


def _prompts(tuned: Tuned, point: Point) -> str:
    """Return in words how many prompts would decide, rounded up to two digits."""
    count = tuned.prompts_to_decide(point)
    if count >= MOST_PROMPTS:
        return f"more than {MOST_PROMPTS:,}"
    return f"about {math.ceil(count / (step := 10 ** max(0, len(str(count)) - 2))) * step:,}"


def _in_common(settings: Sequence[Settings]) -> str:
    """Return what all of these settings do, as their name."""
    does = {
        "sharing": [each.sharing is not None for each in settings],
        "skipping": [each.skipping is not None for each in settings],
        "guidance in part": [each.guidance_interval is not None for each in settings],
    }
    return " with ".join(what for what, each in does.items() if all(each)) or "some steps"


def _row(point: Point, tuned: Tuned) -> str:
    chosen = ' class="chosen"' if point in (tuned.same_quality, tuned.best_in_rows) else ""
    confidence = tuned.confidence
    figures = (point.alignment, point.alignment_loss.interval(confidence), point.distance_excess.interval(confidence))
    measured = [f"{f.value:.3f} [{f.low:.3f}, {f.high:.3f}]" for f in figures]
    answers = {True: "yes", False: "no", None: "undecided"}
    is_as_good = tuned.is_as_good(point)
    verdict = answers[is_as_good]
    if is_as_good is None and point.is_compared:
        verdict += f": {_prompts(tuned, point)} prompts"
    cells = [f"{point.rows:.1f}", f"{point.seconds:.2f}", *measured, verdict, point.failed]
    return (
        f"<tr{chosen}><td>{escape(description(point.settings))}</td>"
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
    )


def _strip(point: Point, images: np.ndarray) -> str:
    tags = "".join(f'<img src="{_data_url(image)}" alt="">' for image in images[:SHOWN])
    about = f"{escape(description(point.settings))}<br>{point.rows:.1f} rows per image"
    return f'<div class="strip"><p>{about}</p><div>{tags}</div></div>'


def _data_url(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    image.thumbnail((192, 192))
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plot(tuned: Tuned) -> bytes:
    """Plot alignment and distance over rows, with one line per family, and the frontier of all."""
    figure = new_figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    families = list(dict.fromkeys(family(point.settings) for point in tuned.points))
    for number, name in enumerate(families):
        own = sorted((p for p in tuned.points if family(p.settings) == name), key=lambda p: p.rows)
        weight, colour = 2.4 if name == "independent" else 1.2, f"C{number % 10}"
        confidence = tuned.confidence
        measures = ([p.alignment for p in own], [p.distance_excess.interval(confidence) for p in own])
        for panel, found in zip(panels, measures, strict=True):
            rows = [point.rows for point in own]
            marker = "os"[number // 10 % 2]  # colours repeat after ten
            panel.plot(rows, [f.value for f in found], f"{marker}-", ms=4, lw=weight, color=colour, label=name)
            if name == "independent":  # the intervals of all families would cover everything
                panel.fill_between(rows, [f.low for f in found], [f.high for f in found], color=colour, alpha=0.1)
    best = tuned.frontier
    panels[0].plot([p.rows for p in best], [p.alignment.value for p in best], "k:", lw=1.2, label="frontier")
    limits = (tuned.points[0].alignment.value - tuned.margins[0], tuned.margins[1])
    for panel, limit in zip(panels, limits, strict=True):
        panel.axhline(limit, color="#888888", lw=1, ls="--", label="margin")
    for panel, title in zip(
        panels, ("alignment (higher is better)", "excess of kernel distance (lower is better)"), strict=True
    ):
        log_axis(panel)
        panel.set_xlabel("denoiser rows per image")
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.25)
    keys = {name: line for panel in panels for line, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(keys.values(), keys.keys(), fontsize=8, loc="outside right upper")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
