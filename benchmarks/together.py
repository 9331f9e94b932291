"""Compare sharing, skipping and a guidance interval, together, with independent sampling at equal cost.

    python benchmarks/together.py --out docs/results/together      # 40 minutes on one core; continues where it stopped

The prompts are templates for the embedded model: 16 subjects in four styles each, in groups of four (64 prompts), with
two sets of seeds. Metrics of a setting are rows per image, alignment with its interval, Frechet distance to
independent sampling in all steps from other seeds (in place of real images), and diversity in groups. Images with
skipped steps are compared with their own full run: the same sharing and interval, and nothing skipped. The settings are
independent sampling in fewer steps, and skipping at the named fidelities and some other tolerances: alone, and with a
guidance interval in two kinds of trunks. Writes `table.md`, `curves.png` and `points.jsonl`.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import curves
import numpy as np
import torch

from cotrunk import Batching, Plan, Sharing, Skipping, generate, mini
from cotrunk.evaluation import metrics
from cotrunk.evaluation.emoji import EmojiAlignment
from cotrunk.evaluation.networks import EfficientNetLite0
from cotrunk.files import read_lines, write_text
from cotrunk.pipelines.identity import weights_digest
from cotrunk.pipelines.schedulers import set_scheduler
from cotrunk.planning.tree import flat_tree
from cotrunk.plotting import new_figure
from cotrunk.settings import FIDELITIES

STEPS, GUIDANCE, SEEDS = 50, 5.0, (0, 1)
STYLES = ("noto", "twemoji", "flat", "glossy")
SUBJECTS = (
    "red apple", "owl", "pizza", "sunflower", "rocket", "guitar", "snowman", "cat", "fire engine", "house", "bicycle",
    "crown", "fish", "cactus", "teddy bear", "umbrella",
)  # fmt: skip
PROMPTS = [f"{subject}, {style} style" for subject in SUBJECTS for style in STYLES]
GROUPS = [list(range(start, start + 4)) for start in range(0, len(PROMPTS), 4)]


SHARINGS = {
    "own noise, unguided": Sharing(share=0.2, noise="own", trunk_guidance=0.0),
    "published": Sharing.published(share=0.3),
}
TOLERANCES = (*FIDELITIES.values(), 0.045, 0.1, 0.14)  # of skipping
INTERVAL = (0.1, 0.8)
UNLIKE = 25.0  # dB: an image below this differs visibly from its own full run


@dataclass(frozen=True)
class Setting:
    """A trunk by name, or None for independent sampling."""

    steps: int = STEPS
    trunk: str | None = None
    interval: tuple[float, float] | None = None
    tolerance: float | None = None

    @property
    def family(self) -> str:
        parts = [f"{SHARINGS[self.trunk].share:.0%} shared, {self.trunk}"] if self.trunk else []
        parts += ["interval"] if self.interval is not None else []
        parts += ["skipping"] if self.tolerance is not None else []
        return " + ".join(parts) or "independent"


def settings() -> list[Setting]:
    """Return all settings, each full run before those that skip its steps."""

    def with_skipping(full: Setting) -> list[Setting]:
        return [full, *(replace(full, tolerance=tolerance) for tolerance in TOLERANCES)]

    together, published = (Setting(trunk=trunk, interval=INTERVAL) for trunk in SHARINGS)
    plain = [Setting(steps) for steps in (20, 15, 12, 10, 8, 6)]
    trunks = [replace(together, interval=None), replace(published, interval=None)]
    return [
        Setting(),
        *with_skipping(together),
        *plain,
        *with_skipping(published),
        *with_skipping(Setting())[1:],
        *trunks,
    ]


def plan(setting: Setting, seed: int) -> Plan:
    """Return a plan with fixed groups of four."""
    sharing = SHARINGS.get(setting.trunk or "")
    stop, trees, seeds = int((sharing.share if sharing else 0) * setting.steps + 1e-9), [], []
    for number, group in enumerate(GROUPS):
        trees += flat_tree(group, stop, setting.steps)
        is_common = sharing is not None and sharing.noise == "common"
        seeds += [10_000 * seed + 10 * number + (0 if is_common else member) for member in range(len(group))]
    return Plan(
        tuple(PROMPTS), tuple(seeds), tuple(trees), setting.steps, setting.steps, sharing=sharing, threshold=0.0
    )


def draw(pipe: Any, setting: Setting, seed: int) -> tuple[torch.Tensor, float]:
    """Generate images (n, 3, h, w) in [0, 1]; return them with the rows per image."""
    result = generate(
        pipe,
        plan=plan(setting, seed),
        num_inference_steps=setting.steps,
        guidance_scale=GUIDANCE,
        skipping=None if setting.tolerance is None else Skipping(tolerance=setting.tolerance),
        guidance_interval=setting.interval,
        batching=Batching(len(PROMPTS)),
        output_type="pt",
    )
    images = result.images if isinstance(result.images, torch.Tensor) else torch.stack(list(result.images))
    return images.float().cpu(), result.cost.used / len(PROMPTS)


def compared(network: EfficientNetLite0, images: torch.Tensor, full: torch.Tensor) -> dict[str, Any]:
    """Compare images with those of their own full run."""
    decibels = -10 * torch.log10((images - full).square().mean(dim=(1, 2, 3)).clamp(min=1e-10))
    pairs = torch.arange(2 * len(images)).view(2, -1).T  # each image with its full run
    distances = network.distances(torch.cat([images, full]), pairs)
    return {
        "psnrs": [round(value, 2) for value in decibels.tolist()],
        "distances": [round(value, 4) for value in distances.tolist()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scheduler", default="ddim")
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
    reference = network.features(torch.cat([draw(pipe, Setting(), seed + 100)[0] for seed in SEEDS]))
    aligned: dict[Setting, np.ndarray] = {}
    fulls: dict[Setting, torch.Tensor] = {}  # images of the full runs that skipped images are compared with
    file = args.out / "points.jsonl"
    points = read_lines(file) if file.exists() else []
    own = {"scheduler": args.scheduler, "weights": weights_digest(pipe.unet)}
    for setting in settings():
        key = json.loads(json.dumps(asdict(setting) | own | {"family": setting.family}))
        is_full = any(replace(other, tolerance=None) == setting for other in settings() if other.tolerance is not None)
        is_known = any(key.items() <= point.items() for point in points)
        if is_known and not is_full:
            continue
        made = [draw(pipe, setting, seed) for seed in SEEDS]
        images = torch.cat([images for images, _ in made])
        if is_full:
            fulls[setting] = images
        aligned[setting] = metrics.alignment(aligner.image_vectors(images), texts)
        if is_known:
            continue
        run_groups = [[run * len(PROMPTS) + image for image in group] for run in range(len(SEEDS)) for group in GROUPS]
        figures = {
            "alignment": metrics.mean(aligned[setting], groups),
            "behind": metrics.difference(aligned[Setting()], aligned[setting], groups),
            "frechet": metrics.frechet(network.features(images), reference, groups),
            "diversity": metrics.mean(metrics.diversity(network, images, run_groups)),
        }
        point = key | {"rows": float(np.mean([rows for _, rows in made]))}
        point |= {name: asdict(figure) for name, figure in figures.items()}
        if setting.tolerance is not None:
            point |= compared(network, images, fulls[replace(setting, tolerance=None)])
        elif setting.family == "independent":
            point |= compared(network, images, fulls[Setting()])
        points.append(point)
        with file.open("a") as log:
            log.write(json.dumps(point) + "\n")
        print(f"{setting}: {point['rows']:.1f} rows, alignment {figures['alignment']}", flush=True)
        shown = [point for point in points if own.items() <= point.items()]  # others stay in the file
        write_text(args.out / "table.md", table(shown))
        plot(shown, args.out / "curves.png")


def table(points: list[dict[str, Any]]) -> str:
    full = points[0]
    heads = ["setting", "steps", "tolerance", "rows", "fewer", "PSNR to its full run: mean", "worst twentieth", "worst"]
    heads += [f"below {UNLIKE:g} dB", "largest perceptual distance", "alignment", "behind", "Frechet", "diversity"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * 1 + "|---:" * (len(heads) - 1) + "|"]
    for p in points:
        tolerance = "-" if p["tolerance"] is None else f"{p['tolerance']:g}"
        cells = [p["family"], str(p["steps"]), tolerance, f"{p['rows']:.1f}", f"{full['rows'] / p['rows']:.1f} x"]
        values = np.sort(p.get("psnrs", []))
        if len(values) and values[0] < 99:
            worst = values[: max(1, len(values) // 20)].mean()
            below = f"{int((values < UNLIKE).sum())} of {len(values)}"
            cells += [f"{values.mean():.1f}", f"{worst:.1f}", f"{values[0]:.1f}", below, f"{max(p['distances']):.3f}"]
        else:
            cells += ["-"] * 5
        cells += [str(metrics.Figure(**p[name])) for name in ("alignment", "behind", "frechet", "diversity")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """Intervals are drawn of differences alone: those of values are as wide as the prompts differ, for all alike."""
    titles = {
        "behind": "alignment behind 50 independent steps (lower)",
        "frechet": "Frechet distance (lower)",
        "diversity": "diversity in groups (higher)",
    }
    figure = new_figure(figsize=(15, 5.2), layout="constrained")
    families = list(dict.fromkeys(point["family"] for point in points))
    for panel, (measure, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for number, family in enumerate(families):
            own = sorted((p for p in points if p["family"] == family), key=lambda p: p["rows"])
            intervals = "behind" if measure == "behind" and family != "independent" else None
            look = {"label": family, "color": f"C{number}", "lw": 2.4 if family == "independent" else 1.3}
            curves.draw(panel, own, measure, intervals, "o-", **look)
        curves.finish(panel, title)
    curves.write(figure, panel, path)


if __name__ == "__main__":
    main()
