"""The table and the figure of `device.py`, from the lines of `points.jsonl`."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from device_models import MODELS

from cotrunk.errors import CotrunkError
from cotrunk.files import write_bytes, write_text
from cotrunk.plotting import log_axis, new_figure

Point = dict[str, Any]
Cells = Callable[[Point], list[str]]
# the settings that a setting with token-wise skipping is compared with; for the others "independent"
WITHOUT_TOKENS = {"one in 3 + 50 % of the tokens": "one in 3"}
BELOW: Mapping[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 3}  # a legend's place


class Found:
    """The points, and each one's baseline."""

    def __init__(self, points: list[Point]) -> None:
        self.points = points
        self._by_key = {
            (p["what"], p["model"], p["pixels"], p["batch"], p["setting"]): p for p in points if p["status"] == "ok"
        }

    def of(self, what: str) -> list[Point]:
        """Return the points of one kind, with the models in a fixed order."""
        order = list(MODELS)
        own = [p for p in self.points if p["what"] == what]
        return sorted(own, key=lambda p: (order.index(p["model"]), p["pixels"], p["batch"]))

    def measured(self, what: str) -> list[Point]:
        return [p for p in self.of(what) if p["status"] == "ok"]

    def methods(self) -> list[Point]:
        """Return the other methods, and next to them cotrunk's fixed rule on the same images."""
        shown = []
        for p in self.of("rival"):
            shown.append(p)
            own = self._by_key.get(("curve", p["model"], p["pixels"], p["batch"], "one in 3"))
            if p["setting"] == "nothing" and own is not None:
                computed = own["rows"] * own["steps"] / own["rows_full"]
                shown.append(own | {"setting": "cotrunk, one in 3", "computed": computed})
        return shown

    def baseline(self, point: Point) -> Point | None:
        """Return the point that the seconds of this one are compared with; None if it was not measured."""
        what, setting = {
            "curve": ("curve", "independent"),
            "tokens": ("curve", WITHOUT_TOKENS.get(point["setting"], "independent")),
            "compile": ("compile", "not compiled"),
            "rival": ("rival", "nothing"),
        }[point["what"]]
        return self._by_key.get((what, point["model"], point["pixels"], point["batch"], setting))

    def relative(self, point: Point) -> float | None:
        """Return the seconds of the point, relative to its baseline."""
        base = self.baseline(point)
        return None if base is None else point["seconds"] / base["seconds"]


def saved(found: Found, point: Point) -> tuple[float, float] | None:
    """Return the saved fractions of the rows and of the seconds; None for a point that saves no rows."""
    base, relative = found.baseline(point), found.relative(point)
    if base is None or relative is None or point["rows"] >= base["rows"]:
        return None
    return 1 - point["rows"] / base["rows"], 1 - relative


def skipped_step(found: Found, point: Point) -> float | None:
    """Return what a step that is not computed costs, relative to a computed one."""
    relative = found.relative(point)
    if relative is None or point["computed"] >= point["steps"]:
        return None
    return (relative * point["steps"] - point["computed"]) / (point["steps"] - point["computed"])


def write_report(folder: Path, header: Mapping[str, Any], points: list[Point], *, figure: bool = True) -> None:
    """Write `table.md`, and `figure.png` if matplotlib is installed."""
    found = Found(points)
    write_text(folder / "table.md", "\n".join(table(header, found)) + "\n")
    if figure:
        try:
            plot(header, found, folder / "figure.png")
        except CotrunkError as error:
            print(error, flush=True)


