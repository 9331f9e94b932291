"""Measure skipping: the distance of images from those of a full run, over denoiser rows and time.

    python benchmarks/skipping.py --out docs/results/skipping           # hours on two cores; continues where it stopped
    python benchmarks/skipping.py --steps 50 --schedulers ddim --families "plain*" error --out /tmp/few

The alternatives use an embedded model with the same prompts and seeds: the plain solver with fewer steps (the most
important one); one evaluation in k with the output reused or extrapolated; SADA's rule as published and as in its code.
Those of `rivals.py` skip parts of every evaluation and save only time, not rows: DeepCache and ToMe (if their packages
are installed) on a UNet, the caches of diffusers on a transformer.

Metrics, compared with the same images in all steps: PSNR, a perceptual distance, and a Frechet distance in the features
of EfficientNet-Lite0, relative to the distance between two sets of images from different seeds.
Every point is written to `points.jsonl` at once and not computed again. `table.md` and one figure per scheduler and
number of steps are written from it, with one folder per model.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rivals import deep_cache, first_block_cache, mag_cache, merged_tokens, taylor_seer

from cotrunk import Skipping, generate
from cotrunk.evaluation.metrics import frechet_distance
from cotrunk.evaluation.networks import EfficientNetLite0
from cotrunk.files import read_lines, write_bytes, write_text
from cotrunk.pipelines.compatibility import denoisers_of
from cotrunk.pipelines.identity import weights_digest
from cotrunk.pipelines.loading import load_pipeline
from cotrunk.pipelines.schedulers import set_scheduler

TOLERANCES = (0.03, 0.045, 0.012, 0.07, 0.02, 0.11, 0.006)  # the most interesting first
STYLES = ("noto", "twemoji", "flat", "glossy")
SUBJECTS = (
    "red apple", "owl", "pizza", "sunflower", "rocket", "guitar", "snowman", "cat", "fire engine", "house", "bicycle",
    "crown", "fish", "cactus", "teddy bear", "umbrella", "tiger", "penguin", "birthday cake", "sailboat", "mushroom",
    "rose", "hamburger", "turtle", "airplane", "castle", "banana", "dog", "horse", "elephant", "frog", "bee",
    "butterfly", "octopus", "whale", "dolphin", "strawberry", "lemon", "carrot", "bread", "cheese", "ice cream",
    "doughnut", "cookie", "bus", "taxi", "tractor", "train", "helicopter", "mountain", "volcano", "rainbow",
    "full moon", "star", "fire", "red heart", "ghost", "robot", "alien", "skull", "drum", "trumpet", "violin", "camera",
)  # fmt: skip
PROMPTS = [f"{subject}, {style} style" for style in STYLES for subject in SUBJECTS]


@dataclass(frozen=True)
class Arm:
    """One way to generate the images.

    Attributes:
        family: name of its curve in the figure.
        label: name of its point on the curve.
        steps: number of solver steps; None for the full number.
        skipping: for `generate`.
        patched: context manager that changes the pipeline.
    """

    family: str
    label: str
    steps: int | None = None
    skipping: Skipping | None = None
    patched: Callable[[Any], Any] = field(default=nullcontext)

    @property
    def is_partial(self) -> bool:
        """Return whether it skips parts of an evaluation, so that only its time shows the saving."""
        return self.patched is not nullcontext or bool(self.skipping and self.skipping.tokens)


def arms(steps: int, guidance: float, is_unet: bool) -> Iterator[Arm]:
    fewer = sorted({max(2, round(steps * part)) for part in (0.5, 0.4, 0.33, 0.28, 0.24, 0.2)}, reverse=True)
    for few in fewer:
        yield Arm("plain, fewer steps", f"{few} steps", steps=few)
    for prediction, every in itertools.product(("reuse", "linear", "quadratic"), (2, 3, 4, 5, 6)):
        rule = Skipping(rule="fixed", every=every, prediction=prediction, correct=False)
        yield Arm(f"one in k, {prediction}", f"k = {every}", skipping=rule)
    for every in (2, 3, 4, 5, 6):
        yield Arm(
            "one in k, linear, corrected",
            f"k = {every}",
            skipping=Skipping(rule="fixed", every=every, prediction="linear"),
        )
    for rule in ("paper", "released"):
        yield Arm(f"SADA, {rule}", rule, skipping=Skipping(rule=rule))
    for tolerance in TOLERANCES:
        yield Arm("error", f"tolerance {tolerance:g}", skipping=Skipping(tolerance))
    for tolerance in TOLERANCES:
        uncorrected = Skipping(tolerance, correct=False)
        yield Arm("error, uncorrected", f"tolerance {tolerance:g}", skipping=uncorrected)
    for tolerance, tokens in itertools.product(TOLERANCES, (0.75, 0.5)):
        some = Skipping(tolerance, tokens=tokens)
        yield Arm(f"error, {tokens:.0%} of the tokens", f"tolerance {tolerance:g}", skipping=some)
    yield from part_arms(steps, guidance, is_unet)


def part_arms(steps: int, guidance: float, is_unet: bool) -> Iterator[Arm]:
    """Yield the arms that skip parts of every evaluation."""
    if is_unet:
        for n in (2, 3, 5):
            yield Arm("DeepCache", f"interval {n}", patched=partial(deep_cache, interval=n))
        for ratio in (0.25, 0.5):
            yield Arm("ToMe", f"ratio {ratio:g}", patched=partial(merged_tokens, ratio=ratio))
        return
    for n in (2, 3, 4, 6):
        yield Arm("TaylorSeer", f"interval {n}", patched=partial(taylor_seer, interval=n))
    for threshold in (0.02, 0.05, 0.1, 0.2):
        label = f"threshold {threshold:g}"
        yield Arm("FirstBlockCache", label, patched=partial(first_block_cache, threshold=threshold))

        def mag(pipe: Any, threshold: float = threshold) -> Any:
            one = Arm("calibration", "")
            return mag_cache(pipe, threshold, steps, lambda: generated(pipe, PROMPTS[:4], steps, guidance, one))

        yield Arm("MagCache", label, patched=mag)


def generated(
    pipe: Any, prompts: list[str], steps: int, guidance: float, arm: Arm, seed: int = 0
) -> tuple[torch.Tensor, float, float]:
    """Generate images (n, 3, h, w) in [0, 1]; return them with denoiser rows and seconds per image."""
    with arm.patched(pipe):
        result = generate(
            pipe,
            prompts,
            sharing=None,
            seed=[seed + i for i in range(len(prompts))],
            skipping=arm.skipping,
            num_inference_steps=arm.steps or steps,
            guidance_scale=guidance,
            output_type="pt",
        )
    images = result.images if isinstance(result.images, torch.Tensor) else torch.stack(list(result.images))
    return images.float(), result.cost.used / len(prompts), result.seconds["denoise"] / len(prompts)


@dataclass
class Reference:
    """The images in all steps, and what is needed to compare others with them."""

    network: EfficientNetLite0
    images: torch.Tensor
    features: torch.Tensor
    seconds: float  # of denoising per image
    apart: float  # Frechet distance between these and the images from other seeds

    @classmethod
    def of(cls, pipe: Any, network: EfficientNetLite0, prompts: list[str], steps: int, guidance: float) -> "Reference":
        images, _, _ = generated(pipe, prompts, steps, guidance, Arm("reference", ""))
        # timed here: the first run of a process is slower
        others, _, seconds = generated(pipe, prompts, steps, guidance, Arm("other seeds", ""), seed=100_000)
        features = network.features(images)
        return cls(network, images, features, seconds, frechet_distance(network.features(others), features))

    def compared(self, images: torch.Tensor) -> dict[str, Any]:
        decibels = -10 * torch.log10((images - self.images).square().mean(dim=(1, 2, 3)).clamp(min=1e-10))
        pairs = torch.arange(2 * len(images)).view(2, -1).T  # each image with its reference
        return {
            "psnr": float(decibels.mean()),
            "psnrs": [round(value, 2) for value in decibels.tolist()],
            "perceptual": float(self.network.distances(torch.cat([images, self.images]), pairs).mean()),
            "frechet": frechet_distance(self.network.features(images), self.features) / self.apart,
        }


MEASURES = {
    "psnr": "PSNR to the full run, dB (higher is better)",
    "perceptual": f"perceptual distance, {EfficientNetLite0.name} (lower)",
    "frechet": f"Frechet distance / other seeds', {EfficientNetLite0.name} (lower)",
}


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """Plot one scheduler and number of steps, with one panel per metric and one line per family."""
    steps = points[0]["steps"]
    # without the full run, and points equal to it
    points = [p for p in points if p["psnr"] < 99 and (p["rows"] is None or p["rows"] < 2 * steps)]
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(5.6 * len(MEASURES), 4.0), layout="constrained")
    families = list(dict.fromkeys(point["family"] for point in points))
    for axis, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        for number, family in enumerate(families):
            line = sorted((p for p in points if p["family"] == family), key=lambda p: (p["cost"], p[measure]))
            weight = 2.4 if family in ("error", "plain, fewer steps") else 1.0
            costs, values = [p["cost"] for p in line], [p[measure] for p in line]
            axis.plot(costs, values, "o-", markersize=3, linewidth=weight, color=f"C{number % 10}", label=family)
        axis.set_xlabel(f"rows per image ({2 * steps} in full); for parts of a denoiser, time in rows")
        axis.set_title(f"{points[0]['scheduler']}, {steps} steps: {label}", fontsize=9)
        axis.set_yscale("linear" if measure == "psnr" else "log")
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=7)
    write_bytes(path, partial(figure.savefig, format="png", dpi=90))
    plt.close(figure)


class Points:
    """The measured points, each written to `points.jsonl` in the folder `out` at once; those of earlier runs count."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.file = out / "points.jsonl"
        self.all: list[dict[str, Any]] = read_lines(self.file) if self.file.exists() else []

    def has(self, key: dict[str, Any]) -> bool:
        """Return whether a point with these entries was measured."""
        return any(key.items() <= point.items() for point in self.all)

    def add(self, point: dict[str, Any]) -> None:
        self.all.append(point)
        with self.file.open("a") as log:
            log.write(json.dumps(point) + "\n")
        print(json.dumps(point), flush=True)


