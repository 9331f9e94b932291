"""Measure sharing with `cotrunk.generate` over shares and steps, beside independent sampling in any number of steps.

    python benchmarks/sharing.py --out docs/results/sharing --cells build/cells      # two hours on one core

Both embedded models with their own schedulers (mini: DDIM, mini-dit: DPM++ 2M), 256 prompts in groups of four of two
kinds (see `similar_prompts`), two runs. The denoiser and the decoder run in bfloat16, the rest in float32.
Independent images come from the loop of `plain_sampling`, as do the reference's (other seeds, 50 steps) and what
`trunks.py` has measured (20 steps, 30 % shared); claim.md compares one setting by both. Measured cells are kept in
--cells, and a later call continues. Writes points.jsonl, table.md, claim.md, and curves and a strip of images.
"""

import functools
import json
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import curves
import numpy as np
import torch
from plain_sampling import BATCH, GUIDANCE, ROWS, Model, Variant
from sharing_measures import Cells, Gauge, Values, common_arguments, figures, joined
from similar_prompts import GROUP, KINDS, PROMPTS
from trunks import FULL, OWN, PUBLISHED, REFERENCE, VARIANTS, measure_all

from cotrunk import Batching, Plan, Sharing, generate
from cotrunk import plan as plan_prompts
from cotrunk.evaluation.metrics import Figure
from cotrunk.files import read_lines, write_bytes, write_text
from cotrunk.planning.tree import flat_tree
from cotrunk.plotting import new_figure

TRUNKS = {
    PUBLISHED: {"noise": "common", "trunk_guidance": 1.0},
    OWN: {"noise": "own", "trunk_guidance": 0.0},
    "common noise, unguided": {"noise": "common", "trunk_guidance": 0.0},
}
CLAIMED = OWN  # the variant whose claim is examined
TRIED = (20, 0.3)  # the steps and the share of `trunks.py`
CLAIM = 1.25  # independent sampling may take so many times the rows
BASE = "20 independent steps"  # differences are drawn against it
MEASURES = {"alignment": 1, "frechet": -1, "diversity": 1}  # and whether more is better
PICTURES = (0, 20, 32, 52)  # groups of the strips


@dataclass(frozen=True)
class Setting:
    """A cell.

    Attributes:
        trunk: by name, or "independent".
        mode: how `cotrunk.plan` groups the prompts and lets groups branch; None for the groups of four.
        group: largest group.
    """

    trunk: str
    steps: int = 20
    share: float = 0.0
    mode: str | None = None
    group: int = GROUP

    @property
    def shared(self) -> int:
        return int(self.share * self.steps + 1e-9)


def settings() -> list[Setting]:
    """Return all cells, most useful first."""
    main = [trunk for trunk in TRUNKS if trunk != "common noise, unguided"]
    found = [Setting("independent", steps) for steps in (20, 15)]
    found += [Setting(trunk, 20, share) for share in (0.3, 0.2, 0.1) for trunk in main]
    found += [Setting("independent", steps) for steps in (10, 12, 8)]
    found += [Setting(trunk, 20, share) for share in (0.4, 0.5) for trunk in main]
    found += [Setting(trunk, 10, 0.3) for trunk in main]
    found += [Setting("independent", steps) for steps in (6, 18, 25, 30)]
    found += [Setting(trunk, steps, 0.3) for steps in (15, 30, 6) for trunk in main]
    found += [Setting("common noise, unguided", 20, share) for share in (0.3, 0.4)]
    found += [Setting("independent", steps) for steps in (40, 50)]
    found += [Setting(CLAIMED, 20, share, "flat", group) for share in (0.2, 0.3) for group in (GROUP, 8)]
    found += [Setting(CLAIMED, 20, share, "tree", group) for share in (0.4, 0.6) for group in (8, 16)]
    found += [Setting(CLAIMED, 20, share, "adaptive", 8) for share in (0.3, 0.4)]
    return found


