"""Evaluate the fine-tunes on groups that were not used to choose between them.

    python unchosen.py --bfloat16              # after run.py

`trials.py` evaluates the first held-out groups, and its best trial became `sage-trunk` in run.py. On those groups that
choice looks better than it is. The other groups, from the same cells of run.py, show by how much. `differences.md` is
written to `--results`.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from run import HERE, OBJECTIVES

from cotrunk.evaluation.experiment import Experiment
from cotrunk.evaluation.measuring import Measures
from cotrunk.evaluation.metric_networks import load_metric_networks
from cotrunk.evaluation.networks import MetricNetworks
from cotrunk.evaluation.observation import Cell
from cotrunk.evaluation.tables import Comparison, write_comparisons
from cotrunk.groups.dataset import disjoint, images_of, read_groups
from cotrunk.pipelines.image_size import image_size
from cotrunk.pipelines.loading import load_pipeline

CHOSEN = 80  # groups that trials.py evaluates
BEST = "sage-trunk"
SHARES = (0.3, 0.4)


def measures_of(
    build: Path, loras: Mapping[str, Path | None], out: Path, dtype: str, count: int | None = None
) -> tuple[Measures, MetricNetworks]:
    """Return the measures of the first held-out groups, in the order and with the settings of run.py."""
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)
    groups = disjoint(read_groups(build / "test-groups")[0], seed=0)[:count]
    pipe, networks = load_pipeline("mini", "cpu", dtype), load_metric_networks("lite0", "lite0", "emoji", "cpu")
    captions = [[pair.caption for pair in group] for group in groups]
    experiment = Experiment(pipe, captions, dict(loras), networks, out, guidance=5.0)
    return Measures(experiment, *images_of(groups, *image_size(pipe, None, None))), networks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "build")
    parser.add_argument("--bfloat16", action="store_true", help="as in run.py")
    parser.add_argument("--seeds", type=int, default=2, help="as in run.py")
    parser.add_argument(
        "--results", type=Path, default=HERE.parent.parent / "docs" / "results" / "sage-mini" / "unchosen"
    )
    args = parser.parse_args()
    loras = {"pre-trained": None, **{name: args.out / f"lora-train-{name}" for name in OBJECTIVES}}
    dtype = "bfloat16" if args.bfloat16 else "float32"
    measures, networks = measures_of(args.out, loras, args.out / "results", dtype)
    rest = range(CHOSEN, len(measures.experiment.groups))
    differences = []
    for share in SHARES:
        this = Cell(BEST, share)
        rivals = [Cell(name, share) for name in loras if name != BEST] + [Cell(BEST), Cell("pre-trained")]
        for other in rivals:
            runs = [[Cell(c.model, c.share, c.steps, seed) for seed in range(args.seeds)] for c in (this, other)]
            saved = 1 - measures.experiment.rows(this) / measures.experiment.rows(other)
            differences.append(Comparison(this, other, saved, measures.compare(*runs, rest)))
    args.results.mkdir(parents=True, exist_ok=True)
    count = sum(len(measures.experiment.groups[number]) for number in rest)
    print(f"{len(rest)} groups, {count * args.seeds} images per cell")
    print(write_comparisons(differences, networks, args.results))


if __name__ == "__main__":
    main()