SENSITIVE = 35.0  # dB; an image below it with half of the steps counts as sensitive


def tail(point: dict[str, Any], points: list[dict[str, Any]]) -> list[str]:
    """Return the cells about single images: PSNR of the worst twentieth (mean) and of the worst image; images that the
    plain solver draws closer to the full run with at least as many rows; the worst twentieth without sensitive images.
    """
    if "psnrs" not in point:
        return ["-"] * 4
    same = [p for p in points if p["family"].startswith("plain") and "psnrs" in p]
    same = [p for p in same if all(p[name] == point[name] for name in ("scheduler", "steps", "images"))]
    half = next((p for p in same if p["label"] == f"{point['steps'] // 2} steps"), None)
    above = [p for p in same if p["rows"] >= (point["rows"] or point["cost"])]
    values, equal = point["psnrs"], min(above, key=lambda p: p["rows"]) if above else None
    cells = [f"{worst_twentieth(values):.1f}", f"{min(values):.1f}"]
    if equal is None or point["family"].startswith("plain"):
        cells.append("-")
    else:
        worse = sum(own < plain for own, plain in zip(values, equal["psnrs"], strict=True))
        cells.append(f"{worse} of {len(values)} ({equal['label']})")
    calm = [] if half is None else [own for own, plain in zip(values, half["psnrs"], strict=True) if plain >= SENSITIVE]
    return [*cells, f"{worst_twentieth(calm):.1f} ({len(values) - len(calm)} sensitive)" if calm else "-"]