def plan(model: Model, setting: Setting, run: int) -> Plan:
    """Return a plan with the seeds of `plain_sampling`, in the groups of `similar_prompts` unless a mode is given."""
    trees, seeds, options = [], list[int](), TRUNKS[setting.trunk]
    if setting.mode is not None:
        sharing = Sharing(share=setting.share, mode=setting.mode, max_group=setting.group, **options)
        seeds = [10_000 * run + prompt for prompt in range(len(PROMPTS))]
        how = {"num_inference_steps": setting.steps, "guidance_scale": model.guidance}
        return plan_prompts(model.pipe, PROMPTS, sharing=sharing, seed=seeds, **how)
    for start in range(0, len(PROMPTS), GROUP):
        trees += flat_tree(range(start, start + GROUP), setting.shared, setting.steps)
    for prompt in range(len(PROMPTS)):
        first = prompt // GROUP * GROUP if options["noise"] == "common" else prompt
        seeds.append(10_000 * run + first)
    sharing = Sharing(share=setting.share, **options)
    return Plan(
        tuple(PROMPTS), tuple(seeds), tuple(trees), setting.steps, setting.steps, sharing=sharing, threshold=0.0
    )


def draw(model: Model, own: Plan) -> torch.Tensor:
    """Return images in bytes."""
    result = generate(
        model.pipe,
        plan=own,
        num_inference_steps=own.steps,
        guidance_scale=model.guidance,
        skipping=None,
        batching=Batching(BATCH, max_rows=ROWS, row_sizes=(ROWS,)),  # one shape, for a compiled denoiser
        output_type="latent",
    )
    latents = result.images if isinstance(result.images, torch.Tensor) else torch.stack(list(result.images))
    return model.decode(latents.float())


def generated(model: Model, setting: Setting, cells: Cells, gauge: Gauge, run: int) -> Values:
    """Return one run of a setting with `generate`, from its file if there is one."""

    def make() -> dict[str, Any]:
        own = plan(model, setting, run)
        images = draw(model, own)
        rows = own.cost.used / len(PROMPTS)  # without those that fill a forward
        return {"rows": rows, "largest": setting.group, "images": images.numpy()} | gauge.measure(images)

    key = {"product": 1, "model": model.name, **TRUNKS[setting.trunk], "steps": setting.steps, "shared": setting.shared}
    if setting.mode is not None:
        key |= {"share": setting.share, "mode": setting.mode, "group": setting.group}
    return cells.get(key | {"run": run}, make)


def cell_of(model: Model, setting: Setting, cells: Cells, gauge: Gauge, runs: int) -> Values:
    """Return a setting: by `generate`, or by the loop if `trunks.py` has measured it."""
    if setting.trunk == "independent":
        return measure_all(model, Variant(steps=setting.steps), cells, gauge, runs)
    if (setting.steps, setting.share, setting.mode) == (*TRIED, None):
        return measure_all(model, VARIANTS[setting.trunk], cells, gauge, runs)
    return joined([generated(model, setting, cells, gauge, run) for run in range(runs)])


def main() -> None:
    parser = common_arguments(__doc__, list(GUIDANCE))
    parser.add_argument("--settings", type=int, help="measure only so many of the settings, most useful first")
    parser.add_argument("--claim", action="store_true", help="also compare with the best of independent sampling")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    cells, gauge = Cells(args.cells), Gauge()
    models = [Model(name, compiled=args.compile and name == "mini") for name in args.models]
    file = args.out / "points.jsonl"
    points = read_lines(file) if file.exists() else []
    for setting in settings()[: args.settings]:
        for model in models:
            head = {"model": model.name, "runs": args.runs} | asdict(setting)
            if setting.mode is None:
                del head["mode"], head["group"]
            if any(head.items() <= point.items() for point in points):
                continue
            cell = cell_of(model, setting, cells, gauge, args.runs)
            reference, base = (measure_all(model, one, cells, gauge, args.runs) for one in (REFERENCE, FULL))
            own = [head | {"kind": kind} | figures(cell, reference, kind, {BASE: base}) for kind in KINDS]
            points += own
            with file.open("a") as log:
                log.writelines(json.dumps(point) + "\n" for point in own)
            print(f"{model.name}, {setting}: {own[0]['rows']:.2f} rows", flush=True)
    points = [point for point in points if point["runs"] == args.runs]
    write_text(args.out / "table.md", table(points))
    lines = []
    by_hand = [point for point in points if not point.get("mode")]
    for model in models:
        get = functools.partial(cell_of, model, cells=cells, gauge=gauge, runs=args.runs)
        own = [p for p in by_hand if p["model"] == model.name]
        plot(own, args.out / f"curves-{model.name}.png")
        strip(get, args.out / f"strip-{model.name}.png")
        if args.claim:
            reference = measure_all(model, REFERENCE, cells, gauge, args.runs)
            lines += [*claim(model.name, get, reference, own), "", check(model, cells, gauge), ""]
    if args.claim:
        write_text(args.out / "claim.md", "\n".join(lines))


