"""A service that stops loses no job: streams get time to end, and what is not done goes on at the next start."""

import asyncio
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from served import listening
from serving import GENERATIONS, serving
from sse_starlette.sse import AppStatus

from cotrunk.service.api import server
from cotrunk.service.store import Store


def stream(address: str, found: list[str], accepted: threading.Event, **headers: str) -> None:
    """Read the events of a stream until it ends."""
    body = {"prompt": "a", "stream": True}
    try:
        with httpx2.stream("POST", f"{address}{GENERATIONS}", json=body, timeout=30, headers=headers) as answer:
            accepted.set()
            found += [line for line in answer.iter_lines() if line.startswith("event: ")]
    except httpx2.HTTPError as error:
        found.append(type(error).__name__)


@pytest.mark.parametrize("is_done", [False, True])
def test_a_stream_may_end_while_the_service_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    monkeypatch.setattr(AppStatus, "should_exit", False)
    servers: list[Any] = []
    monkeypatch.setattr("served.server_of", lambda app: servers.append(server.server_of(app)) or servers[-1])
    with listening(tmp_path) as (address, parts):
        servers[0].config.timeout_graceful_shutdown = 10 if is_done else 1
        parts.worker.is_held = True
        found, accepted = list[str](), threading.Event()
        reading = threading.Thread(target=stream, args=(address, found, accepted), daemon=True)
        reading.start()
        assert accepted.wait(20)
        servers[0].handle_exit(signal.SIGTERM, None)
        if is_done:
            reading.join(2)  # the stream notices that the service stops, and yet it goes on
            parts.worker.is_held = False
        reading.join(20)
    store = Store(f"sqlite:///{tmp_path}/service.db")
    (job,) = store.jobs("local")
    store.close()
    if is_done:
        assert found == ["event: image_generation.completed"]
    assert job.state == ("done" if is_done else "waiting")


def test_the_server_says_that_it_stops() -> None:
    app: Any = SimpleNamespace(state=SimpleNamespace(service=SimpleNamespace()))
    made = server.server_of(app)
    assert not app.state.service.is_stopping()
    made.should_exit = True
    assert app.state.service.is_stopping()


def test_a_job_stays_if_the_server_goes_and_not_its_client(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        service.worker.is_held = True
        state = service.app.state.service
        for is_stopping, expected in ((True, "waiting"), (False, "cancelled")):
            job = service.client.post("/v1/jobs", json={"prompts": ["a"]}).json()["id"]
            state.is_stopping = lambda is_stopping=is_stopping: is_stopping
            asyncio.run(state.leave("local", job))
            assert service.store.job("local", job).state == expected
