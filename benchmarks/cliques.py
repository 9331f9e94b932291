"""Time and memory of grouping a training set: the similarity graph of captions and its cliques.

    python benchmarks/cliques.py --captions captions_val2017.json   # COCO's annotations; embeds all captions
    python benchmarks/cliques.py --synthetic 120000      # vectors in clusters, as many as COCO has images

Prints seconds and the peak memory of the process, which includes embedding, after each part.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np

from cotrunk.groups.cliques import sample_cliques, similarity_graph


def clustered(count: int, width: int = 384, seed: int = 0) -> np.ndarray:
    """Return unit vectors in clusters of about eight, with cosines of 0.5 to 0.9 within a cluster."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((count // 8, width)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    noise = rng.standard_normal((count, width)).astype(np.float32) / width**0.5
    vectors = (
        centres[rng.integers(len(centres), size=count)] + rng.uniform(0.3, 1.0, (count, 1)).astype(np.float32) * noise
    )
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path)
    parser.add_argument("--synthetic", type=int)
    parser.add_argument("--low", type=float, default=0.6)
    parser.add_argument("--high", type=float, default=0.9)
    args = parser.parse_args()
    if (args.captions is None) == (args.synthetic is None):
        parser.error("give --captions FILE or --synthetic N")
    begin = time.perf_counter()

    def report(what: str) -> None:
        nonlocal begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{what}: {time.perf_counter() - begin:.0f} s, peak so far {peak:.2f} GiB", flush=True)
        begin = time.perf_counter()

    if args.captions is not None:
        from cotrunk.planning.embedding import sentence_encoder

        captions = [entry["caption"] for entry in json.loads(args.captions.read_text())["annotations"]]
        vectors = sentence_encoder("minilm").encode(captions)
        report(f"embedded {len(captions):,} captions")
    else:
        vectors = clustered(args.synthetic)
        report(f"{args.synthetic:,} synthetic vectors")
    graph = similarity_graph(vectors, args.low, args.high)
    report(f"graph of {graph.edges:,} edges, {graph.dropped:,} of them dropped")
    found = sample_cliques(graph.neighbours)
    sizes = np.bincount([len(group) for group in found.groups], minlength=6)[2:6].tolist()
    report(f"{len(found.groups):,} groups, {sizes} of 2 to 5; {found.capped:,} captions had more")


if __name__ == "__main__":
    main()
