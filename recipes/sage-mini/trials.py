"""What equation 3 leaves open, tried one by one: a short fine-tune each, and one evaluation of all of them.

    python trials.py --bfloat16                # after run.py's images and groups; goes on where it stopped

Every trial differs from `base` in what its name says, and in nothing else: equation 3 with branches that start from
where their trunk leaves them. They are evaluated on the first groups that were kept apart, 40 % of 30 steps shared,
each against independent sampling of its own model too: what a trial forgets is told from what it does for sharing.
Tables go to `--results`.

How z-bar is formed is no option of `cotrunk train`: `First` replaces it here, for that trial alone.
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
    """A group's mean latents are its first member's; its mean condition stays the mean."""

    def mean(self, tensor: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.first(tensor) if tensor.ndim == 4 else super().mean(tensor, mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "build")
    parser.add_argument("--only", nargs="+", choices=list(TRIALS), default=list(TRIALS), help="trials, by name")
    parser.add_argument("--part", choices=["train", "evaluate"], help="only this")
    parser.add_argument("--groups", type=int, default=CHOSEN, help="that are evaluated")
    parser.add_argument("--bfloat16", action="store_true", help="as of run.py")
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
        for encoded in loras["base"].glob("encoded-*"):  # the same images and captions, encoded once
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
    """`table1.md`: every trial independently and shared; `differences.md`: each shared against its own independent
    sampling, and against the base and the standard fine-tune under the same sharing."""
    measures, judges = measures_of(build, {"pre-trained": None, **loras}, build / "trial-results", dtype, count)
    experiment = measures.experiment
    found, differences = [], []
    for name in experiment.loras:
        alone, shared = Cell(name), Cell(name, SHARE)
        found += [measures.of([alone]), measures.of([shared])]
        for other in (alone, *(Cell(rival, SHARE) for rival in ("base", "standard") if rival in loras)):
            if other != shared:
                spared = 1 - experiment.rows(shared) / experiment.rows(other)
                differences.append(Comparison(shared, other, spared, measures.compare([shared], [other])))
        print(name, found[-1].figures, flush=True)
    results.mkdir(parents=True, exist_ok=True)
    print(write_table(found, judges, results))
    print(write_comparisons(differences, judges, results))


if __name__ == "__main__":
    main()
