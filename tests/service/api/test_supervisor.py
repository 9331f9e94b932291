"""The supervisor starts a worker again when it dies, and stops it in order."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cotrunk.service import launch
from cotrunk.service.api import supervisor
from cotrunk.service.api.link import WorkerLink
from cotrunk.service.api.supervisor import Supervisor
from cotrunk.service.launch import WorkerSettings


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MODULE", "worker_process")
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}")


def started(folder: Path, model: str) -> tuple[Supervisor, WorkerLink]:
    link = WorkerLink()
    found = Supervisor(WorkerSettings("sqlite:///x", "images", str(folder), model), link)
    found.start()
    return found, link


def wait_for(is_so: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_that_is_killed_is_started_again_and_stopped_in_order(tmp_path: Path) -> None:
    watched, link = started(tmp_path, "lives")
    wait_for(lambda: link.rows_per_second)
    assert (link.state, link.restarts, link.rows_per_second) == ("ready", 0, 7.5)
    assert link.facts is not None
    link.send("work")
    wait_for((tmp_path / "work").exists)
    first = int((tmp_path / "pid").read_text())
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: link.restarts == 1 and link.state == "ready")
    wait_for(lambda: int((tmp_path / "pid").read_text() or first) != first)
    second = int((tmp_path / "pid").read_text())
    watched.stop()
    assert (tmp_path / "stopped").exists()
    assert link.state == "stopped"
    assert not is_running(second)


def test_a_worker_that_refuses_its_settings_is_not_started_again(tmp_path: Path) -> None:
    watched, link = started(tmp_path, "refuses")
    wait_for(lambda: watched.refusal)
    assert watched.refusal == "There is no model 'refuses': use mini."
    assert (link.state, link.restarts) == ("stopped", 0)
    watched.stop()


def test_a_worker_that_has_worked_before_is_started_again_whatever_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    link = WorkerLink()
    watched = Supervisor(WorkerSettings("sqlite:///x", "images", str(tmp_path), "mini"), link)
    lives = iter([1, 2, 2, None])

    def life() -> int:
        link.facts = {}  # type: ignore[typeddict-item]
        watched._last_line = "Cannot write images: no space."
        if (code := next(lives)) is None:
            watched._stop.set()
        return code or 0

    monkeypatch.setattr(watched, "_life", life)
    monkeypatch.setattr(watched._stop, "wait", lambda seconds: False)
    watched._run()
    assert watched.refusal is None
    assert link.restarts == 3
    assert "with code 2 (Cannot write images: no space.)" in caplog.text


def test_a_worker_that_cannot_be_started_now_is_started_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, tries = WorkerLink(), []
    watched = Supervisor(WorkerSettings("sqlite:///x", "images", str(tmp_path), "mini"), link)

    def no_memory(*_: object, **__: object) -> None:
        tries.append(1)
        if len(tries) == 3:
            watched._stop.set()
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(supervisor.subprocess, "Popen", no_memory)
    monkeypatch.setattr(watched._stop, "wait", lambda seconds: False)
    watched._run()
    assert len(tries) == 3
    assert link.restarts == 2


def test_a_worker_that_keeps_dying_is_started_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    watched = Supervisor(WorkerSettings("sqlite:///x", "images", str(tmp_path), "dies"), WorkerLink())

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        return False

    monkeypatch.setattr(watched, "_life", lambda: 1)
    monkeypatch.setattr(watched._stop, "wait", wait)
    monkeypatch.setattr(watched._stop, "is_set", lambda: len(pauses) >= 15)
    monkeypatch.setattr(supervisor.random, "uniform", lambda *_: 1.0)
    watched._run()
    assert pauses == sorted(pauses)
    assert pauses[0] == 0.02
    assert pauses[-1] == supervisor.LONGEST_PAUSE


def test_a_worker_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STOP_SECONDS", 0.2)
    watched, _ = started(tmp_path, "stubborn")
    wait_for((tmp_path / "pid").exists)
    wait_for(lambda: (tmp_path / "pid").read_text())
    number = int((tmp_path / "pid").read_text())
    watched.stop()
    assert not is_running(number)
