"""Measure the trunk cache on streams of prompts: how many hit, what that saves, and what it does to images.

    python benchmarks/streams.py --prompts DIR --out docs/results/streams --images 160   # 15 minutes on one core

A service plans prompts together that arrive within a window: none (each prompt alone), a minute, or a day. Each stream
of `stream_prompts` is planned with `mini`'s text encoder and the default threshold, as `cotrunk.generate` plans, at two
shares; this needs no images. "refined" is planned twice: with trunks that serve only their owner (the default), and
with one cache for all users. The stream "benchmarks" needs --prompts, a folder with PartiPrompts.tsv and sets of
templates. Then --images hits of the streams that the embedded model knows are generated, in bfloat16, all steps
computed: once by replaying their trunk, and once independently from the same noise. Writes points.jsonl, images.jsonl,
table.md and streams.png. A later call with the same --out only draws and writes what is there.
"""

import argparse
import itertools
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import stream_prompts
import torch
from stream_prompts import PER_MINUTE, Arrival

from cotrunk import Batching, Plan, Sharing, Trunks, generate
from cotrunk.evaluation import metrics
from cotrunk.evaluation.emoji import EmojiAlignment
from cotrunk.evaluation.networks import EfficientNetLite0
from cotrunk.files import read_lines, write_text
from cotrunk.pipelines.loading import load_pipeline
from cotrunk.planning.embedding import pipeline_encoder
from cotrunk.planning.replayed import Replayed
from cotrunk.planning.sharing import Evaluations, Item, make_plan
from cotrunk.planning.threshold import auto_threshold
from cotrunk.planning.tree import leaf
from cotrunk.plotting import new_figure
from cotrunk.trunks.computing import OUTPUTS, CacheUse
from cotrunk.trunks.lookup import Seeding, with_trunks

STEPS, GUIDANCE, ROWS = 30, 5.0, 2  # of mini
WINDOWS = {"each alone": 0.0, "1 minute": 60.0, "1 day": 86_400.0}
SHARES = (0.2, 0.4)
HITS_PER_TRUNK = 3  # images of one trunk that are generated
KEY = "key"
# CLIP scores without and with a cache, and the hits in per cent (vLLM-Omni, PR #4853: Qwen-Image, GenEval prompts)
RIVAL_BEFORE, RIVAL_AFTER, RIVAL_HITS = 27.90, 26.22, 44.7


@dataclass(frozen=True)
class Hit:
    """A prompt that replays a stored trunk, and its smallest cosine to a member of it."""

    prompt: str
    trunk: Replayed
    seed: int
    similarity: float


class Planner:
    """Plans the windows of a stream with a trunk cache, whose trunks have no content."""

    def __init__(self, vectors: dict[str, np.ndarray], threshold: float, share: float, shared: bool) -> None:
        self.vectors, self.threshold, self.shared = vectors, threshold, shared
        self.sharing = Sharing(share=share, noise="own", trunk_guidance=0.0)
        self.trunks = Trunks()
        self.evaluations = Evaluations(STEPS, STEPS, ROWS)
        self.hits: list[Hit] = []
        self.rows: Counter[str] = Counter()
        self.prompts: Counter[str] = Counter()
        self._seen: set[tuple[str, str]] = set()

    def plan(self, window: Sequence[Arrival], number: int) -> None:
        """Plan the prompts of a window, those of each owner together."""
        by_owner = defaultdict(list)
        for arrival in window:
            by_owner["all" if self.shared else arrival.user].append(arrival.prompt)
        for owner, prompts in by_owner.items():
            self._plan(owner, prompts, number)

    def _plan(self, owner: str, prompts: list[str], number: int) -> None:
        store = self.trunks.for_owner(owner)
        cache = CacheUse(store, [KEY] * len(prompts), lambda texts: np.stack([self.vectors[text] for text in texts]))
        items = [Item(prompt, prompt) for prompt in prompts]
        plan = make_plan(items, cache.vectors(prompts), self.sharing, self.threshold, self.evaluations, seed=number)
        request: Any = SimpleNamespace(keys=[""] * len(prompts), evaluations=self.evaluations)
        plan = with_trunks(plan, request, cache, Seeding(number))
        self._count(owner, plan)
        for trunk in plan.trunks:
            if trunk.is_stored:
                store.load(KEY, trunk.recipe)
            else:
                saved = trunk.recipe.steps * ROWS
                content = {OUTPUTS: torch.zeros(1)}
                store.store(KEY, trunk.recipe, content, cache.vectors(trunk.recipe.members), saved)
        for tree in plan.trees:
            if len(tree.images) == 1 and plan.replayed(tree) is None:
                text = plan.prompts[tree.images[0]]
                store.remember(KEY, text, self.vectors[text])

    def _count(self, owner: str, plan: Plan) -> None:
        """Count rows and prompts by source; a prompt that this owner has asked for before counts as repeated."""
        stored = [trunk for trunk in plan.trunks if trunk.is_stored]
        replayed = sum(len(trunk.images) * trunk.stop * ROWS for trunk in stored)
        cost = plan.cost
        self.rows += Counter(
            independent=cost.independent, replay=replayed, sharing=cost.independent - cost.used - replayed
        )
        for tree in plan.trees:
            trunk = plan.replayed(tree)
            source = "alone" if trunk is None else "hit" if trunk.is_stored else "new trunk"
            for image in tree.images:
                prompt = plan.prompts[image]
                is_repeat = (owner, prompt) in self._seen
                self._seen.add((owner, prompt))
                self.prompts[f"repeated, {source}" if is_repeat else source] += 1
                if source == "hit" and not is_repeat and trunk is not None:
                    cosines = [float(self.vectors[prompt] @ self.vectors[each]) for each in trunk.recipe.members]
                    self.hits.append(Hit(prompt, trunk, plan.seeds[image], min(cosines)))


