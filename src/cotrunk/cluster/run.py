"""Run a job on a Ray cluster: check it, connect, look at the machines, and let the driver do the rest."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import CotrunkError
from ..pipelines import loading
from ..runs.events import OnEvent, ignore
from ..runs.job import Job
from ..runs.part_pipelines import check_parts
from ..runs.parts import check_rows, copies_of
from ..runs.resume import begun
from ..runs.row_inputs import checked_inputs, inputs_of
from ..runs.runner import given_parts
from . import attempts, failed, manifest
from .connecting import PAINTER, Cluster, connected, places_of
from .driver import ClusterReport, Driver
from .loop import POLL, Pass
from .painter import Painter
from .probe import probe
from .run_place import RunPlace, placed
from .setup import Setup
from .waves import FOLDER as WAVES
from .waves import size_of_waves

URL_POLL = 2.0  # seconds between two looks at the manifest of a URL, of which each is a request
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
    """Run a job on a Ray cluster.

    The arguments are as for `runner.run_job`.

    Args:
        job: without a comparison, a share or a trunk cache.
        out: the folder of the run, which all machines see, or a URL that fsspec knows.
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
    with placed(out) as place:
        job = place.folder.named(job)
        job.check_files()
        loading.check_names("auto", job.dtype, job.scheduler)
        job = checked_inputs(job)
        check_parts(job)
        given_plan = () if plan is None else given_parts(Path(plan), job)
        with connected(cluster), place.held(*OWN) as lock:
            is_resumed, report = begun(place.folder, lock, job, on_event, resume=resume, retry_failed=retry_failed)
            if report is not None:
                return ClusterReport(report, ())
            driver = on_ray(job, place, cluster, on_event, begin)
            place.take()
            return driver.run(given_plan, is_resumed, retry_failed)


def on_ray(job: Job, place: RunPlace, cluster: Cluster, on_event: OnEvent, begin: float) -> Driver:
    """Return the driver of a run on the connected cluster, whose machines were looked at.

    Raises:
        CotrunkError: a machine lacks something.
    """
    gpus, takes_resource, places = places_of(cluster)
    room = sum(each.painters for each in places)
    setup = setup_of(job, place.files.place, cluster.gpus)
    from .passes import Pool, RayPass, executor

    started = [executor()]  # it starts while the machines are looked at
    device = probe(setup, places, gpus, takes_resource)
    most = cluster.painters or max(room, 1)
    pool = Pool(most, gpus, {PAINTER: 1.0} if takes_resource else None)

    def start(files: Sequence[str], own: Setup) -> Pass:
        actor = started.pop() if started else None
        return RayPass(files, Painter, {"setup": own}, pool, actor, place.files.system)

    wave = cluster.wave or size_of_waves(sum(copies_of(job)), most, job.settings.batching.batch_size)
    poll = POLL if place.files.folder is not None else URL_POLL
    return Driver(job, place, setup, device, start, on_event, begin, wave, poll)


def setup_of(job: Job, place: str, gpus: float | None = None) -> Setup:
    """Return what the painters of a job are started with.

    Args:
        job: the whole job. Of its prompts only examples go to the painters: one with LoRAs of its own, and some with
            input images.
        place: the folder of the run, or its URL.
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
