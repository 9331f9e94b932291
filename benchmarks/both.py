"""Measure what sharing saves in addition to skipping, over the number of steps.

    python benchmarks/both.py --out docs/results/both      # a quarter of an hour on one core; it continues

Both use the same redundancy: early steps differ little from each other, and little between similar prompts. So what
sharing saves alone is not what it saves together with skipping. Each share is generated with every tolerance, and
compared with the run of the same share in which nothing is skipped. A tolerance means another accuracy where images
share, so the table gives the rows that reach an equal PSNR, by interpolation.

32 prompts in groups of four: half are looks of one thing, half are different things. Embedded models with their own
schedulers. Writes points.jsonl and table.md.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_sampling import GUIDANCE
from similar_prompts import PROMPTS

from cotrunk import Sharing, Skipping
from cotrunk.files import read_lines, write_text
from cotrunk.generation import prepare
from cotrunk.pipelines.loading import load_pipeline
from cotrunk.settings import Settings

CHOSEN = [*PROMPTS[:16], *PROMPTS[-16:]]
STEPS = (20, 30, 10, 50, 15)  # the most interesting first
SHARES = (0.0, 0.2, 0.4)
TOLERANCES = (0.03, 0.06, 0.015, 0.12)
EQUAL = 46.0  # dB at which rows are compared


def generated(pipe: Any, guidance: float, steps: int, share: float, tolerance: float) -> tuple[float, np.ndarray]:
    """Return the rows per image and the images, (n, height, width, 3)."""
    sharing = Sharing(share=share) if share else None
    skipping = Skipping(tolerance) if tolerance else None
    settings = Settings(steps=steps, sharing=sharing, skipping=skipping)
    run = prepare(pipe, CHOSEN, settings, seed=0, guidance_scale=guidance)
    images, rows = dict[int, np.ndarray](), 0
    for batch in run.batches():
        rows += batch.cost.used
        made = (np.asarray(image, dtype=np.float32) for image in batch.output.images)
        images |= dict(zip(batch.images, made, strict=True))
    return rows / len(CHOSEN), np.stack([images[i] for i in range(len(CHOSEN))])


def points_of(pipe: Any, guidance: float, steps: int, share: float) -> list[dict[str, Any]]:
    """Return a point per tolerance, and one in which nothing is skipped."""
    whole, full = generated(pipe, guidance, steps, share, 0.0)
    found: list[dict[str, Any]] = [{"tolerance": 0.0, "rows": whole}]
    for tolerance in TOLERANCES:
        rows, images = generated(pipe, guidance, steps, share, tolerance)
        errors = np.maximum(((images - full) ** 2).mean(axis=(1, 2, 3)), 0.01)
        psnrs = np.sort(10 * np.log10(255**2 / errors))
        worst = float(psnrs[: max(1, round(len(psnrs) / 20))].mean())
        found.append({"tolerance": tolerance, "rows": rows, "psnr": float(psnrs.mean()), "worst": worst})
    return found


def rows_at(points: list[dict[str, Any]], psnr: float) -> float:
    """Return the rows that reach a mean PSNR, by interpolation between tolerances; NaN outside of them."""
    own = sorted((point["psnr"], point["rows"]) for point in points if point["tolerance"])
    levels, rows = zip(*own, strict=True)
    return float(np.interp(psnr, levels, rows, left=np.nan, right=np.nan))


def table(points: list[dict[str, Any]]) -> str:
    """Return a line per model, number of steps and share."""
    lines = [
        f"Rows per image of {len(CHOSEN)} prompts. PSNR to the run of the same share in which nothing is skipped, mean "
        "and worst twentieth. Changes are against skipping alone.",
        "",
        f"| model | steps | share | nothing skipped | tolerance 0.03 | 0.06 | rows at {EQUAL:g} dB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    key = lambda point: (point["model"], point["steps"], point["share"])  # noqa: E731
    alone = dict[tuple[str, int], list[float]]()
    for (model, steps, share), own in itertools.groupby(sorted(points, key=key), key):
        found = list(own)
        by = {point["tolerance"]: point for point in found}
        rows = [by[0.0]["rows"], by[0.03]["rows"], by[0.06]["rows"], rows_at(found, EQUAL)]
        base = alone.setdefault((model, steps), rows)
        cells = [f"{value:.1f} ({value / other - 1:+.0%})" for value, other in zip(rows, base, strict=True)]
        if share == 0:
            cells = [f"{value:.1f}" for value in rows]
        for place, tolerance in ((1, 0.03), (2, 0.06)):
            cells[place] += f": {by[tolerance]['psnr']:.1f}, {by[tolerance]['worst']:.1f} dB"
        cells = [cell.replace("nan (+nan%)", "-").replace("nan", "-") for cell in cells]
        lines.append(f"| {model} | {steps} | {share:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=GUIDANCE, default=list(GUIDANCE))
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    file = given.out / "points.jsonl"
    points = read_lines(file) if file.exists() else []
    for model in given.models:
        pipe = load_pipeline(model, "cpu")
        pipe.set_progress_bar_config(disable=True)
        for steps, share in itertools.product(given.steps, SHARES):
            head = {"model": model, "steps": steps, "share": share}
            if any(head.items() <= point.items() for point in points):
                continue
            own = [head | point for point in points_of(pipe, GUIDANCE[model], steps, share)]
            points += own
            with file.open("a", encoding="utf-8") as log:
                log.writelines(json.dumps(point) + "\n" for point in own)
            print(own, flush=True)
        write_text(given.out / "table.md", table(points))


if __name__ == "__main__":
    main()
