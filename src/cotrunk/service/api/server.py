"""`cotrunk serve`: checks everything that can be checked, then runs the API and supervises the worker."""

import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from ...errors import CotrunkError
from ...files import check_folder
from ...pipelines.source import Source
from ...storage.database_url import POSTGRESQL, checked_url
from ...storage.files import StoredFiles
from ..images import ImageFiles
from ..launch import WorkerSettings
from ..store import Store
from .app import make_app
from .limits import Limits
from .link import WorkerLink
from .signing import signer_in
from .supervisor import Supervisor

DATABASE = "service.db"  # in the data folder
IMAGES = "images"
CLOSE_SECONDS = 10  # for requests that are being answered when the service stops
log = logging.getLogger("cotrunk.service")


@dataclass(frozen=True)
class Serving:
    """What `cotrunk serve` is asked for.

    Attributes:
        worker: the settings of the worker.
        host: the address to listen at.
        port: the port; 0 for a free one.
        limits: of requests.
        logs_prompts: write prompts to the log.
        keep_days: remove jobs, images and files so many days after they have ended; 0 keeps them.
    """

    worker: WorkerSettings
    host: str = "127.0.0.1"
    port: int = 8000
    limits: Limits = field(default_factory=Limits)
    logs_prompts: bool = False
    keep_days: float = 0


def database_in(data: Path, url: str | None) -> str:
    """Return the URL of the database: as given, or of a file in the data folder."""
    return url or f"sqlite:///{(data / DATABASE).absolute()}"


def images_in(data: Path, url: str | None) -> str:
    """Return where images are written: as given, or a folder in the data folder."""
    return url or str((data / IMAGES).absolute())


def check_data(data: Path) -> None:
    """Check that the data folder can be written.

    Raises:
        CotrunkError: it cannot.
    """
    try:
        check_folder(data)
    except CotrunkError as error:
        raise CotrunkError(str(error).replace("--out", "--data")) from None


def check_trunks(worker: WorkerSettings) -> None:
    """Check what can be known about trunks that machines share before a worker opens them.

    Raises:
        CotrunkError: their place is of a kind that cannot be used, or the index would be on one machine.
    """
    if worker.trunk_folder is None:
        return
    StoredFiles(worker.trunk_folder, "--trunk-folder")
    if checked_url(worker.database).get_backend_name() != POSTGRESQL:
        raise CotrunkError(
            "--trunk-folder shares trunks among machines, and their index is in PostgreSQL: name its database, "
            "--database postgresql://USER@HOST/NAME, or leave out --trunk-folder."
        )


def serve(asked: Serving, started: Callable[[str], None]) -> None:
    """Serve until the process is asked to stop.

    Args:
        asked: what is asked for.
        started: called with the address of the service when it listens.

    Raises:
        CotrunkError: something that the service needs is missing, or the worker refuses its settings.
    """
    worker, data = asked.worker, Path(asked.worker.data)
    check_data(data)
    source = {name: worker.loading.get(name) for name in ("config", "revision", "variant")}
    Source(worker.model, **source).find()
    check_trunks(worker)
    files = ImageFiles(worker.images)
    signer, store = signer_in(data), Store(worker.database)
    try:
        check_host(asked.host, has_keys=bool(store.keys()))
        with listening(asked.host, asked.port) as listener:
            link = WorkerLink()
            supervisor = Supervisor(worker, link)
            app = make_app(
                store,
                files,
                worker.model,
                link,
                signer,
                asked.limits,
                logs_prompts=asked.logs_prompts,
                keep_days=asked.keep_days,
            )
            server = server_of(app)
            host, port = listener.getsockname()[:2]
            started(f"http://{f'[{host}]' if ':' in host else host}:{port}")
            _run(server, listener, supervisor)
        if supervisor.refusal is not None:
            raise CotrunkError(supervisor.refusal)
    finally:
        store.close()


def server_of(app: FastAPI) -> uvicorn.Server:
    """Return the HTTP server of an application, which learns from it when it stops."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,  # the service writes its own, without ids and tokens
            server_header=False,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
    )
    app.state.service.is_stopping = lambda: server.should_exit
    return server


def _run(server: uvicorn.Server, listener: socket.socket, supervisor: Supervisor) -> None:
    """Run the server until it is asked to stop, and then stop the worker."""
    # uvicorn sends itself the signal again when it has ended; the worker is still to be stopped then
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            if supervisor.refusal is not None:
                server.should_exit = True

    watching = threading.Thread(target=watch, daemon=True)
    supervisor.start()
    watching.start()
    try:
        server.run(sockets=[listener])
    finally:
        ended.set()
        watching.join()
        supervisor.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def check_host(host: str, *, has_keys: bool) -> None:
    """Check that a service without keys is reached from this machine only.

    Raises:
        CotrunkError: it is not.
    """
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if not (is_local or has_keys):
        raise CotrunkError(
            f"Without keys, anyone who reaches {host} could use the service: make a key with cotrunk keys add NAME, or "
            "leave out --host."
        )


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        CotrunkError: the port is in use, or the address is not one of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except socket.gaierror:
        raise CotrunkError(f"{host} is not an address of this machine: choose another --host.") from None
    except OSError as error:
        why = error.strerror or str(error)
        raise CotrunkError(f"Cannot listen at {host}, port {port}: {why}. Choose another --port or --host.") from None
