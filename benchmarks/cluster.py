"""Measure what Ray costs: against one process on the same cores, and with many simulated painters.

    python benchmarks/cluster.py --out docs/results/cluster     # an hour on two quiet cores; parts: --only

"one": `cotrunk generate` against `cotrunk generate --ray local` with one painter that has the same cores, on `mini`, in
turn. The files of the images tell when each was ready. The time per image counts from the end of the first wave to the
last image, so it is without what happens once (imports, Ray's start, loading), which is given beside it. Images are
compared. Every round is written at once; a command that was stopped makes the rounds that are missing.

"many": the loop, the passes and the manifest with painters that sleep in proportion to the rows of a wave, at most 64
on the two cores. Waves are those of random groups, heaviest first. A painter's time counts from the start of its first
wave to the end of the last wave of all, so waiting for the next wave and the tail count, and starting processes does
not: that is given beside it. Writes points.jsonl and table.md.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skipping import PROMPTS

from cotrunk.cluster.connecting import QUIET
from cotrunk.files import read_lines, write_text

IMAGES = 480  # two of each prompt
WAVE = 96  # images: 14 seconds on two cores; three batches, as in one process
WORKERS = (1, 2, 4, 8, 16, 32, 64)
WAVES = 8  # per worker
SECONDS = 10.0  # of a wave on average


def run(out: Path, cores: int, *options: str) -> dict[str, float]:
    """Generate the images with `mini`. Return the seconds of the whole process, and those per image."""
    prompts = out.with_suffix(".txt")
    prompts.write_text("\n".join(PROMPTS[: IMAGES // 2]) + "\n", "utf-8")
    command = [sys.executable, "-m", "cotrunk", "generate", "--prompts", str(prompts), "--model", "mini"]
    command += ["--images-per-prompt", "2", "--share", "0", "--out", str(out), *options]
    # with the settings of memory that `--ray local` gives its painters, and which make a process alone 7 % faster too
    memory = {name: value for name, value in QUIET.items() if name.startswith("MALLOC_")}
    begin = time.perf_counter()
    own = os.environ | memory | {"OMP_NUM_THREADS": str(cores)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=own)
    whole = time.perf_counter() - begin
    ready = sorted(path.stat().st_mtime for path in (out / "images").rglob("*.png"))
    later = [at for at in ready if at > ready[WAVE - 1] + 1]  # the batch of an image is written within a second
    return {"whole": whole, "each": (ready[-1] - ready[-len(later) - 1]) / len(later)}


def differences(one: Path, other: Path) -> tuple[int, int]:
    """Return how many images two runs have in common, and the largest difference of their values, of 255."""
    names = sorted(path.relative_to(one) for path in (one / "images").rglob("*.png"))
    largest = 0
    for name in names:
        pair = [np.asarray(Image.open(folder / name)).astype(int) for folder in (one, other)]
        largest = max(largest, int(np.abs(pair[0] - pair[1]).max()))
    return len(names), largest


def overhead(number: int, cores: int) -> dict[str, Any]:
    """Return the seconds of one process and of a cluster of one painter, in turn."""
    ways = {"process": (), "ray": ("--ray", "local", "--painters", "1", "--wave", str(WAVE))}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        point = dict[str, Any](kind="one", round=number, cores=cores)
        for name in sorted(ways, reverse=number % 2 == 1):
            point[name] = run(place / name, cores, *ways[name])
        point["images"], point["largest"] = differences(place / "process", place / "ray")
    once = [point[name]["whole"] - IMAGES * point[name]["each"] for name in ways]
    return point | {"overhead": point["ray"]["each"] / point["process"]["each"] - 1, "once": once}


def simulated() -> type:
    """Return a painter that sleeps. Ray copies the class, so that its processes import nothing else."""

    class Sleeper:
        def __init__(self, place: str, seconds: float) -> None:
            self.place, self.seconds = place, seconds

        def __call__(self, wave: Mapping[str, Any]) -> str:
            import json
            import os
            import time

            name, rows, begin = wave["id"], wave["rows"], time.time()
            time.sleep(rows * self.seconds)
            part = {"wave": name, "rows": rows, "seconds": time.time() - begin, "machine": str(os.getpid())}
            path = os.path.join(self.place, "manifest", f"{name}.jsonl")  # noqa: PTH118
            with open(path + ".part", "w") as file:  # noqa: PTH123
                file.write(json.dumps(part) + "\n")
            with open(os.path.join(self.place, f"{name}.times"), "w") as file:  # noqa: PTH118, PTH123
                file.write(json.dumps([os.getpid(), begin, time.time()]))
            os.replace(path + ".part", path)  # noqa: PTH105
            return ""

    return Sleeper


def random_waves(count: int) -> list[Any]:
    """Return waves of 32 images in groups of one to five that share and skip, heaviest first."""
    from cotrunk.cluster.waves import Wave

    draw, waves = random.Random(count), []
    for number in range(count):
        images = rows = 0
        while images < 32:
            group = min(draw.choice((1, 1, 2, 3, 4, 5)), 32 - images)
            images, rows = images + group, rows + round(group * 50 * draw.uniform(0.8, 1.0) + 6)
        waves.append(Wave(f"{number:024x}", rows, images))
    return sorted(waves, key=lambda wave: -wave.rows)


def many(workers: int) -> dict[str, Any]:
    """Return the efficiency of so many simulated painters."""
    import ray

    from cotrunk.cluster.loop import finish
    from cotrunk.cluster.passes import Pool, RayPass
    from cotrunk.cluster.watchdog import Watchdog
    from cotrunk.cluster.waves import write_waves
    from cotrunk.storage.files import StoredFiles

    waves = random_waves(workers * WAVES)
    seconds = SECONDS / statistics.mean(wave.rows for wave in waves)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "manifest").mkdir()
        files = [path for path, _ in write_waves(waves, StoredFiles(folder))]
        arguments = {"place": folder, "seconds": seconds}
        pool, painter = Pool(workers, 0.0, None), simulated()
        begin = time.time()
        start: Callable[[Sequence[str]], RayPass] = lambda ids: RayPass(files, painter, arguments, pool)  # noqa: E731
        finish(waves, start, StoredFiles(folder), Watchdog(time.monotonic))
        whole = time.time() - begin
        times = [json.loads(path.read_text()) for path in place.glob("*.times")]
    assert ray.is_initialized()
    assert len(times) == len(waves)
    end = max(time[2] for time in times)
    first = dict[int, float]()
    for process, at, _ in times:
        first[process] = min(at, first.get(process, at))
    busy = sum(stop - at for _, at, stop in times)
    last = [max(stop for own, _, stop in times if own == process) for process in first]
    return {
        "kind": "many",
        "workers": workers,
        "waves": len(waves),
        "processes": len(first),
        "efficiency": busy / sum(end - at for at in first.values()),
        "tail": sum(end - stop for stop in last) / sum(end - at for at in first.values()),
        "begin": max(first.values()) - begin,
        "noticed": whole - (end - begin),
        "seconds": end - min(first.values()),
        "with_start": busy / workers / whole,
    }


def table(points: Sequence[dict[str, Any]]) -> str:
    """Return both tables."""
    lines = ["# What Ray costs", "", "`python benchmarks/cluster.py --out docs/results/cluster`", ""]
    own = [point for point in points if point["kind"] == "one"]
    if own:
        middle = lambda values: statistics.median(list(values))  # noqa: E731
        over = [point["overhead"] for point in own]
        wave = WAVE * middle(point["ray"]["each"] for point in own)
        lines += [
            f"One process against one painter on the same {own[0]['cores']} cores, {IMAGES} images of `mini` in waves "
            f"of {WAVE} ({wave:.1f} s), {len(own)} rounds:",
            "",
            "| | seconds per image | whole process | of which once |",
            "|---|---:|---:|---:|",
        ]
        for place, (name, label) in enumerate((("process", "one process"), ("ray", "Ray"))):
            each, whole = (middle(point[name][what] for point in own) for what in ("each", "whole"))
            lines.append(f"| {label} | {each:.4f} | {whole:.1f} s | {middle(p['once'][place] for p in own):.1f} s |")
        lines += [
            "",
            f"Overhead per image: {middle(over):+.1%} ({min(over):+.1%} to {max(over):+.1%}). Of {own[0]['images']} "
            f"images, the largest difference of a value is {max(p['largest'] for p in own)} of 255.",
            "",
        ]
    own = sorted((point for point in points if point["kind"] == "many"), key=lambda point: point["workers"])
    if own:
        lines += [
            f"Simulated painters on two cores, {WAVES} waves of {SECONDS:g} s for each:",
            "",
            "| painters | waves | efficiency | of which lost at the end | with the start of the processes | "
            "until all work |",
            "|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {p['workers']} | {p['waves']} | {p['efficiency']:.1%} | {p['tail']:.1%} | {p['with_start']:.1%} | "
            f"{p['begin']:.0f} s |"
            for p in own
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=("one", "many"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "points.jsonl"
    points = read_lines(file) if file.exists() else []

    def add(new: Sequence[dict[str, Any]]) -> None:
        points.extend(new)
        with file.open("a", encoding="utf-8") as log:
            log.writelines(json.dumps(point) + "\n" for point in new)
        write_text(given.out / "table.md", table(points))
        print(new, flush=True)

    if given.only != "many":
        for number in range(sum(point["kind"] == "one" for point in points), given.rounds):
            add([overhead(number, os.cpu_count() or 1)])
    if given.only != "one":
        import ray

        for workers in given.workers:
            if any(point.get("workers") == workers for point in points):
                continue
            how = {"object_store_memory": 2**28, "include_dashboard": False, "log_to_driver": False}
            ray.init("local", num_cpus=workers, **how)
            try:
                add([many(workers)])
            finally:
                ray.shutdown()
    write_text(given.out / "table.md", table(points))


if __name__ == "__main__":
    main()
