"""A service on a real port: in a thread with a fake worker, or as `cotrunk serve` in a process of its own."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from serving import Serving, assembled

from cotrunk.service.api.server import server_of


@contextmanager
def listening(folder: Path, **options: Any) -> Iterator[tuple[str, Serving]]:
    """Start a service with a fake worker; return its address and its parts."""
    with (
        assembled(folder, **options) as (store, worker, app),
        socket.create_server(("127.0.0.1", 0)) as listener,
        httpx2.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client,
    ):
        server = server_of(app)
        server.config.timeout_graceful_shutdown = 1
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield str(client.base_url).rstrip("/"), Serving(client, store, worker, app)
        finally:
            server.should_exit = True
            thread.join(20)


@contextmanager
def process(data: Path, *options: object) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run `cotrunk serve` on mini; return its address when its worker is ready, and the process."""
    command = [sys.executable, "-m", "cotrunk", "serve", "--port", "0", "--data", str(data), *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert started.stdout is not None
    assert started.stderr is not None
    threading.Thread(target=started.stderr.read, daemon=True).start()
    try:
        first = started.stdout.readline()
        found = re.search(r"http://\S+", first)
        assert found, first
        wait_until_ready(found[0])
        yield found[0], started
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGTERM)
            started.wait(90)


def wait_until_ready(address: str, seconds: float = 240) -> dict[str, Any]:
    """Return the readiness of a service as soon as it is ready."""
    until = time.monotonic() + seconds
    while True:
        answer = httpx2.get(f"{address}/readyz")
        if answer.status_code == 200:
            return answer.json()
        assert time.monotonic() < until, answer.text
        time.sleep(0.2)
