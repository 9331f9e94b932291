"""How often prompts that would share meet at one replica of the service on Ray, with routes and at random.

    python benchmarks/routing.py --prompts DIR --out docs/results/service

Each stream of `stream_prompts` comes to 2, 4 and 8 replicas. Routes are found with `mini`'s text encoder by the
service's own code, and Ray's ring of replicas gives each route to one of them. All prompts are of one bucket. The first
512 are for the centroids. Of the others, reported are: for those that have an earlier prompt with at least the default
similarity, how often the most similar one was at the same replica; and the images that need no trunk of their own, when
the prompts are grouped 64 at a time, each replica by itself. Nothing is generated. Writes `routing.md`.
"""

import argparse
import logging
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import stream_prompts
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from cotrunk.cluster.serving.encoder import FIXED
from cotrunk.cluster.serving.routes import STAGES, Routes
from cotrunk.files import write_text
from cotrunk.pipelines.loading import load_pipeline
from cotrunk.planning.grouping import group_prompts
from cotrunk.planning.request import encoder_of
from cotrunk.planning.threshold import auto_threshold
from cotrunk.service.store import ImageRequest, ImageRow

COUNT = 3_000  # prompts per stream
WINDOW = 64  # prompts that wait together
MOST = 5  # images of a group, as by default
SAME = 0.9999  # cosine of equal prompts, which would meet anyway
REPLICAS = (2, 4, 8)
RINGS = 16  # sets of replicas, over which figures are means


def row(prompt: str, number: int) -> ImageRow:
    request = ImageRequest(prompt)
    return ImageRow(f"img_{number:024x}", "job", 0, "me", "bucket", request, "waiting", 0, 0.0, None, None, None)


def ring(count: int, seed: int) -> ConsistentHashRouter:
    """Return Ray's ring of some replicas, without a cluster."""
    dice = random.Random(seed)
    router = object.__new__(ConsistentHashRouter)
    router._num_virtual_nodes, router._num_fallback_replicas = 100, 0
    router._deployment_id = DeploymentID("Painter")
    router._rebuild_ring(
        frozenset(ReplicaID(f"{dice.getrandbits(40):010x}", DeploymentID("Painter")) for _ in range(count))
    )
    return router


def placed(routes: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Return the number of the replica of each route."""
    router, numbers = ring(count, seed), dict[str, int]()
    owner = {route: router._lookup_ranked_replicas(route)[0].unique_id for route in {*routes}}
    return np.array([numbers.setdefault(owner[route], len(numbers)) for route in routes])


def saved(vectors: np.ndarray, places: np.ndarray, threshold: float) -> float:
    """Return the share of images that need no trunk of their own, if each replica groups what it has of each window."""
    groups = 0
    for start in range(0, len(vectors), WINDOW):
        for place in {*places[start : start + WINDOW]}:
            own = vectors[start : start + WINDOW][places[start : start + WINDOW] == place]
            groups += len(group_prompts(own, threshold, max_group=MOST))
    return 1 - groups / len(vectors)


def measured(prompts: Sequence[str], encode: object, threshold: float) -> list[list[str]]:
    """Return the lines of one stream."""
    settled: dict[str, str] = {}

    def settle(name: str, value: str | None) -> str | None:
        return settled.get(name) if value is None else settled.setdefault(name, value)

    finder = Routes(encode, FIXED, settle, "")
    learnt = STAGES[0]
    finder.of([row(prompt, i) for i, prompt in enumerate(dict.fromkeys(prompts))][:learnt])
    assert settled, f"a stream needs more than {learnt} different prompts"
    prompts = prompts[learnt:]
    vectors = encode(prompts)
    routes = [
        route
        for start in range(0, len(prompts), WINDOW)
        for route in finder.of([row(prompt, i) for i, prompt in enumerate(prompts[start : start + WINDOW])])
    ]
    chance = [str(number) for number in range(len(prompts))]
    cosines = np.tril(vectors @ vectors.T, -1)
    cosines[cosines > SAME] = 0
    nearest, has_similar = cosines.argmax(axis=1), cosines.max(axis=1) >= threshold
    one = np.zeros(len(prompts), int)
    lines = [
        [f"{has_similar.mean():.0%} of {len(prompts):,}", "1", "", "", f"{saved(vectors, one, threshold):.1%}", "", ""]
    ]
    for count in REPLICAS:
        found = {}
        for name, each in (("routes", routes), ("chance", chance)):
            places = [placed(each, count, seed) for seed in range(RINGS)]
            together = np.mean([(place == place[nearest])[has_similar].mean() for place in places])
            gain = np.mean([saved(vectors, place, threshold) for place in places[:2]])
            load = np.mean([max(Counter(place.tolist()).values()) * count / len(place) for place in places])
            found[name] = (together, gain, load)
        (together, gain, load), (together_by_chance, gain_by_chance, _) = found["routes"], found["chance"]
        lines.append(
            [
                "",
                str(count),
                f"{together:.0%}",
                f"{together_by_chance:.0%}",
                f"{gain:.1%}",
                f"{gain_by_chance:.1%}",
                f"{load:.2f}",
            ]
        )
    return lines


def main(arguments: list[str] | None = None) -> int:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description="Measure where prompts that would share meet.")
    parser.add_argument("--prompts", type=Path, help="folder with sets of templates; without it, captions only")
    parser.add_argument("--count", type=int, default=COUNT, help="prompts per stream")
    parser.add_argument("--out", type=Path, help="folder for routing.md")
    given = parser.parse_args(arguments)
    streams = {"captions": stream_prompts.captions(given.count), "refined": stream_prompts.refined(given.count)}
    prompts = {name: [arrival.prompt for arrival in arrivals] for name, arrivals in streams.items()}
    if given.prompts is not None:
        sets = ("prompt_templates.npy", "style_variations.npy", "animals.npy")
        found = [prompt for name in sets for prompt in stream_prompts._read(given.prompts / name)]
        prompts = {"templates": random.Random(0).sample(found, min(given.count, len(found))), **prompts}
    encoder = encoder_of(load_pipeline("mini", "cpu"), "pipeline")
    threshold = auto_threshold(encoder)
    command = f"python benchmarks/routing.py --count {given.count}" + (" --prompts DIR" if given.prompts else "")
    text = [
        "# Routes of the service on Ray",
        "",
        f"`{command}`: the head of `benchmarks/routing.py` describes what is counted. The largest load is the share of",
        "the busiest replica, as a multiple of an even one, before idle replicas take over what waits too long.",
        "",
        "| stream | prompts with a similar earlier one | replicas | met it, by routes | by chance | images without a "
        "trunk of their own, by routes | by chance | largest load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, each in prompts.items():
        for number, cells in enumerate(measured(each, encoder.encode, threshold)):
            text.append(f"| {'' if number else name} | {' | '.join(cells)} |")
            print(text[-1], flush=True)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        write_text(given.out / "routing.md", "\n".join([*text, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
