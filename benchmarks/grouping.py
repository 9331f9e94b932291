"""Time, memory and saving of grouping 1,000 to 100,000 prompts.

    python benchmarks/grouping.py --sizes 1000 10000 --prompts DIR
    python benchmarks/grouping.py --sizes 100000 --synthetic-vectors

Prompts come from DIR: those of captions_val2017.json (COCO), PartiPrompts.tsv and geneval.txt that exist, shuffled in a
fixed order. Without DIR they come from templates. If a size needs more prompts, each further round adds a style to
every prompt. Each size runs in its own process, and so does its embedding, so that peaks of memory are separate.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
STYLES = [
    "watercolor",
    "pencil sketch",
    "at night",
    "close-up",
    "pixel art",
    "in the snow",
    "oil painting",
    "3D render",
]
SUBJECTS = ["fox", "lighthouse", "teapot", "bicycle", "castle", "whale", "robot", "violin", "bridge", "orchid"]
COLOURS = ["red", "blue", "golden", "pale green", "black", "striped", "glass", "wooden"]
PLACES = ["in a forest", "on a beach", "in a library", "under water", "on the moon", "in a market", "on a table"]
BETA = 0.3  # share of steps that groups share, for the column of savings


def distinct_prompts(folder: Path | None) -> tuple[list[str], str]:
    """Return all different prompts of a folder, in a fixed random order, and a line about their origin."""
    from cotrunk.planning.prompts import read_prompts

    found: list[str] = []
    names = []
    for name in ("captions_val2017.json", "PartiPrompts.tsv", "geneval.txt"):
        if folder is None or not (folder / name).exists():
            continue
        if name.startswith("captions"):  # COCO's own layout
            annotations = json.loads((folder / name).read_text())["annotations"]
            found += [annotation["caption"].strip() for annotation in annotations]
        else:
            found += read_prompts(folder / name).prompts
        names.append(name)
    if not found:
        found = [f"a {c} {s} {p}" for s, c, p in product(SUBJECTS, COLOURS, PLACES)]
        names = ["templates"]
    prompts = list(dict.fromkeys(found))
    order = np.random.default_rng(0).permutation(len(prompts))
    return [prompts[i] for i in order], ", ".join(names)


def with_variations(prompts: list[str]) -> Iterator[str]:
    """Yield the prompts, then each of them with one style, then with two, and so on, all different."""
    yield from prompts
    for repeat in range(1, 9):
        for styles in product(STYLES, repeat=repeat):
            for prompt in prompts:
                yield f"{prompt.rstrip('.')}, {', '.join(styles)}"


def synthetic_vectors(n: int) -> np.ndarray:
    """Return clustered unit vectors (n, 384): about 12 prompts per subject, with a mean cosine of 0.6."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((n // 12, 384), np.float32)
    vectors = centres[rng.integers(len(centres), size=n)]
    vectors += np.float32(np.sqrt(1 / 0.6 - 1)) * rng.standard_normal((n, 384), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def embed(size: int, folder: Path | None, cache: Path) -> None:
    """Embed the first prompts with MiniLM into the cache, with the seconds (and CPU seconds in brackets)."""
    from cotrunk.planning.embedding import sentence_encoder
    from cotrunk.planning.threshold import auto_threshold

    distinct, _ = distinct_prompts(folder)
    prompts = list(islice(with_variations(distinct), size))
    encoder = sentence_encoder("minilm")
    threshold = auto_threshold(encoder)
    start, cpu = time.perf_counter(), time.process_time()
    vectors = encoder.encode(prompts)
    seconds = f"{time.perf_counter() - start:.1f} ({time.process_time() - cpu:.1f})"
    np.save(vector_file(cache, size, folder), vectors)
    facts = {"seconds": seconds, "threshold": threshold}
    vector_file(cache, size, folder).with_suffix(".json").write_text(json.dumps(facts))


def group(size: int, threshold: float, vectors_at: Path | None) -> None:
    """Group vectors and print the results as JSON. This process does not import torch, to measure grouping alone."""
    from cotrunk.planning.grouping import group_prompts

    vectors = synthetic_vectors(size) if vectors_at is None else np.load(vectors_at)
    before = peak_mib()
    start, cpu = time.perf_counter(), time.process_time()
    groups = group_prompts(vectors, threshold, identities=range(size))
    seconds = f"{time.perf_counter() - start:.1f} ({time.process_time() - cpu:.1f})"
    print(json.dumps({"seconds": seconds, "before": before, "peak": peak_mib(), "groups": len(groups)}))


def peak_mib() -> float:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / 1024 / (1024 if sys.platform == "darwin" else 1)  # macOS counts bytes


def vector_file(cache: Path, size: int, folder: Path | None) -> Path:
    """Return the cache file of vectors; its name depends on the origin of the prompts."""
    origin = "templates" if folder is None else hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return cache / f"minilm-{origin}-{size}.npy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = REPOSITORY.parent / "shared" / "prompts"
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], metavar="N")
    parser.add_argument("--prompts", type=Path, default=default if default.is_dir() else None, metavar="DIR")
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "build" / "grouping", metavar="DIR")
    parser.add_argument("--threshold", type=float, help="cosine; default: auto of the encoder")
    parser.add_argument("--synthetic-vectors", action="store_true", help="clustered random vectors, nothing embedded")
    parser.add_argument("--step", choices=["embed", "group"], help=argparse.SUPPRESS)  # a child process
    arguments = parser.parse_args()
    cache, folder, threshold = arguments.cache, arguments.prompts, arguments.threshold

    if arguments.step == "embed":
        embed(arguments.sizes[0], folder, cache)
        return
    if arguments.step == "group":
        size = arguments.sizes[0]
        group(size, threshold, None if arguments.synthetic_vectors else vector_file(cache, size, folder))
        return

    def child(step: str, size: int, threshold: float | None = None) -> str:
        command = [sys.executable, __file__, "--step", step, "--sizes", str(size), "--cache", str(cache)]
        command += ["--prompts", str(folder)] if folder else []
        command += ["--synthetic-vectors"] if arguments.synthetic_vectors else []
        command += ["--threshold", str(threshold)] if threshold is not None else []
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    rows, notes = [], []
    if not arguments.synthetic_vectors:
        cache.mkdir(parents=True, exist_ok=True)
        distinct, origin = distinct_prompts(folder)
        notes.append(f"{len(distinct):,} distinct prompts from {origin}.")
        if max(arguments.sizes) > len(distinct):
            notes.append(f"Sizes above {len(distinct):,} add variations made with styles.")
    for size in arguments.sizes:
        if arguments.synthetic_vectors:
            embed_seconds, used = "-", 0.5 if threshold is None else threshold
        else:
            if not vector_file(cache, size, folder).with_suffix(".json").exists():
                child("embed", size)
            facts = json.loads(vector_file(cache, size, folder).with_suffix(".json").read_text())
            embed_seconds, used = facts["seconds"], facts["threshold"] if threshold is None else threshold
        found = json.loads(child("group", size, used))
        mean = size / found["groups"]
        rows.append(
            f"| {size:,} | {embed_seconds} | {found['seconds']} | {found['peak']:.0f} ({found['before']:.0f}) "
            f"| {found['groups']:,} | {mean:.2f} | {100 * BETA * (1 - 1 / mean):.1f} % |"
        )
        notes.append(
            f"{size:,}: threshold {used}, {'synthetic vectors' if embed_seconds == '-' else 'MiniLM vectors'}."
        )
    print(f"| prompts | embed s (CPU) | group s (CPU) | peak MiB (before) | groups | mean | saving at beta {BETA} |")
    print("|" + "---:|" * 7)
    print("\n".join(rows))
    print("\n" + " ".join(notes))


if __name__ == "__main__":
    main()
