"""What a sweep found, to look at: a page with the frontier and pictures along it."""

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
from .equivalence import MOST
from .search import Point, Tuned
from .setting import Basis, Setting, write_settings

SHOWN = 8  # pictures of a strip
UNDECIDED = 3  # settings that are named one by one


def write_tuned(tuned: Tuned, pictures: dict[Point, np.ndarray], networks: str, basis: Basis, out: Path) -> None:
    """`index.html`, `frontier.png`, and a settings file for each recommendation.

    pictures: of the points to show, (n, 3, height, width) bytes, in their order.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_settings(tuned.same_quality.setting, basis, out / "same-quality.json")
    if tuned.best_in_rows is None:
        (out / "best-in-rows.json").unlink(missing_ok=True)  # of another --rows
    else:
        write_settings(tuned.best_in_rows.setting, basis, out / "best-in-rows.json")
    plot = _plot(tuned)
    write_bytes(out / "frontier.png", lambda file: file.write(plot))
    template = resources.files("cotrunk.tuning").joinpath("page.html").read_text(encoding="utf-8")
    values = {
        "title": escape(basis.model),
        "claim": escape(claim(tuned)),
        "lead": "<br>".join(map(escape, advice(tuned))),
        "figure": "data:image/png;base64," + base64.b64encode(plot).decode(),
        "strips": "\n".join(_strip(point, own) for point, own in pictures.items()),
        "rows": "\n".join(_row(point, tuned) for point in tuned.points),
        "margins": " and ".join(f"{margin:.2g}" for margin in tuned.margins),
        "networks": escape(networks),
    }
    write_text(out / "index.html", Template(template).substitute(values))


def claim(tuned: Tuned) -> str:
    """The one sentence."""
    full, same = tuned.points[0], tuned.same_quality
    if same is full:
        return f"No setting was shown to be as good as {full.setting.steps} independent steps for fewer rows."
    name, (alignment, distance) = named(same), tuned.margins
    return (
        f"{name[0].upper()}{name[1:]}: {same.rows:.1f} rows per picture instead of {full.rows:.0f}, and shown to be as "
        f"good as {full.setting.steps} independent steps: less than {alignment:.2g} of alignment and {distance:.2g} of "
        "kernel distance behind."
    )


def advice(tuned: Tuned) -> list[str]:
    """What else to know, in sentences."""
    sentences = []
    if not any(point.setting.share for point in tuned.points):
        sentences.append("Sharing was not tried.")
    elif not tuned.sharing_pays:
        sentences.append(
            "Sharing is not shown to pay on these prompts: independent sampling may be as good for as few rows."
        )
    count = len(tuned.points[0].scores)
    for point in tuned.undecided[:UNDECIDED]:
        sentences.append(
            f"Not decided: {named(point)}, {point.rows:.1f} rows per picture; {_prompts(tuned, point)} prompts would "
            f"decide whether it is as good ({count} were tried)."
        )
    if len(tuned.undecided) > UNDECIDED:
        sentences.append(f"{len(tuned.undecided) - UNDECIDED} more cheap settings are not decided: see the table.")
    best = tuned.best_in_rows
    limit = f"at most {tuned.given:.4g} rows per picture"
    if best is None:
        sentences.append(f"No setting was tried that takes {limit}.")
    else:
        shown = "it is shown" if tuned.is_as_good(best) else "it is not shown"
        sentences.append(
            f"Best aligned for {limit}: {named(best)}, {best.rows:.1f} rows; {shown} to be as good as all steps."
        )
    if tuned.left_out:
        were = "settings were" if tuned.left_out > 1 else "setting was"
        sentences.append(f"{tuned.left_out} {were} left out for want of budget.")
    for why, settings in tuned.refused.items():
        many = f"{len(settings)} setting{'s' if len(settings) > 1 else ''}"
        sentences.append(f"Not possible here: {_in_common(settings)} ({many}). {why}")
    sentences.append(
        "Measures on few pictures are rough, and no network sees everything: look at the pictures before a large run."
    )
    return sentences


def _prompts(tuned: Tuned, point: Point) -> str:
    """About how many prompts would decide, in two digits: more are not known."""
    count = tuned.prompts_to_decide(point)
    if count >= MOST:
        return f"more than {MOST:,}"
    return f"about {math.ceil(count / (step := 10 ** max(0, len(str(count)) - 2))) * step:,}"


def named(point: Point) -> str:
    tolerance = point.setting.tolerance
    skipping = "" if tolerance is None else f", tolerance {tolerance:g}"
    return f"{point.setting.family}, {point.setting.steps} steps{skipping}"


def _in_common(settings: Sequence[Setting]) -> str:
    """What to call those that are refused for one reason: by what all of them do."""
    does = {
        "sharing": [bool(setting.share) for setting in settings],
        "skipping": [setting.tolerance is not None for setting in settings],
        "guidance in part": [setting.guidance_interval is not None for setting in settings],
    }
    return " with ".join(what for what, each in does.items() if all(each)) or "some steps"


def _row(point: Point, tuned: Tuned) -> str:
    chosen = ' class="chosen"' if point in (tuned.same_quality, tuned.best_in_rows) else ""
    confidence = tuned.confidence
    figures = (point.alignment, point.behind.interval(confidence), point.distance.interval(confidence))
    measured = [f"{f.value:.3f} [{f.low:.3f}, {f.high:.3f}]" for f in figures]
    answers = {True: "yes", False: "no", None: "not decided"}
    is_as_good = tuned.is_as_good(point)
    verdict = answers[is_as_good]
    if is_as_good is None and point.is_compared:
        verdict += f": {_prompts(tuned, point)} prompts"
    cells = [f"{point.rows:.1f}", f"{point.seconds:.2f}", *measured, verdict, point.failed]
    return f"<tr{chosen}><td>{escape(named(point))}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _strip(point: Point, pictures: np.ndarray) -> str:
    images = "".join(f'<img src="{_inlined(picture)}" alt="">' for picture in pictures[:SHOWN])
    about = f"{escape(named(point))}<br>{point.rows:.1f} rows per picture"
    return f'<div class="strip"><p>{about}</p><div>{images}</div></div>'


def _inlined(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    image = Image.fromarray(picture.transpose(1, 2, 0))
    image.thumbnail((192, 192))
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plot(tuned: Tuned) -> bytes:
    """Alignment and distance over rows, a line a family; on the first the frontier of all."""
    figure = new_figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    families = list(dict.fromkeys(point.setting.family for point in tuned.points))
    for number, family in enumerate(families):
        own = sorted((p for p in tuned.points if p.setting.family == family), key=lambda p: p.rows)
        weight, colour = 2.4 if family == "independent" else 1.2, f"C{number % 10}"
        confidence = tuned.confidence
        measures = ([p.alignment for p in own], [p.distance.interval(confidence) for p in own])
        for panel, found in zip(panels, measures, strict=True):
            rows = [point.rows for point in own]
            marker = "os"[number // 10 % 2]  # colours come again after ten
            panel.plot(rows, [f.value for f in found], f"{marker}-", ms=4, lw=weight, color=colour, label=family)
            if family == "independent":  # the rival's interval; those of all would hide everything
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
        panel.set_xlabel("denoiser rows per picture")
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.25)
    keys = {name: line for panel in panels for line, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(keys.values(), keys.keys(), fontsize=8, loc="outside right upper")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
