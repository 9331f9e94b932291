"""The link between the API and the Dispatcher: one turn after another, and no message gets lost."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from cotrunk.cluster.serving import ingress as module
from cotrunk.cluster.serving.ingress import DispatcherLink


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
