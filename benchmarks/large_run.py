"""CPU seconds and bytes of runs with many images: writing, resuming, reporting; and how long their page takes to load.

    python benchmarks/large_run.py --images 1000 10000 100000 --out DIR

The images are made up, and so is the time they took. Everything else is what a real run does: image files with their
metadata, the journal, plan.json, run.json and the page are written, and the finished run is resumed. Each size runs in
a process of its own. DIR gets runs.json and table.md. The page is loaded in Chromium, if there is one.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
GROUP, BATCH = 4, 32  # images
STEPS, SHARED = 30, 6
DIFFERENT = 16  # images
THINGS = ("fox", "lighthouse", "teapot", "bicycle", "castle", "whale", "robot", "violin", "bridge", "orchid")
PLACES = ("in a forest", "on a beach", "in a library", "under water", "on the moon", "in a market", "on a table")
CHROMIUM = os.environ.get("COTRUNK_CHROMIUM", "/usr/bin/chromium")
LOADS = 5  # times that a page is loaded
# what is measured -> its title in the table
SECONDS = {
    "write": "writing the images and the journal",
    "begin": "first report and plan.json",
    "report": "last report and page",
    "resume": "resuming the finished run",
    "progress": "progress, once more",
    "load": "reading the report",
}
FILES = {
    "run.json": ["run.json"],
    "its lists": ["prompts.jsonl", "groups.jsonl", "images.jsonl"],
    "journal.jsonl": ["journal.jsonl"],
    "plan.json": ["plan.json"],
    "index.html": ["index.html"],
    "further pages": ["pages"],
    "thumbnails": ["thumbs"],
    "images": ["images"],
}


def prompts(count: int) -> list[str]:
    """Return different prompts, of which four in a row are similar."""
    return [
        f"a {THINGS[i // 4 % len(THINGS)]} {PLACES[i // 40 % len(PLACES)]}, number {i // 4}, variation {i % 4}"
        for i in range(count)
    ]


def image_of(number: int, side: int) -> Any:
    """Return a smooth image."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(2 * np.pi * (x * (1 + number % 4) + y * (1 + number // 4)) + phase) for phase in (0, 2, 4)]
    return Image.fromarray(np.uint8(127.5 + 127 * np.stack(waves, -1)))


def batches(plan: Any, side: int) -> Iterator[Any]:
    """Yield the batches of a plan as a run does."""
    from cotrunk.execution import Batch

    made = [image_of(number, side) for number in range(DIFFERENT)]
    skipped = "S" * SHARED + "CCPPCPPP" * 3
    for trees in plan.batches(BATCH):
        images, cost = tuple(image for tree in trees for image in tree.images), plan.cost_of(trees)
        yield Batch(
            images=images,
            output=SimpleNamespace(images=[made[image % DIFFERENT] for image in images]),
            failed=(),
            flagged=(),
            cost=cost,
            spared={"sharing": cost.independent - cost.used, "guidance": 0, "skipping": 0},
            steps=(skipped,) * len(images),
            rows=(cost.used / len(images),) * len(images),
            seconds={"embed": 0.1, "denoise": 20.0, "decode": 0.5},
        )