def table(header: Mapping[str, Any], found: Found) -> Iterator[str]:
    memory = "" if header["memory_gib"] is None else f", {header['memory_gib']} GiB"
    yield f"# {header['device']}{memory}, {header['dtype']}"
    yield ""
    yield (
        f"torch {header['torch']}, CUDA {header['cuda'] or '-'}, diffusers {header['diffusers']}. Random weights: "
        "times only, nothing about quality. 'Shared': 30 % of the steps in groups of four, as published. 'Own noise': "
        "the same without guidance in trunks, and each image keeps its noise. 'One in 3': one step in three is "
        "computed by the fixed rule, with the first steps and the last."
    )
    if header["rehearsal"]:
        yield "\nA rehearsal on tiny shapes: the figures mean nothing."
    yield from findings(found)
    yield from section(
        "Seconds per step",
        ["rows", "ms per step", "rows per second", "peak GiB"],
        found.of("step"),
        lambda p: [str(p["rows"]), f"{1e3 * p['seconds']:.1f}", f"{p['rows_per_second']:.1f}", _peak(p)],
    )
    yield from section(
        "The hook, with nothing shared and nothing skipped",
        ["ms per step, pipeline", "with cotrunk", "extra", "extra %", "ms once per call"],
        found.of("hook"),
        lambda p: [
            *[f"{1e3 * p[name]:.2f}" for name in ("bare", "hooked", "extra")],
            f"{100 * p['extra'] / p['bare']:.2f}",
            f"{1e3 * p['once']:.0f}",
        ],
    )
    yield from section(
        "Seconds against rows: one run of all images",
        ["rows", "rows saved %", "seconds", "time saved %", "time saved / rows saved", "peak GiB"],
        found.of("curve"),
        partial(_curve_cells, found),
    )
    yield from section(
        "Token-wise skipping, relative to the same steps with all tokens",
        ["rows", "seconds", "relative time %", "peak GiB"],
        found.of("tokens"),
        lambda p: [f"{p['rows']:.0f}", f"{p['seconds']:.3f}", _percent(found.relative(p)), _peak(p)],
    )
    yield from section(
        "torch.compile, on trees whose number of rows changes often",
        ["rows", "first run s", "later runs s", "relative time %", "graphs", "peak GiB"],
        found.of("compile"),
        lambda p: [
            f"{p['rows']:.0f}",
            f"{p['first']:.1f}",
            f"{p['seconds']:.3f}",
            _percent(found.relative(p)),
            f"{p['graphs']:.0f}",
            _peak(p),
        ],
    )
    yield from section(
        "Other methods, on the pipeline itself",
        ["steps computed", "seconds", "time saved %", "a skipped step costs %", "peak GiB"],
        found.methods(),
        lambda p: [
            f"{p['computed']:.0f} of {p['steps']:.0f}",
            f"{p['seconds']:.3f}",
            _percent(None if (relative := found.relative(p)) is None else 1 - relative),
            _percent(skipped_step(found, p)),
            _peak(p),
        ],
    )


def findings(found: Found) -> Iterator[str]:
    """Yield what the measurements say, in sentences."""
    lines = []
    if hooks := found.measured("hook"):
        extra = [100 * p["extra"] / p["bare"] for p in hooks]
        lines.append(f"- The hook costs {min(extra):.2f} to {max(extra):.2f} % of a step.")
    pairs = [(pair, p) for p in found.measured("curve") if (pair := saved(found, p)) is not None]
    if pairs:
        ratios = [seconds / rows for (rows, seconds), _ in pairs]
        middle = f"median {statistics.median(ratios):.2f} ({len(ratios)} runs)"
        lines.append(f"- Time saved / rows saved: {min(ratios):.2f} to {max(ratios):.2f}, {middle}.")
    relative = [value for p in found.measured("tokens") if (value := found.relative(p)) is not None]
    if relative:
        pays = sum(value < 1 for value in relative)
        lines.append(f"- Token-wise skipping saves time in {pays} of {len(relative)} settings.")
    if broken := [p for p in found.of("curve") + found.of("tokens") if p.get("failed")]:
        lines.append(f"- NOT FINITE: some latents of {len(broken)} runs; their times may mislead.")
    if halved := [p for p in found.points if p.get("halvings")]:
        lines.append(f"- Memory ran out in {len(halved)} runs, and cotrunk ran fewer rows at once.")
    if lines:
        yield from ("", *lines)


def section(title: str, heads: list[str], points: list[Point], cells: Cells) -> Iterator[str]:
    """Yield a heading and a table; nothing without points. A point without figures shows why it has none."""
    if not points:
        return
    has_settings = any(p["setting"] for p in points)
    names = ["model", "pixels", "images", *(["setting"] if has_settings else []), *heads]
    yield from ("", f"## {title}", "", "| " + " | ".join(names) + " |")
    left = 4 if has_settings else 3
    yield "|---|---:|---:|" + "---|" * (left - 3) + "---:|" * len(heads)
    for p in points:
        first = [MODELS[p["model"]].title, str(p["pixels"]), str(p["batch"])] + [p["setting"]] * has_settings
        if p["status"] == "ok":
            yield "| " + " | ".join([*first, *cells(p)]) + " |"
        else:
            why = {"too slow": f"over {p.get('limit', 0):.0f} s", "failed": p.get("why", "failed")}
            reason = str(why.get(p["status"], p["status"])).replace("|", "/")
            yield "| " + " | ".join([*first, reason, *[""] * (len(heads) - 1)]) + " |"


