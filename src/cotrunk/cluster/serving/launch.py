"""`cotrunk serve --ray`: connects to a cluster, checks what can be checked, and runs the application there."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import CotrunkError, first_line
from ...pipelines.source import Source
from ...service.api.server import Serving, check_data, check_host, listening
from ...service.launch import WorkerSettings
from ...service.store import Store
from ..scale import Scale
from .machine import Probe, probe_in, why_not

NAME = "cotrunk"  # of the application
LOCAL = "local"
STORE_BYTES = 100_000_000  # Ray's object store on this machine: images do not pass through it
CONNECT_SECONDS = 5.0
CHECK_SECONDS = 120.0  # for the checks on all machines
LOOK_SECONDS = 2.0  # between two looks at the state of the application
log = logging.getLogger("cotrunk.service")


def serve_on_ray(asked: Serving, address: str, scale: Scale, started: Callable[[str], None]) -> None:
    """Serve until the process is asked to stop.

    Args:
        asked: what is served, and how.
        address: of the cluster; "local" starts Ray on this machine.
        scale: how much of the cluster the service takes.
        started: called with the address of the service when it listens.

    Raises:
        CotrunkError: something that the service needs is missing.
    """
    check_installed()
    asked = replace(asked, port=check_here(asked, address))
    with connected(address):
        from ray import serve

        check_cluster(asked, scale)
        _run(asked, scale)
        try:
            started(f"http://{f'[{asked.host}]' if ':' in asked.host else asked.host}:{asked.port}")
            _wait()
        finally:
            with suppress(Exception):  # the cluster may be gone
                serve.delete(NAME)
                if address == LOCAL:
                    serve.shutdown()


def check_installed() -> None:
    """Check that Ray is installed.

    Raises:
        CotrunkError: it is not.
    """
    try:
        import ray.serve  # noqa: F401
    except ImportError as error:
        raise CotrunkError(
            f"cotrunk serve --ray needs Ray Serve, and {error.name} is not installed: pip install 'cotrunk[ray]'."
        ) from None


def check_here(asked: Serving, address: str) -> int:
    """Check what this machine can check before it connects; return the port.

    Raises:
        CotrunkError: the data folder, the model, the database or the port cannot be used.
    """
    check_data(Path(asked.worker.data))
    Source(
        asked.worker.model, **{name: asked.worker.loading.get(name) for name in ("config", "revision", "variant")}
    ).find()
    with closing(Store(asked.worker.database)) as store:
        check_host(asked.host, has_keys=bool(store.keys()))
    if address != LOCAL:
        _check_address(address)
        return asked.port
    with listening(asked.host, asked.port) as free:
        return int(free.getsockname()[1])


def _check_address(address: str) -> None:
    """Check that something listens at the address of a cluster.

    Raises:
        CotrunkError: it does not, or the address is of another kind.
    """
    wanted = "give HOST:PORT of its head node (by default port 6379), auto on a machine of the cluster, or local"
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise CotrunkError(f"--ray {address} is not the address of a Ray cluster: {wanted}.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise CotrunkError(f"No Ray cluster answers at {address} ({first_line(error)}): {wanted}.") from None


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to a cluster, or start Ray on this machine, until the block ends.

    Raises:
        CotrunkError: the cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    local: dict[str, Any] = {"object_store_memory": STORE_BYTES} if address == LOCAL else {}
    try:
        ray.init(address, include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False, **local)
    except Exception as error:  # Ray raises many types
        raise CotrunkError(f"Ray does not start at {address}: {first_line(error)}. See ray status.") from None
    try:
        yield
    finally:
        ray.shutdown()


def check_cluster(asked: Serving, scale: Scale) -> None:
    """Check that the machines of the cluster can run the service together.

    Raises:
        CotrunkError: one of them cannot, or they have too few devices.
    """
    import ray

    from .application import has_gpus

    worker = asked.worker
    nodes = [node for node in ray.nodes() if node["Alive"]]
    machines = {node["NodeManagerHostname"] for node in nodes}
    if len(machines) > 1 and worker.database.startswith("sqlite"):
        raise CotrunkError(
            f"The cluster has {len(machines)} machines, and SQLite works on one only: name a database that all of them "
            "reach, --database postgresql://USER@HOST/NAME."
        )
    for name, each in zip(("CPU", "GPU"), scale.actor(has_gpus=has_gpus(asked)).values(), strict=True):
        wanted = scale.replicas * each
        found = sum(node["Resources"].get(name, 0) for node in nodes)
        if wanted > found:
            raise CotrunkError(
                f"--replicas {scale.replicas} takes {wanted:g} of the cluster's {name}s, and it has {found:g}: use a "
                f"smaller --replicas or --replica-{name.lower()}s, or add machines to the cluster."
            )
    probe = probe_in(worker)
    for reason in _asked_everywhere([str(node["NodeID"]) for node in nodes], worker, probe):
        if reason is not None:
            raise CotrunkError(reason)


def _asked_everywhere(nodes: list[str], worker: WorkerSettings, probe: Probe) -> list[str | None]:
    """Return what `why_not` says on each node.

    Raises:
        CotrunkError: it cannot be asked there.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0, max_retries=0)(why_not)
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(worker, probe)
        for node in nodes
    ]
    try:
        found: list[str | None] = ray.get(asked, timeout=CHECK_SECONDS)
    except Exception as error:  # such as cotrunk missing there
        raise CotrunkError(
            f"A machine of the cluster cannot run cotrunk: {first_line(error)}. Install the same "
            "cotrunk on all of them."
        ) from None
    return found


def _run(asked: Serving, scale: Scale) -> None:
    """Start Serve and the application, and wait until it runs.

    Raises:
        CotrunkError: it does not start.
    """
    from ray import serve

    from .application import application

    options = {"host": asked.host, "port": asked.port}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    logs: Any = {"log_level": "WARNING", "enable_access_log": False}  # the service writes its own
    serve.start(proxy_location="HeadOnly", http_options=options, logging_config=logs)
    try:
        serve.run(application(asked, scale), name=NAME, route_prefix="/", logging_config=logs)
    except RuntimeError as error:
        found = re.findall(r"CotrunkError: (.*)", str(error))
        with suppress(Exception):
            serve.delete(NAME)
        raise CotrunkError(found[-1].strip() if found else f"The application does not start: {error}") from None


def _wait() -> None:
    """Wait until this process is asked to stop.

    Raises:
        CotrunkError: somebody has removed the application.
    """
    from ray import serve

    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not ended.wait(LOOK_SECONDS):
            with suppress(ConnectionError, TimeoutError):  # a head node that is busy is asked again
                if NAME not in serve.status().applications:
                    raise CotrunkError("The application was removed from the cluster: start it again.")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
