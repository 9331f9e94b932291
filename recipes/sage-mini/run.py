"""SAGE on the embedded model, from pictures to tables: groups, a standard and a SAGE fine-tune, and their evaluation.

    python run.py                                                 # all of it; goes on where it stopped
    python run.py --only evaluate

1. `pictures`: those that the embedded model was trained on, as files with captions. One concept in five, with all its
   styles, is kept apart: its groups are what is evaluated, and no fine-tune sees it.
2. `groups`: cliques of similar captions, with `cotrunk dataset`.
3. `train`: two LoRAs from the same start with the same number of steps on the same groups: `standard` and `sage`.
4. `evaluate`: `cotrunk evaluate` on the groups that were kept apart; tables and figures are copied to `--results`.

The alignment network is `alignment.py`'s, which is trained first where it is missing.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from split import apart, caption

HERE = Path(__file__).parent
SIMILAR = ("--similarity-min", "0.6", "--similarity-max", "0.98")


def export(build: Path, out: Path) -> None:
    """`train/` and `held-out/`: pictures and `metadata.jsonl`."""
    lines = [json.loads(line) for line in (build / "captions.jsonl").read_text().splitlines()]
    with np.load(build / "pictures.npz") as found:
        pictures = found["pictures"]
    entries: dict[str, list[dict[str, str]]] = {"train": [], "held-out": []}
    for number, (line, picture) in enumerate(zip(lines, pictures, strict=True)):
        if line["held_out"]:
            continue  # the embedded model has not seen it, and is not to
        part = "held-out" if apart(line["concept"]) else "train"
        folder = out / part
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{number:05d}.png"
        if not file.exists():
            Image.fromarray(picture).save(file)
        entries[part].append({"file_name": file.name, "text": caption(line)})
    for part, own in entries.items():
        (out / part / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in own))
        print(f"{part}: {len(own)} pictures", flush=True)


def cotrunk(*arguments: object) -> None:
    print("cotrunk", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "cotrunk", *map(str, arguments)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=HERE.parent / "emoji" / "build", help="of recipes/emoji")
    parser.add_argument("--out", type=Path, default=HERE / "build")
    parser.add_argument("--only", choices=["pictures", "groups", "train", "evaluate"])
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of each fine-tune")
    parser.add_argument("--batch", type=int, default=8, help="groups in a step")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--groups", type=int, default=400, help="groups to evaluate on")
    parser.add_argument("--seeds", type=int, default=2, help="runs of every cell: one has under 1,000 pictures")
    parser.add_argument("--shares", default="0.1,0.2,0.3,0.4,0.5", help="parts of the steps to share")
    parser.add_argument("--fewer", default="4,6,10,15,50", help="numbers of steps of the curves, beside 30")
    parser.add_argument("--results", type=Path, default=HERE.parent.parent / "docs" / "results" / "sage-mini")
    args = parser.parse_args()
    wanted = [args.only] if args.only else ["pictures", "groups", "train", "evaluate"]
    if "pictures" in wanted:
        export(args.build, args.out)
    if "groups" in wanted:
        cotrunk("dataset", args.out / "train", "--out", args.out / "train-groups", *SIMILAR, "--per-caption", 2)
        cotrunk("dataset", args.out / "held-out", "--out", args.out / "test-groups", *SIMILAR, "--per-caption", 1)
    loras = {name: args.out / f"lora-{name}" for name in ("standard", "sage")}
    if "train" in wanted:
        for name, folder in loras.items():
            training = ["--steps", args.steps, "--batch", args.batch, "--rank", args.rank]
            training += ["--learning-rate", args.learning_rate, "--ema", 0.998]
            cotrunk("train", args.out / "train-groups", "--objective", name, "--out", folder, *training)
    if "evaluate" in wanted:
        from cotrunk.evaluation.emoji import WEIGHTS

        if not WEIGHTS.exists():
            subprocess.run([sys.executable, HERE / "alignment.py", "--build", args.build], check=True)
        given = [part for name, folder in loras.items() for part in ("--lora", f"{name}={folder}")]
        settings = ["--guidance", args.guidance, "--max-groups", args.groups, "--seeds", args.seeds]
        settings += ["--shares", args.shares, "--fewer", args.fewer]
        cotrunk("evaluate", args.out / "test-groups", *given, "--out", args.out / "results", *settings)
        args.results.mkdir(parents=True, exist_ok=True)
        for file in (args.out / "results").iterdir():
            if file.is_file():  # not cells/
                shutil.copy(file, args.results / file.name)


if __name__ == "__main__":
    main()
