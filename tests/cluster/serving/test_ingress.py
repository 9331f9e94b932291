"""The link between the API and the Dispatcher: one turn after another, and no message gets lost."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_worker import FACTS
from fastapi.testclient import TestClient

from cotrunk.cluster.serving import Arguments
from cotrunk.cluster.serving import ingress as module
from cotrunk.cluster.serving.ingress import DispatcherLink, Ingress


def report(ready: int = 1, **more: Any) -> Any:
    return {"ready": ready, "facts": {"model": "mini"}, "rows_per_second": 2.0, "restarts": 0, "more": False, **more}


def test_turns_follow_each_other_and_hear_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 60.0)
    turns, heard, free = list[list[str]](), threading.Event(), threading.Event()

    def turn(kinds: Sequence[str]) -> Any:
        turns.append([*kinds])
        heard.set()
        assert free.wait(10)
        return report(more=len(turns) == 2)

    link = DispatcherLink(turn)
    link.start()
    assert heard.wait(10)
    for kind in ("work", "cancel", "work"):
        link.send(kind)
    free.set()
    woken = threading.Semaphore(0)
    link.woken = woken.release
    assert woken.acquire(timeout=10)
    assert woken.acquire(timeout=10)
    assert woken.acquire(timeout=10)  # "more" has the next turn follow at once
    link.stop()
    assert turns[:3] == [[], ["cancel", "work"], []]
    assert (link.state, link.facts, link.rows_per_second) == ("ready", {"model": "mini"}, 2.0)


def test_the_state_is_that_of_the_painters() -> None:
    link = DispatcherLink(lambda kinds: report())
    link.note(report(0, facts=None))
    assert (link.state, link.facts) == ("starting", None)
    link.note(report(2))
    assert link.state == "ready"
    link.note(report(0, facts=None, rows_per_second=None, restarts=3))
    assert (link.state, link.facts, link.rows_per_second) == ("restarting", {"model": "mini"}, None)
    assert link.restarts == 3


def test_a_dispatcher_that_dies_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    answers, ready = [report(), None, None, report()], threading.Event()

    def turn(kinds: Sequence[str]) -> Any:
        answer = answers.pop(0) if answers else report()
        if answer is None:
            states.append(link.state)
            raise RuntimeError("ActorDiedError")
        if not answers:
            ready.set()
        return answer

    states = list[str]()
    link = DispatcherLink(turn)
    link.start()
    assert ready.wait(10)
    link.stop()
    assert states == ["ready", "restarting"]


def test_the_api_answers_with_what_the_dispatcher_reports(tmp_path: Path) -> None:
    turns = list[list[str]]()

    def remote(kinds: list[str]) -> Any:
        turns.append(kinds)
        return SimpleNamespace(result=lambda timeout_s: report(3, facts=FACTS, rows_per_second=7.0))

    asked = Arguments(data=str(tmp_path), database=f"sqlite:///{tmp_path}/service.db").serving()
    ingress = Ingress(asked, SimpleNamespace(turn=SimpleNamespace(remote=remote)))
    app = ingress.__serve_build_asgi_app__()
    with TestClient(app, base_url="http://127.0.0.1") as client:
        until = time.monotonic() + 30
        while (answer := client.get("/readyz", headers={"x-request-id": "of Serve"})).status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert answer.json()["rows_per_second"] == 7.0
        assert "x-request-id" not in answer.headers  # Serve adds its own
        job = client.post("/v1/jobs", json={"prompts": ["red apple"]}).json()["id"]
        while not any("work" in kinds for kinds in turns):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert [row.job for row in ingress._store.unassigned()] == [job]
    ingress.__del__()
