"""A Painter supervises a worker, and assigns images to the one that runs now."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stored import accept

from cotrunk.cluster.serving import painter as module
from cotrunk.cluster.serving.machine import Probe
from cotrunk.cluster.serving.painter import Painter
from cotrunk.errors import CotrunkError
from cotrunk.service import launch
from cotrunk.service.api import supervisor
from cotrunk.service.launch import WorkerSettings
from cotrunk.service.store import Store


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MODULE", "worker_process")
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "why_not", lambda settings, probe: None)
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}")


@contextmanager
def painter(folder: Path, model: str = "lives") -> Iterator[Painter]:
    settings = WorkerSettings(f"sqlite:///{folder}/service.db", "images", str(folder), model, is_routed=True)
    found = Painter(settings, Probe(b""))
    try:
        yield found
    finally:
        found.__del__()


def wait_for(is_so: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_images_are_assigned_to_the_worker_that_runs_now(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/service.db")
    accept(store, "a", "b")
    first, second = (row.id for row in store.waiting())
    with painter(tmp_path) as found:
        worker = asyncio.run(found.report())["worker"]
        assert worker is not None
        assert asyncio.run(found.assign("r", [first]))
        assert [row.id for row in store.waiting(worker=worker)] == [first]
        wait_for((tmp_path / "work").exists)  # the worker was woken
        asyncio.run(found.notify("cancel"))
        wait_for((tmp_path / "cancel").exists)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        wait_for(lambda: asyncio.run(found.report())["worker"] not in (None, worker))
        wait_for(lambda: asyncio.run(found.report())["state"] == "ready")
        assert asyncio.run(found.assign("r", [second]))
        report = asyncio.run(found.report())
        assert [row.id for row in store.waiting(worker=report["worker"])] == [second]
        assert report["restarts"] == 1
        found.check_health()
        found._link.state = "restarting"
        assert not asyncio.run(found.assign("r", [first]))
    assert (tmp_path / "stopped").exists()
    store.close()


def test_a_worker_that_refuses_or_dies_ends_the_painter_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(CotrunkError, match=r"There is no model 'refuses': use mini\."), painter(tmp_path, "refuses"):
        pass


def test_a_machine_that_cannot_take_part_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "why_not", lambda settings, probe: "The machine is tired.")
    with pytest.raises(CotrunkError, match="The machine is tired"), painter(tmp_path):
        pass
