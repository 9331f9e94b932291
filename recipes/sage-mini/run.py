"""SAGE on the embedded model, from images to tables: groups, a standard and a SAGE fine-tune, and their evaluation.

    python run.py                    # everything; continues where it stopped
    python run.py --only evaluate
    python run.py --seen             # fine-tunes that are trained on the evaluated concepts as well

1. `images`: write the training images of the embedded model as files with captions. One concept in five, with all its
   styles, is held out: its groups are evaluated, and no fine-tune is trained on it.
2. `groups`: find cliques of similar captions, with `cotrunk dataset`.
3. `train`: three LoRAs with the same number of steps on the same groups: `standard`; `sage` as published; and
   `sage-trunk`, without the first term of equation 3, with branches that start where their trunk ends in sampling
   (`trials.py` compares the choices).
4. `evaluate`: run `cotrunk evaluate` on the held-out groups. Tables and figures are written to `--results`: `table/`
   has all shares at 30 steps, `curve/` has one share at several numbers of steps.

The alignment network is the one of `alignment.py`, which is trained first if it is missing.

The embedded model was trained on all of these images. A fine-tune without the held-out ones forgets some of them, which
counts against it in addition to what it does for sharing. With `--seen` the fine-tunes are trained on all images, so
that only sharing is compared.
"""

import argparse
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from split import caption, is_held_out

from cotrunk.files import write_bytes, write_text

HERE = Path(__file__).parent
OBJECTIVES = {
    "standard": ("--objective", "standard"),
    "sage": ("--objective", "sage"),
    "sage-trunk": ("--objective", "sage", "--branch-noise", "trunk", "--shared-weight", "0"),
}
SIMILAR = ("--similarity-min", "0.6", "--similarity-max", "0.98")


def export(build: Path, out: Path) -> None:
    """Write images and `metadata.jsonl` to `train/` and `held-out/`, and all of them to `seen/`."""
    lines = [json.loads(line) for line in (build / "captions.jsonl").read_text().splitlines()]
    with np.load(build / "images.npz") as found:
        images = found["images"]
    entries: dict[str, list[dict[str, str]]] = {"train": [], "held-out": [], "seen": []}
    for number, (line, image) in enumerate(zip(lines, images, strict=True)):
        if line["held_out"]:
            continue  # held out from the training of the embedded model
        for part in ("held-out" if is_held_out(line["concept"]) else "train", "seen"):
            folder = out / part
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{number:05d}.png"
            if not file.exists():
                write_bytes(file, functools.partial(Image.fromarray(image).save, format="PNG"))
            entries[part].append({"file_name": file.name, "text": caption(line)})
    for part, own in entries.items():
        write_text(out / part / "metadata.jsonl", "".join(json.dumps(entry) + "\n" for entry in own))
        print(f"{part}: {len(own)} images", flush=True)


def cotrunk(*arguments: object) -> None:
    print("cotrunk", *arguments, flush=True)
    done = subprocess.run([sys.executable, "-m", "cotrunk", *map(str, arguments)])
    if done.returncode:
        raise SystemExit(done.returncode)  # the command has printed why


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=HERE.parent / "emoji" / "build", help="of recipes/emoji")
    parser.add_argument("--out", type=Path, default=HERE / "build")
    parser.add_argument("--only", choices=["images", "groups", "train", "evaluate"])
    parser.add_argument("--seen", action="store_true", help="train on the held-out concepts as well")
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--steps", type=int, default=250, help="optimiser steps of each fine-tune")
    parser.add_argument("--batch", type=int, default=8, help="groups per step")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="twice as fast with AMX, AVX512-BF16 or a GPU, four times slower without",
    )
    parser.add_argument("--compile", action="store_true", help="compile the denoiser for the evaluation")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, default=2, help="runs of every cell, of 548 images each")
    parser.add_argument("--shares", default="0.2,0.3,0.4", help="parts of the steps to share")
    parser.add_argument("--more-shares", default="0.1,0.5", help="further shares, only for figure 4")
    parser.add_argument("--curved", default="0.4", help="share of the curves over rows")
    parser.add_argument("--fewer", default="3,4,6,10,15,20", help="numbers of steps of the curves, in addition to 30")
    parser.add_argument("--results", type=Path, default=HERE.parent.parent / "docs" / "results" / "sage-mini")
    args = parser.parse_args()
    source = "seen" if args.seen else "train"
    wanted = [args.only] if args.only else ["images", "groups", "train", "evaluate"]
    if "images" in wanted:
        export(args.build, args.out)
    if "groups" in wanted:
        cotrunk("dataset", args.out / source, "--out", args.out / f"{source}-groups", *SIMILAR, "--per-caption", 2)
        cotrunk("dataset", args.out / "held-out", "--out", args.out / "test-groups", *SIMILAR, "--per-caption", 1)
    loras = {name: args.out / f"lora-{source}-{name}" for name in args.objectives}
    if "train" in wanted:
        for name, folder in loras.items():
            training = ["--steps", args.steps, "--batch", args.batch, "--rank", args.rank, "--layers", "all"]
            training += ["--learning-rate", args.learning_rate, "--ema", 0.99, "--checkpoint-every", 100]
            training += ["--mixed-precision", "bf16"] if args.bfloat16 else []
            cotrunk("train", args.out / f"{source}-groups", *OBJECTIVES[name], "--out", folder, *training)
    if "evaluate" in wanted:
        from cotrunk.evaluation.emoji import WEIGHTS

        if not WEIGHTS.exists():
            subprocess.run([sys.executable, HERE / "alignment.py", "--build", args.build], check=True)
        out = args.out / "results"
        settings = ["--guidance", args.guidance, "--seeds", args.seeds]
        settings += ["--dtype", "bfloat16"] if args.bfloat16 else []
        settings += ["--compile"] if args.compile else []
        results = args.results / "seen" if args.seen else args.results
        given = [word for name, folder in loras.items() for word in ("--lora", f"{name}={folder}")]
        for part, more in (
            ("table", ["--shares", args.shares, "--more-shares", args.more_shares]),
            ("curve", ["--shares", args.curved, "--fewer", args.fewer]),
        ):
            cotrunk("evaluate", args.out / "test-groups", *given, "--out", out, *settings, *more)
            (results / part).mkdir(parents=True, exist_ok=True)
            for file in list(out.iterdir()):
                if file.is_file():  # not cells/, which both parts use
                    shutil.copy(file, results / part / file.name)
                    file.unlink()


if __name__ == "__main__":
    main()