def _curve_cells(found: Found, p: Point) -> list[str]:
    pair = saved(found, p)
    if pair is None:
        return [f"{p['rows']:.0f}", "-", f"{p['seconds']:.3f}", "-", "-", _peak(p)]
    rows, seconds = pair
    shown = [f"{p['rows']:.0f}", f"{100 * rows:.1f}", f"{p['seconds']:.3f}", f"{100 * seconds:.1f}"]
    return [*shown, f"{seconds / rows:.2f}", _peak(p)]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _peak(p: Point) -> str:
    return f"{p['peak_gib']:.1f}" if "peak_gib" in p else "-"


def plot(header: Mapping[str, Any], found: Found, path: Path) -> None:
    """Plot rows per second, time saved over rows saved, and the other means relative to their baselines."""
    figure = new_figure(figsize=(17, 6.4), layout="constrained")
    speed, saving, others = figure.subplots(1, 3)
    colors = {model: f"C{number}" for number, model in enumerate(MODELS)}
    _plot_speed(speed, found, colors)
    _plot_saving(saving, found, colors)
    _plot_others(others, found, colors)
    rehearsal = ", a rehearsal on tiny shapes: the figures mean nothing" if header["rehearsal"] else ""
    title = f"{header['device']}, {header['dtype']}, random weights{rehearsal}. One color per model in all panels."
    figure.suptitle(title, fontsize=11)
    write_bytes(path, lambda file: figure.savefig(file, format="png", dpi=100))


def _plot_speed(panel: Any, found: Found, colors: Mapping[str, str]) -> None:
    for model in MODELS:
        for pixels in sorted({p["pixels"] for p in found.measured("step")}):
            line = [p for p in found.measured("step") if (p["model"], p["pixels"]) == (model, pixels)]
            if line:
                is_largest = pixels == max(p["pixels"] for p in found.measured("step"))
                rows, speeds = [p["rows"] for p in line], [p["rows_per_second"] for p in line]
                label = f"{MODELS[model].title}, {pixels} px"
                panel.plot(rows, speeds, "o-" if is_largest else "o--", ms=4, color=colors[model], label=label)
    log_axis(panel)
    panel.set_yscale("log")
    panel.set(xlabel="rows in a forward", title="rows per second")
    panel.grid(alpha=0.25, which="both")
    if panel.get_lines():
        panel.legend(fontsize=8, **BELOW)


def _plot_saving(panel: Any, found: Found, colors: Mapping[str, str]) -> None:
    points = [(p, pair) for p in found.measured("curve") if (pair := saved(found, p)) is not None]
    marks = dict(zip(dict.fromkeys(p["setting"] for p, _ in points), "osD^vP*X", strict=False))
    most = 100 * max((max(pair) for _, pair in points), default=1.0)
    panel.plot([0, most], [0, most], color="0.6", lw=1, zorder=0)
    for p, (rows, seconds) in points:
        panel.plot(100 * rows, 100 * seconds, marks[p["setting"]], ms=6, color=colors[p["model"]], alpha=0.8)
    for setting, mark in marks.items():
        panel.plot([], [], mark, color="0.4", label=setting)
    panel.set(xlabel="rows saved, %", title="time saved, % (on the line: as much as rows)")
    panel.grid(alpha=0.25)
    if points:
        panel.legend(fontsize=8, **BELOW)


def _plot_others(panel: Any, found: Found, colors: Mapping[str, str]) -> None:
    points = [*found.measured("tokens"), *found.measured("compile"), *found.methods()]
    points = [p for p in points if p["status"] == "ok"]
    bars = [(p, value) for p in points if (value := found.relative(p)) is not None and found.baseline(p) is not p]
    labels = [f"{MODELS[p['model']].title}: {p['setting']}" for p, _ in bars]
    places = range(len(bars))
    panel.barh(places, [100 * value for _, value in bars], color=[colors[p["model"]] for p, _ in bars])
    panel.set_yticks(places, labels, fontsize=7)
    panel.invert_yaxis()
    panel.axvline(100, color="0.3", lw=1)
    panel.set(xlabel="%", title="seconds, relative to the same without it")
    panel.grid(alpha=0.25, axis="x")
