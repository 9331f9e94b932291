"""The tables and the figure of `benchmarks/service.py`."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from service_load import Answer

from cotrunk.files import write_text
from cotrunk.plotting import new_figure

SERVERS = ("cotrunk", "no sharing", "no skipping", "bare", "plain loop")
SETTLED = 60.0  # seconds after which memory is compared: until then the first images are made


def overload_point(
    answers: Sequence[Answer], memory: Sequence[tuple[float, list[float]]], rate: float
) -> dict[str, Any]:
    """Return what became of an overload.

    Args:
        answers: to all requests.
        memory: seconds, and resident MiB of the API process and of the worker.
        rate: requests per second.
    """
    done = sorted((answer for answer in answers if answer.status == 200), key=lambda answer: answer.sent)
    refused = [answer for answer in answers if answer.status == 429]
    end = max(answer.sent for answer in answers)
    # a refused request is asked to come back when there is room: compare with when the next one was taken
    accepted = np.array([answer.sent for answer in done])
    asked, room = [], []
    for answer in refused:
        later = accepted[accepted > answer.ended]
        if len(later) and answer.retry_after is not None:
            asked.append(answer.retry_after)
            room.append(float(later[0] - answer.ended))
    half = SETTLED if end > 2 * SETTLED else end / 2
    early = [sum(parts) for at, parts in memory if half / 2 <= at <= half]
    late = [sum(parts) for at, parts in memory if end - half / 2 <= at <= end]
    return {
        "rate": rate,
        "requests": len(answers),
        "done": len(done),
        "refused": len(refused),
        "other": len(answers) - len(done) - len(refused),
        "per_second": len(done) / max(answer.ended for answer in done),
        "p50": statistics.median(answer.seconds for answer in done),
        "p99": float(np.percentile([answer.seconds for answer in done], 99)),
        "refusal_p99": float(np.percentile([answer.seconds for answer in refused], 99)) if refused else None,
        "asked_median": statistics.median(asked) if asked else None,
        "room_median": statistics.median(room) if room else None,
        "memory_early": statistics.mean(early) if early else None,
        "memory_late": statistics.mean(late) if late else None,
        "memory_most": max(sum(parts) for _, parts in memory),
        "memory": memory,
    }


def write_report(points: Sequence[dict[str, Any]], out: Path) -> None:
    """Write `load.md` and `load.png`."""
    lines = ["# The service under load", "", "`python benchmarks/service.py --out docs/results/service`", ""]
    lines += _throughput(points) + _latency(points)
    (over,) = [point for point in points if point["stage"] == "overload"]
    lines += _overload(over)
    write_text(out / "load.md", "\n".join(lines) + "\n")
    _figure(points, over, out / "load.png")


def _of(points: Sequence[dict[str, Any]], stage: str, server: str, prompts: str, value: str) -> list[float]:
    return [
        point[value]
        for point in points
        if (point["stage"], point["server"], point.get("prompts")) == (stage, server, prompts)
    ]


def _throughput(points: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "## Throughput with a full queue",
        "",
        "Images per second: the median of the runs, with the smallest and the largest.",
        "",
        "| server | template prompts | rows saved | unrelated prompts | rows saved |",
        "|---|---:|---:|---:|---:|",
    ]
    for server in SERVERS:
        cells = []
        for prompts in ("template", "unrelated"):
            speeds = _of(points, "throughput", server, prompts, "images_per_second")
            saved = statistics.median(_of(points, "throughput", server, prompts, "saved"))
            cells += [f"{statistics.median(speeds):.2f} ({min(speeds):.2f} to {max(speeds):.2f})", f"{saved:.0%}"]
        lines.append(f"| {server} | {' | '.join(cells)} |")
    lines += ["", "Ratios of one run, as medians with the smallest and the largest:", ""]
    for one, other, prompts, what in (
        ("cotrunk", "no sharing", "template", "sharing on template prompts, in addition to skipping"),
        ("no skipping", "bare", "template", "sharing on template prompts, without skipping"),
        ("cotrunk", "plain loop", "template", "all of cotrunk on template prompts"),
        ("cotrunk", "plain loop", "unrelated", "all of cotrunk on unrelated prompts"),
        ("cotrunk", "no sharing", "unrelated", "the overhead of looking for similar prompts"),
        ("bare", "plain loop", "unrelated", "the service itself, and calls of many images"),
    ):
        pairs = zip(
            _of(points, "throughput", one, prompts, "images_per_second"),
            _of(points, "throughput", other, prompts, "images_per_second"),
            strict=True,
        )
        ratios = [first / second for first, second in pairs]
        lines.append(
            f"- {what} ({one} / {other}): {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )
    return [*lines, ""]


def _latency(points: Sequence[dict[str, Any]]) -> list[str]:
    rates = [point["rate"] for point in points if point["stage"] == "latency"]
    sizes = [point["requests"] for point in points if point["stage"] == "latency"]
    lines = [
        "## Latency at half load",
        "",
        f"Requests come at random times, {statistics.mean(rates):.2f} per second: half of what the service can do "
        f"without sharing. {sizes[0]} requests each.",
        "",
        "| prompts | p50 without sharing | p50 | ratio | p99 without sharing | p99 | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for prompts in ("template", "unrelated"):
        cells = []
        for value in ("p50", "p99"):
            apart = statistics.median(_of(points, "latency", "no sharing", prompts, value))
            own = statistics.median(_of(points, "latency", "cotrunk", prompts, value))
            cells += [f"{apart:.2f} s", f"{own:.2f} s", f"{own / apart:.2f}"]
        lines.append(f"| {prompts} | {' | '.join(cells)} |")
    return [*lines, ""]


def _overload(over: dict[str, Any]) -> list[str]:
    return [
        "## Four times as many requests as it can answer",
        "",
        f"{over['minutes']:g} minutes at {over['rate']:.1f} requests per second; "
        f"`--max-queued-rows` leaves room for 64 waiting images.",
        "",
        "| | |",
        "|---|---:|",
        f"| requests | {over['requests']:,} |",
        f"| accepted and finished | {over['done']:,} ({over['per_second']:.2f} per second) |",
        f"| refused with 429 | {over['refused']:,} |",
        f"| anything else | {over['other']:,} |",
        f"| latency of finished ones, p50 and p99 | {over['p50']:.1f} s and {over['p99']:.1f} s |",
        f"| time to refuse, p99 | {over['refusal_p99'] or 0:.2f} s |",
        f"| Retry-After, median | {over['asked_median'] or 0:.2f} s |",
        f"| time until the next request was taken, median | {over['room_median'] or 0:.2f} s |",
        f"| memory of both processes, after a minute | {over['memory_early'] or 0:.0f} MiB |",
        f"| at the end | {over['memory_late'] or 0:.0f} MiB |",
        f"| the most | {over['memory_most']:.0f} MiB |",
        "",
        "![Throughput, latency and memory](load.png)",
    ]


def _figure(points: Sequence[dict[str, Any]], over: dict[str, Any], path: Path) -> None:
    figure = new_figure(figsize=(11, 3.4), layout="constrained")
    bars, waits, memory = figure.subplots(1, 3)
    for shift, prompts in ((-0.2, "template"), (0.2, "unrelated")):
        speeds = [statistics.median(_of(points, "throughput", s, prompts, "images_per_second")) for s in SERVERS]
        bars.bar(np.arange(len(SERVERS)) + shift, speeds, 0.38, label=f"{prompts} prompts")
    bars.set_xticks(range(len(SERVERS)), [server.replace(" ", "\n") for server in SERVERS], fontsize=8)
    bars.set_ylabel("images per second")
    bars.set_ylim(0, bars.get_ylim()[1] * 1.25)
    bars.legend(fontsize=8, loc="upper right")
    bars.set_title("Full queue", fontsize=10)
    labels = [f"{prompts}\n{value}" for prompts in ("template", "unrelated") for value in ("p50", "p99")]
    for shift, server in ((-0.2, "no sharing"), (0.2, "cotrunk")):
        found = [
            statistics.median(_of(points, "latency", server, prompts, value))
            for prompts in ("template", "unrelated")
            for value in ("p50", "p99")
        ]
        waits.bar(np.arange(4) + shift, found, 0.38, label=server)
    waits.set_xticks(range(4), labels, fontsize=8)
    waits.set_ylabel("seconds")
    waits.legend(fontsize=8)
    waits.set_title("Half load", fontsize=10)
    times = [at / 60 for at, _ in over["memory"]]
    for place, label in enumerate(("API process", "worker")):
        own = [parts[place] if len(parts) > place else np.nan for _, parts in over["memory"]]
        memory.plot(times, own, label=label)
    memory.set_xlabel("minutes at four times the capacity")
    memory.set_ylabel("resident MiB")
    memory.set_ylim(0)
    memory.legend(fontsize=8)
    memory.set_title("Memory", fontsize=10)
    figure.savefig(path, dpi=110)
