"""The Dispatcher with Painters that are plain objects: what it hands over, and what it does when they die."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stored import accept

from cotrunk.cluster.serving import dispatcher as module
from cotrunk.cluster.serving.dispatcher import Dispatcher, summary
from cotrunk.service.launch import WorkerSettings
from cotrunk.service.store import Store

FACTS: Any = {"model": "mini"}


@dataclass
class FakePainter:
    """A Painter with a worker that only has a name."""

    store: Store
    name: str
    is_dead: bool = False
    is_stuck: bool = False
    told: list[str] = field(default_factory=list)

    async def assign(self, route: str, images: list[str]) -> bool:
        if self.is_dead:
            raise RuntimeError("ActorDiedError")
        if self.is_stuck:
            await asyncio.sleep(60)
        self.store.assign(self.name, route, images)
        return True


class Handle:
    """Ray's handle of the Painters: equal session ids go to the same one as long as it lives."""

    def __init__(self, *painters: FakePainter) -> None:
        self.painters = [*painters]
        self.routes: dict[str, str] = {}

    def options(self, session_id: str) -> Any:
        painter = self.painters[sum(session_id.encode()) % len(self.painters)]

        class Answer:
            def __init__(self, route: str, images: list[str]) -> None:
                self._work = painter.assign(route, images)

            def __await__(self) -> Any:
                return self._work.__await__()

            def cancel(self) -> None:
                self._work.close()

        def remote(route: str, images: list[str]) -> Answer:
            assert route == session_id
            self.routes[route] = painter.name
            return Answer(route, images)

        return SimpleNamespace(assign=SimpleNamespace(remote=remote))

    def broadcast(self, method: str, *arguments: str) -> Any:
        if not self.painters:
            raise RuntimeError("DeploymentUnavailableError")

        async def results_async(**_: Any) -> list[Any]:
            if method == "notify":
                for painter in self.painters:
                    painter.told += arguments
                return []
            return [report(painter.name, None if painter.is_dead else 2.0) for painter in self.painters]

        return SimpleNamespace(results_async=results_async)


def report(worker: str, speed: float | None, state: Any = "ready") -> Any:
    return {"worker": worker, "state": state, "facts": FACTS, "rows_per_second": speed, "restarts": 1}


def encode(prompts: Any) -> np.ndarray:
    """Return vectors by the first word of each prompt."""
    axes = {"red": 0, "blue": 1}
    return np.stack([np.eye(3, dtype=np.float32)[axes.get(prompt.split()[0], 2)] for prompt in prompts])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/store.db")
    for worker in ("w1", "w2"):
        store.heartbeat(worker, 60)
    yield store
    store.close()


@pytest.fixture
def handle(store: Store) -> Handle:
    return Handle(FakePainter(store, "w1"), FakePainter(store, "w2"))


@pytest.fixture
def dispatcher(store: Store, handle: Handle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dispatcher:
    monkeypatch.setattr(module, "encoder_for", lambda settings: encode)
    monkeypatch.setattr(module, "FIXED", ("red", "blue"))
    return Dispatcher(WorkerSettings(f"sqlite:///{tmp_path}/store.db", "", "", "mini"), handle)


def turn(dispatcher: Dispatcher, *kinds: str) -> Any:
    return asyncio.run(dispatcher.turn(kinds))


def places(store: Store) -> dict[str, str]:
    """Return the worker for which each prompt waits."""
    return {row.request.prompt: worker for worker in ("w1", "w2", "w3") for row in store.waiting(worker=worker)}


def test_similar_prompts_wait_for_the_same_worker(store: Store, handle: Handle, dispatcher: Dispatcher) -> None:
    accept(store, "red apple", "blue car", "red car")
    found = turn(dispatcher, "work")
    assert places(store) == {
        "red apple": handle.routes[f"{store.waiting()[0].bucket}-0"],
        "red car": handle.routes[f"{store.waiting()[0].bucket}-0"],
        "blue car": handle.routes[f"{store.waiting()[0].bucket}-1"],
    }
    assert len(handle.routes) == 2
    assert len({*handle.routes.values()}) == 2
    assert (found["ready"], found["facts"], found["rows_per_second"], found["more"]) == (2, FACTS, 4.0, False)
    accept(store, "red pear")
    turn(dispatcher)
    assert places(store)["red pear"] == places(store)["red apple"]


def test_what_waited_for_a_dead_worker_goes_to_another(store: Store, handle: Handle, dispatcher: Dispatcher) -> None:
    accept(store, "red apple", "blue car")
    turn(dispatcher)
    gone = places(store)["red apple"]
    (painter,) = (each for each in handle.painters if each.name == gone)
    painter.is_dead = True
    store.give_up(gone)
    turn(dispatcher)  # Ray has not noticed yet
    assert "red apple" not in {prompt: place for prompt, place in places(store).items() if place != gone}
    handle.painters.remove(painter)
    turn(dispatcher)
    assert {*places(store).values()} == {handle.painters[0].name}


def test_a_painter_that_does_not_answer_holds_up_no_other(
    store: Store, handle: Handle, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.05)
    accept(store, "red apple", "blue car")
    handle.painters[0].is_stuck = True
    assert not turn(dispatcher)["more"]
    assert {*places(store).values()} == {"w2"}
    handle.painters[0].is_stuck = False
    turn(dispatcher)
    assert {*places(store).values()} == {"w1", "w2"}


def test_many_images_are_handed_over_in_parts(
    store: Store, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    accept(store, "red 1", "red 2", "red 3")
    assert turn(dispatcher)["more"]
    assert [*places(store)] == ["red 1", "red 2"]
    assert not turn(dispatcher)["more"]
    assert len(places(store)) == 3


def test_cancellations_and_plans_reach_all_painters(store: Store, handle: Handle, dispatcher: Dispatcher) -> None:
    turn(dispatcher, "work", "cancel")
    assert [sorted(painter.told) for painter in handle.painters] == [["cancel", "work"]] * 2
    accept(store, "red 1")
    turn(dispatcher, "work")
    assert [len(painter.told) for painter in handle.painters] == [2, 2]  # `assign` wakes the worker


def test_without_painters_nothing_is_lost(store: Store, handle: Handle, dispatcher: Dispatcher) -> None:
    painters, handle.painters = handle.painters, []
    assert turn(dispatcher, "cancel")["ready"] == 0
    handle.painters = painters
    accept(store, "red 1")
    turn(dispatcher)
    assert len(places(store)) == 1


def test_the_summary_counts_what_is_ready() -> None:
    found = summary([report("w1", 3.0), report("w2", None), report("w3", 9.0, "restarting")])
    assert found == {"ready": 2, "facts": FACTS, "rows_per_second": 6.0, "restarts": 3, "more": False}
    assert summary([report("w1", None)])["rows_per_second"] is None
    assert summary([])["facts"] is None