def windows(stream: Sequence[Arrival], seconds: float) -> Iterator[list[Arrival]]:
    """Yield the prompts that are planned together."""
    if seconds == 0:
        yield from ([arrival] for arrival in stream)
        return
    for _, window in itertools.groupby(stream, key=lambda arrival: int(arrival.seconds // seconds)):
        yield list(window)


def hit_rates(
    streams: dict[str, list[Arrival]], vectors: dict[str, np.ndarray], threshold: float
) -> Iterator[tuple[dict[str, Any], list[Hit]]]:
    """Yield a point per stream, share and window, and its hits."""
    cases = [(name, name, name != "refined") for name in streams]
    cases += [("refined, one cache for all", "refined", True)] if "refined" in streams else []
    for (label, name, shared), share, window in itertools.product(cases, SHARES, WINDOWS):
        begin = time.perf_counter()
        planner = Planner(vectors, threshold, share, shared)
        for number, arrived in enumerate(windows(streams[name], WINDOWS[window])):
            planner.plan(arrived, number)
        entries = planner.trunks.backing.index.entries()
        point = {
            "stream": label,
            "share": share,
            "window": window,
            "prompts": dict(planner.prompts),
            "rows": dict(planner.rows),
            "trunks": len(entries),
            "mebibytes": sum(entry.recipe.steps for entry in entries) * 4 * 16 * 16 * 2 / 2**20,
            "seconds": time.perf_counter() - begin,
        }
        yield point, planner.hits


def sample(hits: Sequence[Hit], images: int, seed: int = 0) -> list[list[Hit]]:
    """Return the hits of some trunks that were hit more than once, a few of each."""
    by_trunk = defaultdict(list)
    for hit in hits:
        by_trunk[hit.trunk.recipe].append(hit)
    groups = [group[:HITS_PER_TRUNK] for group in by_trunk.values() if len(group) > 1]
    random.Random(seed).shuffle(groups)
    ends = np.cumsum([len(group) for group in groups])
    return groups[: int(np.searchsorted(ends, images)) + 1]


def measure(
    pipe: Any, groups: list[list[Hit]], share: float, threshold: float, known: dict[Any, Any]
) -> dict[str, Any]:
    """Generate hits and the same images independently, and compare them, with intervals over trunks.

    Args:
        known: the figures of independent images, by their prompts and seeds.
    """
    hits = [hit for group in groups for hit in group]
    trunks = tuple(Replayed(hit.trunk.recipe, (i,), hit.trunk.stop) for i, hit in enumerate(hits))
    plan = Plan(
        tuple(hit.prompt for hit in hits),
        tuple(hit.seed for hit in hits),
        tuple(leaf(i, 0, STEPS) for i in range(len(hits))),
        STEPS,
        STEPS,
        sharing=Sharing(share=share, noise="own", trunk_guidance=0.0),
        threshold=threshold,
        trunks=trunks,
    )
    plan.check()
    begin = time.perf_counter()
    network = EfficientNetLite0()
    aligner = EmojiAlignment(network)
    texts = aligner.text_vectors([hit.prompt for hit in hits])
    places = [
        list(range(end - len(group), end)) for group, end in zip(groups, np.cumsum([*map(len, groups)]), strict=True)
    ]
    found = dict[str, dict[str, Any]]()
    same = tuple((hit.prompt, hit.seed) for hit in hits)
    for name, each in (("hits", plan), ("independent", plan.independent())):
        if name == "independent" and same in known:
            found[name] = known[same]
            continue
        call = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
        result = generate(pipe, plan=each, skipping=None, batching=Batching(16), **call)
        images = torch.from_numpy(np.asarray(result.output.images)).permute(0, 3, 1, 2).float()
        vectors = aligner.image_vectors(images)
        found[name] = {
            "alignment": metrics.alignment(vectors, texts),
            "mismatched": metrics.alignment(vectors, texts.roll(len(texts) // 2, dims=0)),
            "diversity": metrics.diversity(network, images, places),
            "rows": result.cost.used / len(hits),
        }
    known[same] = found["independent"]
    own, other = found["hits"], found["independent"]
    change = metrics.change(own["alignment"], other["alignment"], places)
    similarities = np.array([hit.similarity for hit in hits])
    middle = float(np.median(similarities))
    halves = {}
    for name, is_in in (("lower", similarities < middle), ("upper", similarities >= middle)):
        parts = [part for own_places in places if (part := [i for i in own_places if is_in[i]])]
        halves[name] = asdict(metrics.change(own["alignment"], other["alignment"], parts).relative)
    return {
        "middle similarity": middle,
        "halves": halves,
        "images": len(hits),
        "trunks": len(groups),
        "rows": [own["rows"], other["rows"]],
        "alignment": asdict(metrics.mean(own["alignment"], places)),
        "independent": asdict(metrics.mean(other["alignment"], places)),
        "mismatched": asdict(metrics.mean(other["mismatched"], places)),
        "alignment change": asdict(change.relative),
        "alignment difference": asdict(change.absolute),
        "diversity": float(own["diversity"].mean()),
        "diversity change": asdict(metrics.change(own["diversity"], other["diversity"]).relative),
        "seconds": time.perf_counter() - begin,
    }


def percent(figure: dict[str, float]) -> str:
    return f"{100 * figure['value']:+.1f} % [{100 * figure['low']:+.1f}, {100 * figure['high']:+.1f}]"


def repeats(point: dict[str, Any]) -> int:
    return sum(count for name, count in point["prompts"].items() if name.startswith("repeated"))


def rate(point: dict[str, Any], what: str = "hit") -> float:
    """Return the fraction of the prompts that are not repeated with this source."""
    new = sum(point["prompts"].values()) - repeats(point)
    return point["prompts"].get(what, 0) / new


def saved(point: dict[str, Any], what: str) -> float:
    return point["rows"].get(what, 0) / point["rows"]["independent"]


def table(points: list[dict[str, Any]], images: list[dict[str, Any]]) -> str:
    """Return both tables as Markdown."""
    lines = [
        f"Prompts arrive at {PER_MINUTE:g} per minute on average; 5,000 prompts are 14 hours. A *hit* replays a stored "
        "trunk. A prompt with a *new trunk* shares with others of its window or with one earlier prompt. *Repeats* are "
        "prompts that their owner has asked for before; they are counted apart, and generated again with another "
        "seed. Rows saved are of all prompts, repeats included, after the rows of all trunks.",
        "",
        "| stream | share | window | repeats | hits | new trunk | rows saved | by replay | by sharing | trunks |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for p in points:
        total = sum(p["prompts"].values())
        lines.append(
            f"| {p['stream']} | {p['share']:.0%} | {p['window']} | {repeats(p) / total:.1%} | {rate(p):.1%} | "
            f"{rate(p, 'new trunk'):.1%} | {saved(p, 'replay') + saved(p, 'sharing'):.1%} | {saved(p, 'replay'):.1%} | "
            f"{saved(p, 'sharing'):.1%} | {p['trunks']:,} ({p['mebibytes']:.0f} MiB) |"
        )
    lines += [
        "",
        "Hits against independent images of the same prompts and noise (each alone; 95 % intervals over trunks):",
        "",
        "| stream | share | images (trunks) | rows per image | alignment | of independent images | change | of "
        "mismatched texts | change of diversity among the hits of a trunk | change of alignment, less and more "
        "similar half |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for i in images:
        counts = f"{i['images']} ({i['trunks']}) | {i['rows'][0]:.1f} of {i['rows'][1]:.0f}"
        lines.append(
            f"| {i['stream']} | {i['share']:.0%} | {counts} | "
            f"{i['alignment']['value']:.3f} | {i['independent']['value']:.3f} | {percent(i['alignment change'])} | "
            f"{i['mismatched']['value']:.3f} | {percent(i['diversity change'])} | {percent(i['halves']['lower'])}, "
            f"{percent(i['halves']['upper'])} (cosine {i['middle similarity']:.2f}) |"
        )
    loss = 100 * (RIVAL_AFTER / RIVAL_BEFORE - 1)
    lines += [
        "",
        f"For comparison, vLLM-Omni reports a CLIP score of {RIVAL_AFTER} instead of {RIVAL_BEFORE:.2f} with "
        f"{RIVAL_HITS:g} % hits: {loss:.1f} % over all prompts, {100 * loss / RIVAL_HITS:.1f} % per hit. That is "
        "another model and another metric, whose value for mismatched texts is not zero, and its hits skip more steps.",
    ]
    return "\n".join(lines) + "\n"


def draw(points: list[dict[str, Any]], images: list[dict[str, Any]], path: Path) -> None:
    """Draw the rows saved by source, and the change of alignment of hits."""
    figure = new_figure(figsize=(12, 4.8))
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    names = list(dict.fromkeys(point["stream"] for point in points))
    labels, place = [], 0.0
    for name in names:
        for point in (p for p in points if p["stream"] == name and p["share"] == SHARES[0]):
            for what, colour in (("replay", "tab:blue"), ("sharing", "tab:orange")):
                bottom = 100 * saved(point, "replay") if what == "sharing" else 0
                left.barh(
                    place, 100 * saved(point, what), left=bottom, color=colour, label=what if not labels else None
                )
            left.text(
                100 * (saved(point, "replay") + saved(point, "sharing")) + 0.2,
                place,
                f"{rate(point):.0%} hits",
                va="center",
                fontsize=8,
            )
            labels.append((place, f"{name}, {point['window']}"))
            place += 1
        place += 0.5
    left.set_yticks([at for at, _ in labels], [label for _, label in labels], fontsize=8)
    left.invert_yaxis()
    left.set_xlabel(f"rows saved in per cent, {SHARES[0]:.0%} shared")
    left.set_xlim(0, 23)
    left.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    for at, entry in enumerate(images):
        for offset, what, colour in ((-0.12, "alignment change", "tab:blue"), (0.12, "diversity change", "tab:gray")):
            value = {key: 100 * each for key, each in entry[what].items()}
            spread = [[value["value"] - value["low"]], [value["high"] - value["value"]]]
            right.errorbar(
                value["value"],
                at + offset,
                xerr=spread,
                fmt="o",
                color=colour,
                label=what.split()[0] if not at else None,
            )
    right.axvline(0, color="black", linewidth=0.8)
    right.set_yticks(range(len(images)), [f"{i['stream']}, {i['share']:.0%} shared" for i in images], fontsize=8)
    right.invert_yaxis()
    right.set_xlabel("change of hits in per cent")
    right.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, help="folder with PartiPrompts.tsv and sets of templates")
    parser.add_argument("--count", type=int, default=stream_prompts.COUNT, help="prompts per stream")
    parser.add_argument("--images", type=int, default=120, help="hits to generate per stream and share; 0 for none")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    files = [args.out / name for name in ("points.jsonl", "images.jsonl")]
    if not files[0].exists():
        run(args, *files)
    points, images = (read_lines(file) if file.exists() else [] for file in files)
    write_text(args.out / "table.md", table(points, images))
    draw(points, images, args.out / "streams.png")


def run(args: argparse.Namespace, points_file: Path, images_file: Path) -> None:
    """Measure everything."""
    torch.set_flush_denormal(True)
    streams = {"captions": stream_prompts.captions(args.count), "refined": stream_prompts.refined(args.count)}
    if args.prompts is not None:
        streams = {"benchmarks": stream_prompts.benchmarks(args.prompts, args.count), **streams}
    encoder = pipeline_encoder(load_pipeline("mini", "cpu"))
    threshold = auto_threshold(encoder)
    texts = list(dict.fromkeys(arrival.prompt for stream in streams.values() for arrival in stream))
    vectors = dict(zip(texts, encoder.encode(texts), strict=True))
    print(f"{ {name: len(stream) for name, stream in streams.items()} }, threshold {threshold:.3f}", flush=True)
    sampled = dict[tuple[str, float], list[list[Hit]]]()
    with points_file.open("w") as log:
        for point, hits in hit_rates(streams, vectors, threshold):
            log.write(json.dumps(point) + "\n")
            log.flush()
            what = f"{point['stream']}, {point['share']}, {point['window']}"
            print(f"{what}: {rate(point):.1%} hits, {point['seconds']:.0f} s", flush=True)
            if point["window"] == "each alone" and point["stream"] in ("captions", "refined"):
                sampled[point["stream"], point["share"]] = sample(hits, args.images)
    if not args.images:
        return
    pipe = load_pipeline("mini", "cpu", "bfloat16")
    known: dict[Any, Any] = {}
    with images_file.open("w") as log:
        for (stream, share), groups in sampled.items():
            entry = {"stream": stream, "share": share, **measure(pipe, groups, share, threshold, known)}
            log.write(json.dumps(entry) + "\n")
            log.flush()
            print(
                f"{stream}, {share}: alignment {percent(entry['alignment change'])}, {entry['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
