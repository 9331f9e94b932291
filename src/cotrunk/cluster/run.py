"""Run a job on a Ray cluster: check it, connect, look at the machines, and let the driver do the rest."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..errors import CotrunkError
from ..lock import FolderLock, held
from ..pipelines import loading
from ..runs.events import OnEvent, ignore
from ..runs.folder import WRITTEN, RunFolder
from ..runs.job import Job
from ..runs.part_pipelines import check_parts
from ..runs.parts import check_rows, copies_of
from ..runs.resume import begun
from ..runs.row_inputs import checked_inputs, inputs_of
from ..runs.runner import given_parts
from . import attempts, failed, manifest
from .connecting import PAINTER, Cluster, connected, places_of
from .driver import WAVES, ClusterReport, Driver
from .loop import Pass
from .painter import Painter
from .probe import probe
from .setup import Setup
from .waves import size_of_waves

EXAMPLES = 20  # prompts with input images that are looked for on each machine before the run begins
OWN = tuple(f"{name}/" for name in (WAVES, manifest.FOLDER, attempts.FOLDER, failed.FOLDER))


def run_on_cluster(
    job: Job,
    out: str | Path,
    cluster: Cluster,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    on_event: OnEvent = ignore,
    begin: float | None = None,
    plan: str | Path | None = None,
) -> ClusterReport:
    """Run a job on a Ray cluster. The folder `out` must be one that all machines see.

    The arguments are as for `runner.run_job`.

    Args:
        job: without a comparison, a share or a trunk cache.
        out: the folder of the run.
        cluster: the cluster, and how the run uses it.
        resume: continue an earlier part of the same job, of a cluster or of a single machine.
        retry_failed: generate images that contain NaN once more with new seeds.
        on_event: called with each event.
        begin: `time.perf_counter()` when the job came in.
        plan: file of a plan to follow.

    Raises:
        CotrunkError: bad input; the cluster cannot be reached, or lacks something; or nothing gets finished.
    """
    begin = time.perf_counter() if begin is None else begin
    for name, given in (("--compare", job.compare), ("--shard", job.shard), ("--trunks", job.trunks)):
        if given:
            raise CotrunkError(f"{name} is for a single machine, and --ray for a cluster: give one of them.")
    check_rows(job)
    folder = RunFolder(Path(out).absolute())
    job = folder.named(job)
    job.check_files()
    loading.check_names("auto", job.dtype, job.scheduler)
    job = checked_inputs(job)
    check_parts(job)
    given_plan = () if plan is None else given_parts(Path(plan), job)
    with connected(cluster):
        is_new = not folder.path.exists()
        try:
            with held(folder.path, *WRITTEN, *OWN) as lock:
                is_resumed, report = begun(folder, lock, job, on_event, resume=resume, retry_failed=retry_failed)
                if report is not None:
                    return ClusterReport(report, ())
                driver = on_ray(job, folder, lock, cluster, on_event, begin)
                return driver.run(given_plan, is_resumed, retry_failed)
        except CotrunkError:
            if is_new:  # nothing was written yet, or it stays
                with suppress(OSError):
                    folder.path.rmdir()
            raise


def on_ray(job: Job, folder: RunFolder, lock: FolderLock, cluster: Cluster, on_event: OnEvent, begin: float) -> Driver:
    """Return the driver of a run on the connected cluster, whose machines were looked at.

    Raises:
        CotrunkError: a machine lacks something.
    """
    gpus, takes_resource, places = places_of(cluster)
    room = sum(place.painters for place in places)
    setup = setup_of(job, str(folder.path), cluster.gpus)
    from .passes import Pool, RayPass, executor

    started = [executor()]  # it starts while the machines are looked at
    device = probe(setup, places, gpus, takes_resource)
    most = cluster.painters or max(room, 1)
    pool = Pool(cluster.least or min(most, max(room, 1)), most, gpus, {PAINTER: 1.0} if takes_resource else None)

    def start(files: Sequence[Path], own: Setup) -> Pass:
        return RayPass(files, Painter, {"setup": own}, pool, started.pop() if started else None)

    wave = cluster.wave or size_of_waves(sum(copies_of(job)), most, job.settings.batching.batch_size)
    return Driver(job, folder, lock, setup, device, start, on_event, begin, wave)


def setup_of(job: Job, place: str, gpus: float | None = None) -> Setup:
    """Return what the painters of a job are started with.

    Args:
        job: the whole job. Of its prompts only examples go to the painters: one with LoRAs of its own, and some with
            input images.
        place: the folder of the run.
        gpus: of a painter; None if the cluster decides.
    """
    lora = next((row for row in job.prompts if row.lora is not None), job.prompts[0])
    images = [row for row in job.prompts if inputs_of(job, row).files][:EXAMPLES]
    examples = tuple(replace(row, id=None) for row in (lora, *images))
    used = {path for row in examples for path in inputs_of(job, row).files}
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Setup(
        replace(
            job,
            prompts=examples,
            device="cpu" if gpus == 0 and job.device == "auto" else job.device,  # also where a machine has GPUs
            output=replace(job.output, records=()),
            digests={path: digest for path, digest in job.digests.items() if path in used},
        ),
        place,
        str(Path.cwd()),
        job.dtype,
        int(threads) if threads.isdigit() and int(threads) else None,
    )