def table(points: list[dict[str, Any]]) -> str:
    """Return one line per setting and kind of group: values with intervals."""
    heads = ["model", "groups", "trunk", "mode", "steps", "shared", "rows", *MEASURES, "bleed"]
    heads.append("diversity against 20 steps")
    lines = ["| " + " | ".join(heads) + " |", "|---" * 4 + "|---:" * (len(heads) - 4) + "|"]
    for p in sorted(points, key=lambda p: (p["model"], p["kind"], p["trunk"], _mode(p), p["steps"], p["share"])):
        share = f"{p['share']:.0%}" if p["share"] else "-"
        cells = [p["model"], p["kind"], p["trunk"], _mode(p), str(p["steps"]), share, f"{p['rows']:.2f}"]
        cells += [f"{p[name]['value']:.3g} [{p[name]['low']:.3g}, {p[name]['high']:.3g}]" for name in MEASURES]
        lost = Figure(**p[f"diversity against {BASE}"])
        cells += [f"{p['bleed']['value']:.0%}", f"{lost.value:+.1%} [{lost.low:+.1%}, {lost.high:+.1%}]"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mode(point: dict[str, Any]) -> str:
    """Return how the prompts of a point were grouped: empty for the groups of four."""
    return f"{point['mode']}, groups of at most {point['group']}" if point.get("mode") else ""


def check(model: Model, cells: Cells, gauge: Gauge) -> str:
    """Compare one run of `generate` with the same one of the loop."""
    own = generated(model, Setting(CLAIMED, *TRIED), cells, gauge, 0)
    loop = measure_all(model, VARIANTS[CLAIMED], cells, gauge, runs=1)
    squared = ((own["images"].astype(np.float32) - loop["images"]) / 255) ** 2
    psnr = np.sort(-10 * np.log10(np.maximum(squared.mean(axis=(1, 2, 3)), 1e-10)))
    worst = psnr[: len(psnr) // 20].mean()
    parts = [
        f"{name} {own[name].mean():.4f} and {loop[name].mean():.4f}" for name in ("alignment", "diversity", "bleed")
    ]
    return (
        f"{model.name}: the images of `generate` and of the loop (20 steps, 30 % shared): PSNR {np.median(psnr):.1f} "
        f"dB (median), {worst:.1f} dB (worst twentieth); {'; '.join(parts)}."
    )


def claim(model: str, get: Callable[..., Values], reference: Values, points: list[dict[str, Any]]) -> list[str]:
    """Compare each shared setting with the best independent one of at most `CLAIM` times its rows, per measure."""
    heads = ["groups", "steps", "shared", "rows", *MEASURES]
    lines = [f"{model}: {CLAIMED}", "", "| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for p in sorted(points, key=lambda p: (p["kind"], p["steps"], p["share"])):
        rivals = [q for q in points if q["trunk"] == "independent" and q["kind"] == p["kind"]]
        rivals = [q for q in rivals if q["rows"] <= CLAIM * p["rows"]]
        if p["trunk"] != CLAIMED or not rivals:
            continue
        best = {name: max(rivals, key=lambda q: MEASURES[name] * q[name]["value"])["steps"] for name in MEASURES}
        others = {str(steps): get(setting=Setting("independent", steps)) for steps in set(best.values())}
        own = figures(get(setting=Setting(CLAIMED, p["steps"], p["share"])), reference, p["kind"], others)
        cells = [p["kind"], str(p["steps"]), f"{p['share']:.0%}", f"{p['rows']:.2f}"]
        for name, sign in MEASURES.items():
            change = Figure(**own[f"{name} against {best[name]}"])
            is_worse = sign * (change.high if sign > 0 else change.low) < 0
            shown = f"{change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"
            cells.append(f"{'worse' if is_worse else 'not clearly worse'} than {best[name]} steps: {shown}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """Draw the measures over rows, one line of panels per kind of group. Intervals are of differences from `BASE`."""
    titles = {
        "alignment": "alignment, difference from 20 independent steps (higher)",
        "frechet": "Frechet distance (lower)",
        "diversity": "diversity in groups (higher)",
    }
    figure = new_figure(figsize=(15, 8.4), layout="constrained")
    panels = figure.subplots(len(KINDS), len(MEASURES), squeeze=False)
    for line, kind in zip(panels, KINDS, strict=True):
        for panel, measure_name in zip(line, MEASURES, strict=True):
            here = [p for p in points if p["kind"] == kind]
            for number, trunk in enumerate(("independent", *TRUNKS)):
                for style, own in _curves(trunk, [p for p in here if p["trunk"] == trunk]):
                    behind = f"{measure_name} behind {BASE}"
                    key = behind if measure_name == "alignment" else measure_name
                    label = trunk + {"-": ", 20 steps, by share", ":": ", 30 % shared, by steps"}.get(style, "")
                    look = {"label": label, "color": f"C{number}", "lw": 2.4 if trunk == "independent" else 1.3}
                    curves.draw(panel, own, key, behind, f"o{style or '-'}", **look)
                    for p in own:
                        text = f"{p['share']:.0%}" if style == "-" else f"{p['steps']} steps"
                        at = (p["rows"], p[key]["value"])
                        panel.annotate(text, at, (4, 4), textcoords="offset points", fontsize=6.5)
            curves.finish(panel, f"groups of {kind}: {titles[measure_name]}")
    curves.write(figure, panels[0][0], path)


def _curves(trunk: str, points: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the curves of a trunk with their line styles: over the share, and over the steps."""
    ordered = sorted(points, key=lambda p: p["rows"])
    if trunk == "independent":
        return [("", ordered)]
    found = [("-", [p for p in ordered if p["steps"] == 20]), (":", [p for p in ordered if p["share"] == 0.3])]
    return [(style, own) for style, own in found if len(own) > 1]


def strip(get: Callable[..., Values], path: Path) -> None:
    """Draw some groups: independent, published, and the claimed variant, 20 steps and 30 % shared."""
    settings = {"independent": Setting("independent"), "published": Setting(PUBLISHED, *TRIED)}
    settings[CLAIMED] = Setting(CLAIMED, *TRIED)
    figure = new_figure(figsize=(18, 4), layout="constrained")
    panels = figure.subplots(len(settings), len(PICTURES))
    for line, (name, setting) in zip(panels, settings.items(), strict=True):
        images = get(setting=setting)["images"]
        for panel, group in zip(line, PICTURES, strict=True):
            four = images[group * GROUP : (group + 1) * GROUP].transpose(2, 0, 3, 1)
            panel.imshow(four.reshape(four.shape[0], -1, 3))
            panel.set_xticks([])
            panel.set_yticks([])
        line[0].set_ylabel(textwrap.fill(name, 14), fontsize=9)
    for panel, group in zip(panels[0], PICTURES, strict=True):
        panel.set_title(textwrap.fill("; ".join(PROMPTS[group * GROUP : (group + 1) * GROUP]), 60), fontsize=8)
    write_bytes(path, lambda file: figure.savefig(file, format="png", dpi=100))


if __name__ == "__main__":
    main()
