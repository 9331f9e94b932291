"""`cotrunk serve --ray`: connects to a cluster, checks what can be checked, and runs the application there."""

import logging
import os
import re
import signal
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import CotrunkError, first_line
from ...pipelines.source import Source
from ...service.api.server import Serving, check_data, check_host, check_trunks, listening
from ...service.launch import WorkerSettings
from ...service.store import Store
from ..connecting import LOCAL, Cluster, connected
from ..scale import Scale
from .machine import Probe, probe_in, why_not

NAME = "cotrunk"  # of the application
CHECK_SECONDS = 120.0  # for the checks on all machines
LOGS = "/tmp/ray/session_latest/logs/serve"  # Ray's own choice
# nothing is reported to Ray's makers, and a busy machine has more than 5 seconds to start the proxy
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30"}
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
    cluster = Cluster(address)
    asked = replace(asked, port=check_here(asked, address))
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with connected(cluster):
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
    check_trunks(asked.worker)
    Source(
        asked.worker.model, **{name: asked.worker.loading.get(name) for name in ("config", "revision", "variant")}
    ).find()
    with closing(Store(asked.worker.database)) as store:
        check_host(asked.host, has_keys=bool(store.keys()))
    if address != LOCAL:
        return asked.port
    with listening(asked.host, asked.port) as free:
        return int(free.getsockname()[1])


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
                f"smaller --replicas or --{name.lower()}s, or add machines to the cluster."
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
    try:
        serve.start(proxy_location="HeadOnly", http_options=options, logging_config=logs)
        serve.run(application(asked, scale), name=NAME, route_prefix="/", logging_config=logs)
    except CotrunkError:
        raise
    except Exception as error:  # Ray raises many types, and the reason of a replica is in the text
        found = re.findall(r"CotrunkError: (.*)", str(error))
        with suppress(Exception):
            serve.delete(NAME)
        why = f"{type(error).__name__}, {first_line(error)}. See {LOGS}, or try again."
        raise CotrunkError(found[-1].strip() if found else f"Ray Serve does not start the service: {why}") from None


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
