"""Train and evaluate for trunks as they are sampled with each image's own noise and without guidance, on both models.

    python own.py --model mini-dit --bfloat16      # after the images and groups of run.py; continues where it stopped
    python own.py --model mini --bfloat16

Three fine-tunes with the same images, steps and learning rate: `standard` (equation 2), `sage-trunk` (equation 3 for
published sampling, as in run.py) and `own` (the same with `--noise own`). Each is sampled as it was trained for, and
the pre-trained model and `standard` in both ways, on held-out groups that `trials.py` did not use to choose lambda_1.
With `--taught`, the last two are also trained with the pre-trained model as teacher. The most important cells come
first, and the tables are written again after every cell, so that an interrupted evaluation can be read.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from run import HERE
from unchosen import CHOSEN

from cotrunk.evaluation.experiment import Experiment
from cotrunk.evaluation.figures import write_curves, write_grid
from cotrunk.evaluation.measuring import Measures, Result
from cotrunk.evaluation.metric_networks import load_metric_networks
from cotrunk.evaluation.networks import MetricNetworks
from cotrunk.evaluation.observation import SHOWN, Cell
from cotrunk.evaluation.tables import (
    Comparison,
    as_dict,
    describe_networks,
    short,
    write_comparisons,
    write_json,
    write_table,
)
from cotrunk.groups.dataset import disjoint, images_of, read_groups
from cotrunk.pipelines.image_size import image_size
from cotrunk.pipelines.loading import load_pipeline

TRUNK = ("--branch-noise", "trunk", "--shared-weight", "0")
OBJECTIVES = {"own": (*TRUNK, "--noise", "own"), "standard": ("--objective", "standard"), "sage-trunk": TRUNK}
TAUGHT = {f"{name}-taught": (*OBJECTIVES[name], "--teacher", "pre-trained") for name in ("sage-trunk", "own")}
# (steps, guidance) of the evaluation
SAMPLING = {"mini": (30, 5.0), "mini-dit": (20, 3.0)}
OWN = {"noise": "own", "trunk_guidance": 0.0}
# the models under each way of sampling trunks, the most important first
PAIRS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("own", OWN),
    ("own-taught", OWN),
    ("sage-trunk-taught", {}),
    ("sage-trunk", {}),
    ("pre-trained", OWN),
    ("standard", OWN),
    ("standard", {}),
    ("pre-trained", {}),
)
MAIN = (PAIRS[0], PAIRS[4], PAIRS[6], PAIRS[7])  # those that are sampled at all shares


def train(model: str, loras: dict[str, Path], groups: Path, learning_rate: float, bfloat16: bool) -> None:
    """Train what is not trained yet, into these folders."""
    common = ["--model", model, "--steps", "250", "--batch", "8", "--rank", "32", "--layers", "all", "--ema", "0.99"]
    common += ["--learning-rate", f"{learning_rate:g}", "--checkpoint-every", "50"]
    common += ["--mixed-precision", "bf16"] if bfloat16 else []
    for name, folder in loras.items():
        folder.mkdir(parents=True, exist_ok=True)
        for encoded in folder.parent.glob("*/encoded-*"):  # the same images and captions are encoded only once
            if not (folder / encoded.name).exists():
                (folder / encoded.name).symlink_to(encoded.resolve())
        words = ["train", str(groups), "--out", str(folder), *common, *{**OBJECTIVES, **TAUGHT}[name]]
        print("cotrunk", *words, flush=True)
        if subprocess.run([sys.executable, "-m", "cotrunk", *words]).returncode:
            raise SystemExit(f"The training of {name} failed.")


def cells(experiment: Experiment, steps: int, shares: list[float], more_shares: list[float]) -> Iterator[Cell]:
    """Yield all cells, the most important shares first, with independent sampling at the cost of the first cell."""
    for number, share in enumerate(shares):
        yield from (Cell(model, share, steps, **trunk) for model, trunk in PAIRS)
        if not number:
            yield from (Cell(model, 0.0, steps) for model in ("pre-trained", "own"))
            yield experiment.equal_cost(Cell("pre-trained", share, steps, **OWN))
    for share in more_shares:
        yield from (Cell(model, share, steps, **trunk) for model, trunk in MAIN)


def write(measures: Measures, done: list[Cell], seeds: int, networks: MetricNetworks, out: Path) -> None:
    """Write the tables, figures and numbers of the cells that are observed."""

    def runs(cell: Cell) -> list[Cell]:
        return [Cell(cell.model, cell.share, cell.steps, seed, *cell.trunk) for seed in range(seeds)]

    experiment = measures.experiment
    found = {cell: measures.of(runs(cell)) for cell in sorted(done, key=lambda cell: cell.share)}
    compared = []
    for this in [cell for cell in done if cell.share]:
        alone = [other for other in done if not other.share and other.model == "pre-trained"]
        others = [*alone, this.alone]
        others += [other for other in done[done.index(this) + 1 :] if other.share == this.share]
        for other in dict.fromkeys(other for other in others if other in found):
            saved = 1 - found[this].rows / found[other].rows
            compared.append(Comparison(this, other, saved, measures.compare(runs(this), runs(other))))
    out.mkdir(parents=True, exist_ok=True)
    write_table(list(found.values()), networks, out)
    write_comparisons(compared, networks, out)
    write_json(
        {
            "networks": describe_networks(networks),
            "groups": len(experiment.groups),
            "images": len(experiment.prompts) * seeds,
            "cells": [as_dict(result) for result in found.values()],
            "differences": [comparison.as_dict() for comparison in compared],
        },
        out / "results.json",
    )
    lines: dict[str, list[Result]] = {}
    for cell, result in found.items():
        if cell.share:
            lines.setdefault(short(cell), []).append(result)
    # a line needs the same shares as the others
    shares = sorted({cell.share for cell in found if cell.share})
    lines = {name: own for name, own in lines.items() if len(own) == len(shares)}
    if len(shares) > 1:
        label = "percent of the steps shared"
        write_curves(lines, [100 * share for share in shares], out, "figure4", label=label)
    first = [cell for cell in found if cell.steps == done[0].steps and cell.share in (0.0, done[0].share)]
    # short titles: a column is as wide as an image
    kinds = {("common", 1.0): "", ("own", 0.0): " (own)"}
    titles = {cell: f"{cell.model}{kinds[cell.trunk] if cell.share else ', alone'}" for cell in first}
    shown = {title: experiment.observe(cell).shown for cell, title in titles.items()}
    write_grid(shown, experiment.prompts[:SHOWN], out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SAMPLING), default="mini-dit")
    parser.add_argument("--out", type=Path, default=HERE / "build")
    parser.add_argument("--only", choices=["train", "evaluate"])
    parser.add_argument("--taught", action="store_true", help="two more fine-tunes, with a pre-trained teacher")
    parser.add_argument("--bfloat16", action="store_true", help="as in run.py")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--groups", type=int, default=100, help="number of held-out groups")
    parser.add_argument("--seeds", type=int, default=2, help="runs of every cell")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.4, 0.3], help="the most important first")
    parser.add_argument("--more-shares", type=float, nargs="*", default=[0.2, 0.5], help="only for the main schemes")
    parser.add_argument("--results", type=Path, default=HERE.parent.parent / "docs" / "results")
    args = parser.parse_args()
    names = [*OBJECTIVES, *(TAUGHT if args.taught else ())]
    loras = {name: args.out / args.model / f"lora-train-{name}" for name in names}
    if args.only != "evaluate":
        train(args.model, loras, args.out / "train-groups", args.learning_rate, args.bfloat16)
    if args.only == "train":
        return
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)
    groups = disjoint(read_groups(args.out / "test-groups")[0], seed=0)[CHOSEN:][: args.groups]
    pipe = load_pipeline(args.model, "cpu", "bfloat16" if args.bfloat16 else "float32")
    networks = load_metric_networks("lite0", "lite0", "emoji", "cpu")
    steps, guidance = SAMPLING[args.model]
    captions = [[pair.caption for pair in group] for group in groups]
    models = {
        "pre-trained": None,
        **{name: folder for name, folder in loras.items() if any(folder.glob("*.safetensors"))},
    }
    folder = args.out / args.model / "results"
    experiment = Experiment(pipe, captions, models, networks, folder, guidance=guidance)
    measures = Measures(experiment, *images_of(groups, *image_size(pipe, None, None)))
    results = args.results / {"mini": "sage-mini/own", "mini-dit": "sage-mini-dit"}[args.model]
    print(f"{len(groups)} groups, {len(experiment.prompts) * args.seeds} images per cell", flush=True)
    done: list[Cell] = []
    for cell in cells(experiment, steps, args.shares, args.more_shares):
        if cell.model not in models:
            continue
        for seed in range(args.seeds):
            experiment.observe(Cell(cell.model, cell.share, cell.steps, seed, *cell.trunk))
        done.append(cell)
        result = measures.of(
            [Cell(cell.model, cell.share, cell.steps, seed, *cell.trunk) for seed in range(args.seeds)]
        )
        print(short(cell), cell.share, f"{result.rows:.1f} rows", result.figures, flush=True)
        write(measures, done, args.seeds, networks, results)


if __name__ == "__main__":
    main()
