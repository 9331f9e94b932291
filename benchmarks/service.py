"""Measure the service under load: throughput, latency, and what happens at four times its capacity.

    python benchmarks/service.py --out docs/results/service      # 30 minutes on two quiet cores

It needs two idle cores: one for the worker, one for the HTTP processes and the load. Everything runs over HTTP on this
machine, on `mini` with its own 30 steps, as an open loop. Five servers run at the same time, and the load goes to one
after another, so that drift affects all:

- cotrunk: `cotrunk serve` as it is;
- no sharing: `cotrunk serve --max-group 1 --trunks off`;
- no skipping: `cotrunk serve --no-skip`, which shares;
- bare: both, so that it computes what the plain loop computes;
- plain loop: `benchmarks/service_plain.py`.

Template prompts are 48 prompts in which things come in four styles or colours, in random order. Unrelated prompts are
about 50 of which no two may share. Writes `load.md`, `load.png` and `points.jsonl`.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from service_load import Answer, Server, load, servers
from service_report import overload_point, write_report
from similar_prompts import PROMPTS

from cotrunk.mini import load as load_mini
from cotrunk.planning.embedding import pipeline_encoder
from cotrunk.planning.threshold import RELATED, auto_threshold

COTRUNK, APART, SHARING, BARE, PLAIN = "cotrunk", "no sharing", "no skipping", "bare", "plain loop"
OPTIONS = {
    COTRUNK: (),
    APART: ("--max-group", "1", "--trunks", "off"),
    SHARING: ("--no-skip",),
    BARE: ("--max-group", "1", "--trunks", "off", "--no-skip"),
}
TEMPLATES = 48
AT_ONCE = 50.0  # requests per second: the queue fills long before the first image is done
GUIDANCE = 5.0  # of mini; each run has a slightly different one, so that no trunk of an earlier run fits
ROWS = 60  # of one image
QUEUE_IMAGES = 64  # that may wait in the overloaded service


def template_prompts(seed: int) -> list[str]:
    """Return prompts in which things come in several styles or colours, in random order."""
    draw = random.Random(seed)
    things = draw.sample(range(32), TEMPLATES // 4)
    prompts = [PROMPTS[4 * thing + look] for thing in things for look in range(4)]
    draw.shuffle(prompts)
    return prompts


def unrelated_prompts() -> list[str]:
    """Return prompts of which no two are similar enough to share."""
    encoder = pipeline_encoder(load_mini())
    threshold = auto_threshold(encoder)
    pool = [*PROMPTS, *(prompt for pair in RELATED for prompt in pair)]
    vectors = encoder.encode(pool)
    cosines, best = vectors @ vectors.T, list[int]()
    for seed in range(20):
        chosen = list[int]()
        for place in random.Random(seed).sample(range(len(pool)), len(pool)):
            if (cosines[place, chosen] < threshold).all():
                chosen.append(place)
        best = max(best, chosen, key=len)
    return [pool[place] for place in best]


def commands(data: Path, queued_rows: int) -> dict[str, Sequence[str]]:
    """Return the command lines of the servers."""
    plain = str(Path(__file__).parent / "service_plain.py")
    limit = ("--max-queued-rows", str(queued_rows), "--requests-per-minute", "0")
    served = {
        name: ("-m", "cotrunk", "serve", "--model", "mini", "--data", str(data / name.replace(" ", "-")), *own, *limit)
        for name, own in OPTIONS.items()
    }
    return {**served, PLAIN: (plain,)}


def throughput(server: Server, prompts: Sequence[str], run: int) -> dict[str, float]:
    """Return images per second of a server whose queue is full, and the part of the rows that it saves."""
    answers = asyncio.run(load(server.url, prompts, AT_ONCE, seed=run, guidance_scale=GUIDANCE + run * 1e-6))
    assert all(answer.status == 200 for answer in answers), [answer.status for answer in answers]
    seconds = max(answer.ended for answer in answers)
    used = [answer.usage["rows"] for answer in answers if answer.usage]
    saved = 1 - sum(rows["computed"] for rows in used) / sum(rows["independent"] for rows in used) if used else 0.0
    return {"images_per_second": len(answers) / seconds, "saved": saved}


def latency(server: Server, prompts: Sequence[str], rate: float, run: int) -> dict[str, float]:
    """Return the latency of a server that has half as much to do as it can."""
    answers = asyncio.run(load(server.url, prompts, rate, seed=run, guidance_scale=GUIDANCE + run * 1e-6))
    assert all(answer.status == 200 for answer in answers)
    seconds = [answer.seconds for answer in answers]
    return {"p50": statistics.median(seconds), "p99": float(np.percentile(seconds, 99)), "requests": len(seconds)}


def overload(server: Server, prompts: Sequence[str], rate: float, minutes: float) -> dict[str, Any]:
    """Send four times as many requests as a server can answer, and return what becomes of them."""
    count = int(rate * minutes * 60)
    stream = [prompts[number % len(prompts)] for number in range(count)]
    memory = list[tuple[float, list[float]]]()
    answers: list[Answer] = asyncio.run(
        load(server.url, stream, rate, seed=9, watch=lambda at: memory.append((at, server.memory())))
    )
    return overload_point(answers, memory, rate)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3, help="runs of each server with each list of prompts")
    parser.add_argument("--minutes", type=float, default=10.0, help="of overload")
    parser.add_argument("--images", type=int, default=48, help="prompts per run with a full queue")
    parser.add_argument("--requests", type=int, default=96, help="at half load")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    points, unrelated = list[dict[str, Any]](), unrelated_prompts()
    with tempfile.TemporaryDirectory() as folder, servers(commands(Path(folder), 10**6), Path(folder)) as running:
        for server in running.values():  # the first forward passes of a process are slow
            asyncio.run(load(server.url, unrelated[:2], AT_ONCE, guidance_scale=GUIDANCE - 1e-3))
        for run in range(given.runs):
            for kind, prompts in (("template", template_prompts(run)), ("unrelated", unrelated)):
                for name, server in running.items():
                    found = throughput(server, prompts[: given.images], 2 * run + (kind == "template"))
                    points.append({"stage": "throughput", "server": name, "prompts": kind, "run": run, **found})
                    print(points[-1], flush=True)
        speeds = [p["images_per_second"] for p in points if p["server"] == APART and p["prompts"] == "unrelated"]
        half = statistics.mean(speeds) / 2
        for number, kind in enumerate(("template", "unrelated")):
            prompts = [*template_prompts(9), *template_prompts(10)] if kind == "template" else [*unrelated, *unrelated]
            for name in (COTRUNK, APART):
                found = latency(running[name], prompts[: given.requests], half, 100 + number)
                points.append({"stage": "latency", "server": name, "prompts": kind, "rate": half, **found})
                print(points[-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = {COTRUNK: commands(Path(folder), QUEUE_IMAGES * ROWS)[COTRUNK]}
        with servers(command, Path(folder)) as running:
            fast = [p["images_per_second"] for p in points if p["server"] == COTRUNK and p["stage"] == "throughput"]
            rate = 4 * statistics.mean(fast)
            found = overload(running[COTRUNK], [*template_prompts(0), *unrelated], rate, given.minutes)
            points.append({"stage": "overload", "server": COTRUNK, "minutes": given.minutes, **found})
    (given.out / "points.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    write_report(points, given.out)


if __name__ == "__main__":
    main()
