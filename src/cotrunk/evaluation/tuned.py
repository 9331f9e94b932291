"""What a sweep found, to look at: a page with the frontier and pictures along it."""

import base64
import io
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from ..files import write_bytes, write_text, writing
from .figures import log_axis, new_figure
from .setting import Basis, Setting, write_settings
from .tuning import Point, Tuned

SHOWN = 8  # pictures of a strip


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
    template = resources.files("cotrunk.evaluation").joinpath("tuned.html").read_text(encoding="utf-8")
    values = {
        "title": escape(basis.model),
        "claim": escape(claim(tuned)),
        "lead": "<br>".join(map(escape, advice(tuned))),
        "figure": "data:image/png;base64," + base64.b64encode(plot).decode(),
        "strips": "\n".join(_strip(point, own) for point, own in pictures.items()),
        "rows": "\n".join(_row(point, tuned) for point in tuned.points),
        "networks": escape(networks),
    }
    write_text(out / "index.html", Template(template).substitute(values))


def claim(tuned: Tuned) -> str:
    """The one sentence."""
    full, same = tuned.points[0], tuned.same_quality
    if same is full:
        return f"No setting was shown to be as good as {full.setting.steps} independent steps for fewer rows."
    name = named(same)
    return (
        f"{name[0].upper()}{name[1:]}: {same.rows:.1f} rows a picture instead of {full.rows:.0f}, for an alignment "
        f"at most {tuned.margin:.2g} behind that of {full.setting.steps} independent steps."
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
    if tuned.undecided:
        count, are = tuned.undecided, "settings are" if tuned.undecided > 1 else "setting is"
        sentences.append(f"{count} cheaper {are} neither shown to be as good nor to be worse: more prompts tell.")
    best = tuned.best_in_rows
    limit = f"at most {tuned.given:.4g} rows a picture"
    if best is None:
        sentences.append(f"No setting was tried that takes {limit}.")
    else:
        sentences.append(f"Best for {limit}: {named(best)}, {best.rows:.1f} rows.")
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
    measured = [f"{f.value:.3f} [{f.low:.3f}, {f.high:.3f}]" for f in (point.alignment, point.behind, point.distance)]
    cells = [f"{point.rows:.1f}", f"{point.seconds:.2f}", *measured, point.failed]
    return f"<tr{chosen}><td>{escape(named(point))}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _strip(point: Point, pictures: np.ndarray) -> str:
    images = "".join(f'<img src="{_inlined(picture)}" alt="">' for picture in pictures[:SHOWN])
    return (
        f'<div class="strip"><p>{escape(named(point))}<br>{point.rows:.1f} rows a picture</p><div>{images}</div></div>'
    )


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
        for panel, measure in zip(panels, ("alignment", "distance"), strict=True):
            found = [getattr(point, measure) for point in own]
            rows = [point.rows for point in own]
            marker = "os"[number // 10 % 2]  # colours come again after ten
            panel.plot(rows, [f.value for f in found], f"{marker}-", ms=4, lw=weight, color=colour, label=family)
            if family == "independent":  # the rival's interval; those of all would hide everything
                panel.fill_between(rows, [f.low for f in found], [f.high for f in found], color=colour, alpha=0.1)
    best = tuned.frontier
    panels[0].plot([p.rows for p in best], [p.alignment.value for p in best], "k:", lw=1.2, label="frontier")
    panels[1].axhspan(tuned.floor.low, tuned.floor.high, color="#888888", alpha=0.2, label="other noise, all steps")
    for panel, title in zip(
        panels, ("alignment (higher is better)", "kernel distance to other noise, all steps (lower)"), strict=True
    ):
        log_axis(panel)
        panel.set_xlabel("denoiser rows a picture")
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.25)
    keys = {name: line for panel in panels for line, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(keys.values(), keys.keys(), fontsize=8, loc="outside right upper")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