def worst_twentieth(values: list[float]) -> float:
    """Return the mean of the lowest twentieth of the values."""
    lowest = sorted(values)[: max(1, round(len(values) / 20))]
    return sum(lowest) / len(lowest)


def table(points: list[dict[str, Any]]) -> str:
    lines = [
        "| scheduler | steps | images | family | setting | rows | time saved / rows saved | PSNR dB | "
        "worst twentieth | worst image | worse than plain | worst twentieth, others | perceptual | Frechet % |",
        "|---|---:|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for p in sorted(
        points, key=lambda p: (p["scheduler"], -p["steps"], p["family"] != "error", p["family"], -p["cost"])
    ):
        rows = "-" if p["rows"] is None else f"{p['rows']:.1f}"
        ratio = "-" if p["rows"] is None or p["ratio"] is None else f"{p['ratio']:.2f}"
        lines.append(
            f"| {p['scheduler']} | {p['steps']} | {p['images']} | {p['family']} | {p['label']} | {rows} | {ratio} | "
            f"{p['psnr']:.1f} | {' | '.join(tail(p, points))} | {p['perceptual']:.4f} | {100 * p['frechet']:.1f} |"
        )
    some = points[0]
    lines += ["", f'{some["model"]}, guidance {some["guidance"]:g}. "Worse than plain": images that the plain solver']
    lines[-1] += ' draws closer to the full run, in the steps in brackets, which take at least as many rows. "Others":'
    lines[-1] += (
        f" without sensitive images, which half of the steps draw below {SENSITIVE:g} dB. Perceptual and Frechet"
    )
    lines[-1] += f" distances in the features of {EfficientNetLite0.name}."
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=len(PROMPTS))
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 25, 15])
    parser.add_argument("--schedulers", nargs="+", default=["ddim", "euler", "dpm++2m"])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--guidance", type=float, default=5.0, help="3 suits mini-dit")
    parser.add_argument("--no-clock", action="store_true", help="do not report times")
    parser.add_argument(
        "--families",
        nargs="+",
        default=["*"],
        help="names, or names and points as in 'error, tolerance 0.03'; * stands for any text",
    )
    args = parser.parse_args()
    points = Points(args.out)
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)
    pipe, network = load_pipeline(args.model, "cpu"), EfficientNetLite0()
    prompts = PROMPTS[: args.images]
    (denoiser,) = denoisers_of(pipe)
    weights = weights_digest(getattr(pipe, denoiser))
    run = {"model": args.model, "weights": weights, "guidance": args.guidance}
    for steps, scheduler in itertools.product(args.steps, args.schedulers):
        set_scheduler(pipe, scheduler)
        reference = None
        for arm in arms(steps, args.guidance, denoiser == "unet"):
            if args.no_clock and arm.is_partial:
                continue
            names = (arm.family, f"{arm.family}, {arm.label}")
            if not any(fnmatchcase(name, wanted) for name in names for wanted in args.families):
                continue
            key = run | {
                "images": len(prompts),
                "scheduler": scheduler,
                "steps": steps,
                "family": arm.family,
                "label": arm.label,
            }
            if points.has(key):
                continue
            reference = reference or Reference.of(pipe, network, prompts, steps, args.guidance)
            try:
                images, rows, seconds = generated(pipe, prompts, steps, args.guidance, arm)
            except ImportError as error:
                print(f"{arm.family} is not measured: {error}", flush=True)
                continue
            whole = 2.0 * steps
            in_time = whole * seconds / reference.seconds
            saved = 1 - rows / whole
            point = key | reference.compared(images) | {"seconds": seconds, "full_seconds": reference.seconds}
            point |= {"rows": None if arm.is_partial else rows, "cost": in_time if arm.is_partial else rows}
            ratio = (1 - seconds / reference.seconds) / saved if saved > 0.01 else 1.0
            point["ratio"] = None if args.no_clock else ratio
            points.add(point)
        shown = [point for point in points.all if run.items() <= point.items()]
        if shown:
            write_text(args.out / "table.md", table(shown))
            own = [point for point in shown if (point["scheduler"], point["steps"]) == (scheduler, steps)]
            own = [point for point in own if point["images"] == len(prompts)]
            if own:
                plot(own, args.out / f"{scheduler.replace('+', 'p')}-{steps}.png")


if __name__ == "__main__":
    main()