def measured(count: int, folder: Path, side: int) -> dict[str, Any]:
    """Write a run, resume it, and return CPU seconds, bytes and the peak of memory."""
    from cotrunk import Settings, Sharing, Skipping
    from cotrunk.planning.plan import Plan
    from cotrunk.planning.tree import flat_tree
    from cotrunk.runs.arm import main_arms
    from cotrunk.runs.facts import PipelineFacts
    from cotrunk.runs.folder import RunFolder
    from cotrunk.runs.job import Job
    from cotrunk.runs.job_plan import job_plan
    from cotrunk.runs.report import RunReport
    from cotrunk.runs.resume import begin_or_resume, finished_report

    seconds = {}

    def timed(what: str, do: Callable[[], Any]) -> Any:
        begin = time.process_time()
        found = do()
        seconds[what] = round(time.process_time() - begin, 3)
        return found

    skipping = Skipping()
    job = Job(tuple(prompts(count)), Settings(Sharing.published(), skipping, None, STEPS), guidance_scale=7.5)
    groups = [range(first, min(first + GROUP, count)) for first in range(0, count, GROUP)]
    trees = tuple(tree for group in groups for tree in flat_tree(group, SHARED, STEPS, 0.7))
    seeds = tuple(1_000 + image // GROUP for image in range(count))
    plan = Plan(tuple(job.texts), seeds, trees, STEPS, STEPS, sharing=job.settings.sharing, threshold=0.6)
    run = RunFolder(folder)
    job = run.named(job)
    job.check_files()
    whole = job_plan(job, [(range(count), plan)])
    arms = main_arms(whole, job.naming, job.ids)
    facts = PipelineFacts("DDIMScheduler", "cpu", "float32", 7.5, skipping)

    def begin() -> None:
        run.make()
        run.write_report(job, facts, whole, arms, {"load": 1.0})
        whole.save(folder / "plan.json")

    def write() -> None:
        for batch in batches(plan, side):
            run.write_batch(arms[0], batch, job, facts)

    def resume() -> Any:
        later = RunFolder(folder)
        again = later.named(job)
        assert begin_or_resume(later, again, resume=True)
        return finished_report(later, len(again.prompts))

    timed("begin", begin)
    timed("write", write)
    report = timed("report", lambda: run.write_report(job, facts, whole, arms, {"load": 1.0, "total": 9.0}))
    assert report.status == "done"
    timed("progress", lambda: run.progress(arms[0]))
    assert timed("resume", resume) == report
    assert timed("load", lambda: RunReport.load(folder)) == report
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / (1024 if sys.platform == "darwin" else 1)
    bytes_of = {title: sum(size(folder / name) for name in names) for title, names in FILES.items()}
    most = max(len(names) for _, _, names in os.walk(folder))
    return {"images": count, "seconds": seconds, "bytes": bytes_of, "peak": round(peak), "most files": most}


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 if there is none."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


def loads(folder: Path) -> dict[str, float]:
    """Return the milliseconds until pages are loaded, the median of several; nothing without a browser."""
    if shutil.which(CHROMIUM) is None:
        return {}
    from playwright.sync_api import sync_playwright

    sheets = sorted(folder.glob("pages/*.html"))
    pages = {"front page": folder / "index.html", **({"further page": sheets[len(sheets) // 2]} if sheets else {})}
    found = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, path in pages.items():
            taken = []
            for _ in range(LOADS):
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                page.goto(path.resolve().as_uri(), wait_until="load")
                taken.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
                page.close()
            found[name] = round(statistics.median(taken))
        browser.close()
    return found


def table(runs: list[dict[str, Any]]) -> str:
    """Return the results as a table in Markdown."""
    lines = [["", *(f"{run['images']:,} images" for run in runs)]]
    lines.append(["**CPU seconds**", *("" for _ in runs)])
    for name, title in SECONDS.items():
        lines.append([title, *(f"{run['seconds'][name]:,.2f}" for run in runs)])
    lines.append(["**MB**", *("" for _ in runs)])
    for title in FILES:
        lines.append([title, *(f"{run['bytes'][title] / 1e6:,.3f}" for run in runs)])
    lines.append(["**page, ms until it is loaded**", *("" for _ in runs)])
    for name in ("front page", "further page"):
        lines.append([name, *(str(run["loads"].get(name, "-")) for run in runs)])
    lines.append(["**other**", *("" for _ in runs)])
    lines.append(["peak of memory, MiB", *(f"{run['peak']:,}" for run in runs)])
    lines.append(["most files in one folder", *(f"{run['most files']:,}" for run in runs)])
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], "|---" + "|---:" * len(runs) + "|", *text[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000], metavar="N")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--side", type=int, default=64, metavar="N", help="of the images; more than 192 have thumbnails"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # a child process
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.images[0], arguments.out, arguments.side)))
        return
    runs = []
    for count in arguments.images:
        folder = arguments.out / f"run-{count}"
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, __file__, "--one", "--images", str(count), "--out", str(folder)]
        command += ["--side", str(arguments.side)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        runs.append({**json.loads(child.stdout), "loads": loads(folder)})
        print(json.dumps(runs[-1]), flush=True)
        if not arguments.keep:
            shutil.rmtree(folder)
    (arguments.out / "runs.json").write_text(json.dumps(runs, indent=1) + "\n")
    (arguments.out / "table.md").write_text(table(runs) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
