"""Memory of the driver of a run on a cluster: plan, waves, journal and report of many images. None is generated.

    python benchmarks/driver_memory.py --images 1000000

Prompts and groups (one to five images each) are made up.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cotrunk.cluster.driver import Driver
from cotrunk.cluster.loop import Pass
from cotrunk.cluster.manifest import Finished
from cotrunk.cluster.run import setup_of
from cotrunk.cluster.run_place import placed
from cotrunk.cluster.setup import Setup
from cotrunk.cluster.waves import Cut, cut
from cotrunk.planning.plan import Plan
from cotrunk.planning.sharing import derived_seed
from cotrunk.planning.tree import flat_tree, packed
from cotrunk.runs.events import ignore
from cotrunk.runs.facts import PipelineFacts
from cotrunk.runs.images import digest_of
from cotrunk.runs.job import Job
from cotrunk.runs.job_plan import JobPlan, job_plan
from cotrunk.runs.journal import Line
from cotrunk.settings import Sharing

BATCH = 16  # images of a line of the journal


class Planned(BaseException):
    """Raised when the first pass would start."""


def plan_of(job: Job) -> JobPlan:
    """Return a plan with groups of one to five random images."""
    order, trees, place = np.random.default_rng(0).permutation(len(job.prompts)).tolist(), [], 0
    while place < len(order):
        size = 1 + place % 5
        trees += flat_tree(order[place : place + size], 6, 30, 0.6)
        place += size
    trees.sort(key=lambda tree: tree.images)
    seeds = tuple(derived_seed(0, number) for number in range(len(order)))
    sharing = Sharing(noise="own", trunk_guidance=0.0)
    plan = Plan(tuple(job.texts), seeds, tuple(trees), 30, 30, 2, 1, False, sharing, 0.555)
    return job_plan(job, [(range(len(order)), plan)])


def finished(wave: str, own: Cut) -> Finished:
    """Return what a painter reports about a wave: a line per batch, with digests that differ."""
    lines = []
    for trees in packed(own.trees, BATCH):
        images = tuple(image for tree in trees for image in tree.images)
        count = len(images)
        lines.append(
            Line(
                arm=own.arm.name,
                images=images,
                failed=(),
                flagged=(),
                rows=(count * 50, count * 60),
                spared={"sharing": count * 10, "skipping": 0, "guidance": 0, "replay": 0},
                image_rows=(50.3333,) * count,
                steps=tuple("S" * 6 + "C" * 24 for _ in images),
                seconds={"embed": 0.0, "denoise": 12.345678, "decode": 0.123456},
                digests=tuple(digest_of(f"{image}".encode()) for image in images),
            )
        )
    return Finished(wave, own.rows, 10.0, "machine", lines=tuple(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--wave", type=int, default=64)
    asked = parser.parse_args()
    begin = time.process_time()

    def lap(what: str) -> None:
        nonlocal begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
        print(f"{what}: {time.process_time() - begin:.1f} CPU seconds, peak {peak:.2f} GiB", flush=True)
        begin = time.process_time()

    def start(files: Sequence[str], setup: Setup) -> Pass:
        raise Planned

    lap("imports")
    job = Job(tuple(f"A photograph of number {i} of a million things, in the snow" for i in range(asked.images)))
    lap("prompts")
    with tempfile.TemporaryDirectory() as out, placed(Path(out, "run")) as place, place.held():
        job = place.folder.named(job)
        driver = Driver(job, place, setup_of(job, place.files.place), "cpu", start, ignore, 0.0, asked.wave)
        driver.facts = PipelineFacts("DDIMScheduler", "cpu", "float32", 5.0)
        driver._follow(plan_of(job))
        lap("plan")
        driver.plan.save(place.folder.path / "plan.json")
        lap("plan.json")
        driver._write_report()
        lap("run.json")
        cuts = cut(driver.arms, asked.wave, lambda arm, tree: True)
        lap(f"{len(cuts):,} waves cut")
        try:
            driver._paint_cuts(cuts)
        except Planned:
            size = sum(path.stat().st_size for path in place.folder.path.glob("waves/*"))
            lap(f"waves written, {size / 2**20:.0f} MiB")
        driver.folder.files.is_intact = lambda name, digest: True  # type: ignore[method-assign]
        driver.knows_pipeline = True
        for number, each in enumerate(cuts):
            driver._join([finished(f"wave{number}", each)])
        lap("all waves joined")
        driver._write_report()
        lap("report and pages")


if __name__ == "__main__":
    main()
