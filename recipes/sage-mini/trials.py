"""Try the open choices of equation 3 one by one: a short fine-tune each, and one evaluation of all of them.

    python trials.py --bfloat16                # after the images and groups of run.py; continues where it stopped

Every trial differs from `base` only in what its name says. `base` is equation 3 with branches that start where their
trunk ends. Trials are evaluated on the first held-out groups with 40 % of 30 steps shared. Each is also compared with
independent sampling of its own model, to separate what fine-tuning forgets from what it gains for sharing. Tables are
written to `--results`.

`cotrunk train` has no option for how z-bar is formed, so `First` replaces it for that trial.
"""

import argparse
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from run import HERE
from unchosen import CHOSEN, measures_of

from cotrunk.cli.app import main as command
from cotrunk.engine.rows import Folding
from cotrunk.evaluation.observation import Cell
from cotrunk.evaluation.tables import Comparison, write_comparisons, write_table

SHARE = 0.4
STEPS = 250
TRIALS = {
    "base": (),
    "standard": ("--objective", "standard"),
    "lambda_1 = 0": ("--shared-weight", "0"),
    "lambda_1 = 4": ("--shared-weight", "4"),
    "lambda_2 = 0": ("--target-weight", "0"),
    "lambda_2 = 4": ("--target-weight", "4"),
    "through the target": ("--through-target",),
    "z-bar is a member": (),
    "t_s from 50 %": ("--share", "0.5"),
    "standard, another seed": ("--objective", "standard", "--seed", "1"),
    **{
        f"lambda_1 = 0, {name}": ("--shared-weight", "0", *words)
        for name, words in {
            "rank 8": ("--rank", "8"),
            "rank 128": ("--rank", "128"),
            "800 steps, average of 500": ("--steps", "800", "--ema", "0.998"),
            "another seed": ("--seed", "1"),
        }.items()
    },
}


class First(Folding):
    """Uses the first member's latents as the mean latents of a group. The mean condition stays the mean."""

    def mean(self, tensor: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.first(tensor) if tensor.ndim == 4 else super().mean(tensor, mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "build")
    parser.add_argument("--only", nargs="+", choices=list(TRIALS), default=list(TRIALS), help="names of trials")
    parser.add_argument("--part", choices=["train", "evaluate"], help="run only this part")
    parser.add_argument("--groups", type=int, default=CHOSEN, help="number of evaluated groups")
    parser.add_argument("--bfloat16", action="store_true", help="as in run.py")
    parser.add_argument(
        "--results", type=Path, default=HERE.parent.parent / "docs" / "results" / "sage-mini" / "trials"
    )
    args = parser.parse_args()
    wanted = dict.fromkeys(["base", *args.only])
    loras = {name: args.out / "trials" / "".join(c if c.isalnum() else "-" for c in name) for name in wanted}
    common = ["--steps", str(STEPS), "--batch", "8", "--rank", "32", "--layers", "all", "--branch-noise", "trunk"]
    common += ["--learning-rate", "1e-3", "--ema", "0.99", "--checkpoint-every", "100"]
    common += ["--mixed-precision", "bf16"] if args.bfloat16 else []
    for name, folder in loras.items() if args.part != "evaluate" else ():
        for encoded in loras["base"].glob("encoded-*"):  # the same images and captions are encoded only once
            folder.mkdir(exist_ok=True)
            if not (folder / encoded.name).exists():
                (folder / encoded.name).symlink_to(encoded.resolve())
        words = ["train", str(args.out / "train-groups"), "--out", str(folder), *common, *TRIALS[name]]
        print("cotrunk", *words, flush=True)
        sys.argv[1:] = words
        with patch("cotrunk.training.loss.Folding", First) if name == "z-bar is a member" else nullcontext():
            try:
                command()
            except SystemExit as done:
                if done.code:
                    raise
    if args.part != "train":
        evaluate(loras, args.out, args.groups, "bfloat16" if args.bfloat16 else "float32", args.results)


def evaluate(loras: Mapping[str, Path], build: Path, count: int, dtype: str, results: Path) -> None:
    """Write `table1.md`, with every trial independent and shared, and `differences.md`.

    Each shared trial is compared with its own independent sampling, and with the base and the standard fine-tune at the
    same share.
    """
    measures, networks = measures_of(build, {"pre-trained": None, **loras}, build / "trial-results", dtype, count)
    experiment = measures.experiment
    found, differences = [], []
    for name in experiment.loras:
        alone, shared = Cell(name), Cell(name, SHARE)
        found += [measures.of([alone]), measures.of([shared])]
        for other in (alone, *(Cell(other_name, SHARE) for other_name in ("base", "standard") if other_name in loras)):
            if other != shared:
                saved = 1 - experiment.rows(shared) / experiment.rows(other)
                differences.append(Comparison(shared, other, saved, measures.compare([shared], [other])))
        print(name, found[-1].figures, flush=True)
    results.mkdir(parents=True, exist_ok=True)
    print(write_table(found, networks, results))
    print(write_comparisons(differences, networks, results))


if __name__ == "__main__":
    main()
