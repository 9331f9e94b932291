"""Connect to a Ray cluster, and find out how many painters it has room for."""

import logging
import os
import socket
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..checks import number, shown, whole
from ..errors import CotrunkError, first_line

LOCAL = "local"
SECONDS = 10.0  # until an address counts as unreachable
OBJECTS = 256 * 2**20  # bytes of memory for Ray's objects on this machine: only waves and rows pass through it
# Ray on this machine alone leaves its cores to the painters. Each idle process of Ray wakes up a hundred times per
# second, and interrupts the threads of torch, which wait for each other.
QUIET = {
    "RAY_worker_niceness": "0",  # otherwise painters would work only while nothing else on this machine does
    "RAY_num_workers_soft_limit": "0",  # a process without work ends after a second
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_metrics_collection": "0",  # no dashboard shows metrics, tasks and event loops
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_USAGE_STATS_ENABLED": "0",  # a run sends no usage statistics
    # glibc keeps what torch frees on a CPU, up to 2 GB. Otherwise each step gets its memory from the system again,
    # which costs a painter more than other processes, because Ray has thirty threads in it.
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TOP_PAD_": "134217728",
}
LAST = 19  # the lowest priority
PAINTER = "painter"  # a resource that nodes may have: then only they paint, and as many painters as they say


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and how a run uses it.

    Attributes:
        address: "local" to start Ray on this machine, "auto" for the cluster of this machine, or HOST:PORT.
        painters: most processes that generate; None for as many as the cluster has room for when the run begins. Ray
            asks the autoscaler of a cluster for machines for those that have no room.
        gpus: of each painter, 0.5 for two per GPU; None for one, or for none in a cluster without GPUs.
        wave: most images that a painter generates before it reports them; None for a number that suits the run
            (`waves.size_of_waves`).

    Raises:
        CotrunkError: a value out of its range.
    """

    address: str = LOCAL
    painters: int | None = None
    gpus: float | None = None
    wave: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.address, str) or not self.address.strip():
            raise CotrunkError(
                f"The address of the Ray cluster {shown(self.address)} is empty: use local or HOST:PORT."
            )
        if self.address.startswith("ray://"):
            raise CotrunkError(
                f"{self.address} is an address for Ray Client: start the run on a machine of the cluster (ray job "
                "submit), with --ray auto."
            )
        if self.painters is not None:
            whole("painters", self.painters)
        if self.gpus is not None:
            number("gpus", self.gpus)
            if self.gpus > 1 and self.gpus != int(self.gpus):
                raise CotrunkError(f"{self.gpus:g} GPUs per painter: use a whole number, or a fraction of one GPU.")
        if self.wave is not None:
            whole("images per wave", self.wave)


def check_installed() -> None:
    """Check that Ray is installed.

    Raises:
        CotrunkError: it is not.
    """
    if missing := [name for name in ("ray", "pyarrow", "fsspec") if find_spec(name) is None]:
        raise CotrunkError(f"A run on a cluster needs {missing[0]}: pip install 'cotrunk[ray]'.")


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Connect to the cluster until the block ends. A connection that this process has already is used, and kept.

    Raises:
        CotrunkError: Ray is not installed, or the cluster cannot be reached.
    """
    check_installed()
    import ray

    if ray.is_initialized():
        yield
        return
    if cluster.address not in (LOCAL, "auto"):
        _check_reachable(cluster.address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": None}
    try:
        with warnings.catch_warnings(action="ignore"):
            if cluster.address == LOCAL:
                for name, value in QUIET.items():
                    os.environ.setdefault(name, value)
                others = _children()
                ray.init(**{**quiet, "include_dashboard": False}, address=LOCAL, object_store_memory=OBJECTS)
                _let_painters_go_first(_children() - others)
            else:
                ray.init(**quiet, address=cluster.address)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, ...
        raise CotrunkError(
            f"There is no Ray cluster at {cluster.address} that this machine belongs to ({first_line(error)}): use "
            "--ray local, or start the run on a machine of the cluster with --ray auto."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _children() -> set[Any]:
    """Return the processes that this one has started, and those that they have started."""
    import psutil

    return {*psutil.Process().children(recursive=True)}


def _let_painters_go_first(started: Collection[Any]) -> None:
    """Lower the priority of Ray's own processes on this machine, of which eight wake up many times per second.

    The threads of torch wait for each other, so each interruption of one of them costs all. Raylet keeps its priority,
    because painters inherit it.

    Args:
        started: the processes of Ray.
    """
    import psutil

    if os.name != "posix":  # other systems have other priorities
        return
    for process in started:
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            is_painter = "default_worker.py" in command or (command.startswith("ray::") and "Agent" not in command)
            if not is_painter and process.name() != "raylet":
                process.nice(LAST)


def _check_reachable(address: str) -> None:
    """Check that something listens at an address: Ray itself would try for minutes.

    Raises:
        CotrunkError: nothing does, or it is not an address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise CotrunkError(f"{shown(address)} is not the address of a Ray cluster: use local, auto or HOST:PORT.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS).close()
    except OSError as error:
        raise CotrunkError(
            f"The Ray cluster at {address} cannot be reached ({error.strerror or error}): check the address, or use "
            "--ray local."
        ) from None


@dataclass(frozen=True)
class Place:
    """A machine of the cluster that can paint.

    Attributes:
        node: its id in Ray.
        name: its address, for messages.
        painters: for how many it has room.
    """

    node: str
    name: str
    painters: int


def places_of(cluster: Cluster) -> tuple[float, bool, list[Place]]:
    """Return how many GPUs a painter takes, whether it takes the resource `painter`, and the machines that paint.

    An autoscaling cluster may have no such machine yet.

    Raises:
        CotrunkError: the cluster has none, and could not get one.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    has_resource = any(PAINTER in node["Resources"] for node in nodes)
    gpus = cluster.gpus
    if gpus is None:
        gpus = 1.0 if any(node["Resources"].get("GPU", 0) for node in nodes) else 0.0
    places = []
    for node in nodes:
        has = node["Resources"]
        if has_resource:
            room = int(has.get(PAINTER, 0))
        elif gpus:
            room = int(has.get("GPU", 0) / gpus)
        else:
            room = 1 if has.get("CPU", 0) else 0
        if room:
            places.append(Place(node["NodeID"], node["NodeManagerAddress"], room))
    if not places and cluster.painters is None:
        which = f" with {gpus:g} GPU" if gpus else ""
        raise CotrunkError(
            f"No machine of the cluster (it has {len(nodes)}) has room for a painter{which}: give --gpus 0 for CPUs, "
            "or --painters N if the cluster is to grow."
        )
    return gpus, has_resource, places
