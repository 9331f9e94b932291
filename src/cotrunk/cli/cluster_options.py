"""The options for a run on a Ray cluster, and how it ends."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import CotrunkError
from ..storage.urls import shown_place
from .console import counted, say
from .options import option

if TYPE_CHECKING:
    from ..cluster.connecting import Cluster
    from ..runs.events import OnEvent
    from ..runs.job import Job
    from ..runs.report import RunReport

CLUSTER = "Many machines"

ClusterAddress = Annotated[
    str | None,
    option(
        CLUSTER,
        "ADDRESS",
        "Generate on a Ray cluster: local starts Ray on this machine, auto is the cluster that it belongs to, or "
        "HOST:PORT. All machines must see --out, which may be a URL such as s3://BUCKET/RUN.",
        "--ray",
    ),
]
Painters = Annotated[
    int | None,
    option(
        CLUSTER,
        "N",
        "Most processes that generate. A cluster that grows starts machines for them. By default one per GPU, and one "
        "per machine without GPUs.",
        "--painters",
    ),
]
GpusPerPainter = Annotated[
    float | None,
    option(
        CLUSTER,
        "X",
        "GPUs of each of these processes; 0.5 lets two share one. By default 1 if there are any.",
        "--gpus",
    ),
]
WaveSize = Annotated[
    int | None,
    option(
        CLUSTER,
        "N",
        "Images that a process generates before it reports them: what a lost machine loses. By default at most 128, "
        "and few enough that each process gets several times as many.",
        "--wave",
    ),
]


def cluster_of(ray: str | None, painters: int | None, gpus: float | None, wave: int | None) -> "Cluster | None":
    """Return the cluster that the options describe; None if the run is on this machine alone.

    Raises:
        CotrunkError: an option is wrong, or is for a cluster and there is none; or Ray is not installed.
    """
    given = {"--painters": painters, "--gpus": gpus, "--wave": wave}
    if ray is None:
        for name, value in given.items():
            if value is not None:
                raise CotrunkError(f"{name} is for a run on a cluster: add --ray ADDRESS, or leave it out.")
        return None
    from ..cluster.connecting import Cluster, check_installed

    check_installed()
    return Cluster(ray, painters, gpus, wave)


def on_cluster(
    job: "Job", out: str | Path, cluster: "Cluster", on_event: "OnEvent", how: dict[str, Any]
) -> "tuple[RunReport, tuple[str, ...]]":
    """Run a job on a cluster. Return its report, and the records of the groups that failed."""
    from ..cluster.run import run_on_cluster

    done = run_on_cluster(job, out, cluster, on_event=on_event, **how)
    return done.report, done.failed


def conclude_failed(failed: tuple[str, ...], out: str | Path) -> None:
    """Say which groups failed, and exit with code 3."""
    some, place = ", ".join(failed[:5]) + (", ..." if len(failed) > 5 else ""), shown_place(str(out))
    say(
        "red",
        "failed",
        f"{counted(len(failed), 'group')} failed three times, the others are done; the tracebacks are in {place}: "
        f"{some}. --resume tries them again.",
    )
    raise typer.Exit(3)
