"""Compare sharing, skipping and a guidance interval, alone and together, with independent sampling.

    python benchmarks/together.py --out docs/results/together      # an hour on two cores; continues where it stopped

The prompts are templates for the embedded model: 16 subjects in four styles each, in groups of four (64 prompts), with
two sets of seeds. Metrics of a setting are rows and seconds per image, alignment with its interval, Frechet distance to
independent sampling in all steps from other seeds (in place of real images), and diversity in groups. The settings are
independent sampling in any number of steps (the most important alternative), and sharing, skipping and the interval,
alone and together. Writes `table.md`, `curves.png` and `points.jsonl`.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cotrunk import Batching, Plan, Skipping, generate, mini
from cotrunk.evaluation import metrics
from cotrunk.evaluation.emoji import EmojiAlignment
from cotrunk.evaluation.networks import EfficientNetLite0
from cotrunk.files import read_lines, write_bytes, write_text
from cotrunk.pipelines.identity import weights_digest
from cotrunk.pipelines.schedulers import set_scheduler
from cotrunk.planning.tree import flat_tree
from cotrunk.plotting import new_figure

STEPS, GUIDANCE, SEEDS = 50, 5.0, (0, 1)
STYLES = ("noto", "twemoji", "flat", "glossy")
SUBJECTS = (
    "red apple", "owl", "pizza", "sunflower", "rocket", "guitar", "snowman", "cat", "fire engine", "house", "bicycle",
    "crown", "fish", "cactus", "teddy bear", "umbrella",
)  # fmt: skip
PROMPTS = [f"{subject}, {style} style" for subject in SUBJECTS for style in STYLES]
GROUPS = [list(range(start, start + 4)) for start in range(0, len(PROMPTS), 4)]


@dataclass(frozen=True)
class Setting:
    steps: int = STEPS
    share: float = 0.0
    tolerance: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def family(self) -> str:
        parts = [f"shared {self.share:.0%}"] if self.share else []
        parts += ["skipping"] if self.tolerance is not None else []
        parts += ["interval"] if self.interval is not None else []
        return " + ".join(parts) or "independent"


def settings() -> list[Setting]:
    interval, tolerances = (0.1, 0.8), (0.006, 0.011, 0.02, 0.035, 0.06)
    found = [Setting(steps) for steps in (50, 30, 20, 15, 12, 10, 8, 6, 5, 4, 3)]
    found += [Setting(share=share) for share in (0.2, 0.3, 0.4)]
    found += [Setting(tolerance=tolerance) for tolerance in tolerances]
    found += [Setting(interval=interval)]
    found += [Setting(share=0.3, tolerance=tolerance) for tolerance in tolerances]
    found += [Setting(share=0.3, tolerance=tolerance, interval=interval) for tolerance in tolerances]
    found += [Setting(steps, 0.3) for steps in (20, 12, 8, 6, 4)]
    return found


def plan(setting: Setting, seed: int, timesteps: int) -> Plan:
    """Return a plan with fixed groups of four. Without sharing, each image has its own noise."""
    stop, trees, seeds = int(setting.share * timesteps + 1e-9), [], []
    for number, group in enumerate(GROUPS):
        trees += flat_tree(group, stop, timesteps)
        seeds += [10_000 * seed + 10 * number + (0 if stop else member) for member in range(len(group))]
    return Plan(tuple(PROMPTS), tuple(seeds), tuple(trees), setting.steps, timesteps)


def draw(pipe: Any, setting: Setting, seed: int) -> tuple[torch.Tensor, float, float]:
    """Generate images (n, 3, h, w) in [0, 1]; return them with rows and seconds per image."""
    result = generate(
        pipe,
        plan=plan(setting, seed, setting.steps),
        num_inference_steps=setting.steps,
        guidance_scale=GUIDANCE,
        skipping=None if setting.tolerance is None else Skipping(tolerance=setting.tolerance),
        guidance_interval=setting.interval,
        batching=Batching(len(PROMPTS)),
        output_type="pt",
    )
    images = result.images if isinstance(result.images, torch.Tensor) else torch.stack(list(result.images))
    return images.float().cpu(), result.cost.used / len(PROMPTS), result.seconds["denoise"] / len(PROMPTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scheduler", default="ddim")
    parser.add_argument("--no-clock", action="store_true", help="do not report times")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)
    pipe = mini.load()
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, args.scheduler)
    network = EfficientNetLite0()
    aligner = EmojiAlignment(network)
    texts = aligner.text_vectors(PROMPTS).repeat(len(SEEDS), 1)
    # images of a group from all seeds belong together
    groups = [[run * len(PROMPTS) + image for run in range(len(SEEDS)) for image in group] for group in GROUPS]
    draw(pipe, Setting(2), 0)  # warm-up
    reference = network.features(torch.cat([draw(pipe, Setting(), seed + 100)[0] for seed in SEEDS]))
    first: np.ndarray | None = None
    file = args.out / "points.jsonl"
    points = read_lines(file) if file.exists() else []
    own = {"scheduler": args.scheduler, "weights": weights_digest(pipe.unet)}
    for setting in settings():
        key = json.loads(json.dumps(asdict(setting) | own | {"family": setting.family}))
        known = next((point for point in points if key.items() <= point.items()), None)
        if known is not None and first is not None:
            continue
        made = [draw(pipe, setting, seed) for seed in SEEDS]
        images = torch.cat([images for images, _, _ in made])
        aligned = metrics.alignment(aligner.image_vectors(images), texts)
        first = aligned if first is None else first
        run_groups = [[run * len(PROMPTS) + image for image in group] for run in range(len(SEEDS)) for group in GROUPS]
        figures = {
            "alignment": metrics.mean(aligned, groups),
            "behind": metrics.difference(first, aligned, groups),
            "frechet": metrics.frechet(network.features(images), reference, groups),
            "diversity": metrics.mean(metrics.diversity(network, images, run_groups)),
        }
        point = key | {"rows": float(np.mean([rows for _, rows, _ in made]))}
        seconds = float(np.mean([seconds for _, _, seconds in made]))
        point |= {"seconds": None if args.no_clock else seconds}
        point |= {name: asdict(figure) for name, figure in figures.items()}
        if known is None:
            points.append(point)
            with file.open("a") as log:
                log.write(json.dumps(point) + "\n")
        print(f"{setting}: {point['rows']:.1f} rows, alignment {figures['alignment']}", flush=True)
        shown = [point for point in points if own.items() <= point.items()]  # others stay in the file
        write_text(args.out / "table.md", table(shown))
        plot(shown, args.out / "curves.png")


def table(points: list[dict[str, Any]]) -> str:
    full = points[0]
    heads = ["setting", "steps", "tolerance", "rows", "fewer", "seconds", "alignment", "behind", "Frechet", "diversity"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * 1 + "|---:" * (len(heads) - 1) + "|"]
    for p in points:
        shown = [str(metrics.Figure(**p[name])) for name in ("alignment", "behind", "frechet", "diversity")]
        tolerance = "-" if p["tolerance"] is None else f"{p['tolerance']:g}"
        seconds = "-" if p["seconds"] is None else f"{p['seconds']:.3f}"
        cells = [p["family"], str(p["steps"]), tolerance, f"{p['rows']:.1f}", f"{full['rows'] / p['rows']:.1f} x"]
        lines.append("| " + " | ".join([*cells, seconds, *shown]) + " |")
    return "\n".join(lines) + "\n"


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """Intervals are drawn of differences alone: those of values are as wide as the prompts differ, for all alike."""
    titles = {
        "behind": "alignment behind 50 independent steps (lower)",
        "frechet": "Frechet distance (lower)",
        "diversity": "diversity in groups (higher)",
    }
    figure = new_figure(figsize=(15, 5.2), layout="constrained")
    families = list(dict.fromkeys(_family(point) for point in points))
    for panel, (measure, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for number, family in enumerate(families):
            own = sorted((p for p in points if _family(p) == family), key=lambda p: p["rows"])
            rows, values = [p["rows"] for p in own], [p[measure]["value"] for p in own]
            weight = 2.6 if family == "independent" else 1.3
            panel.plot(rows, values, "o-", ms=4, lw=weight, color=f"C{number}", label=family)
            if measure == "behind" and family != "independent":
                ends = [[abs(p[measure][end] - p[measure]["value"]) for p in own] for end in ("low", "high")]
                panel.errorbar(rows, values, ends, fmt="none", color=f"C{number}", alpha=0.35, lw=1)
        panel.set_xscale("log")
        panel.set_xlabel("denoiser rows per image")
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.25)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    write_bytes(path, lambda file: figure.savefig(file, format="png", dpi=100))


def _family(point: dict[str, Any]) -> str:
    return point["family"]


if __name__ == "__main__":
    main()
