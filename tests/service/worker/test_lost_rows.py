"""Rows that were computed for no image are counted, and no others."""

from pathlib import Path
from typing import Any

import pytest
import waiting
from waiting import SIMILAR, STEPS, Service, request

from cotrunk.engine.call_state import StepEvent
from cotrunk.service.worker.wave import Call

ALONE = 2 * STEPS  # rows of an image that shares with no other


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def at_step(service: Service, number: int, act: Any) -> None:
    step = service.worker._progress.step

    def look(call: Call, event: StepEvent) -> None:
        step(call, event)
        if event.step == number:
            act()

    service.worker._progress.step = look  # type: ignore[method-assign]


@pytest.mark.parametrize("trunks", ["off", "own"])
def test_rows_of_images_that_are_done_are_not_lost(tmp_path: Path, trunks: str) -> None:
    service = Service(tmp_path, trunks=trunks)
    for prompts in ([*SIMILAR, "7 UP!"], ["a small red moat"]):
        service.ask(*map(request, prompts))
        service.work()
    assert service.worker._lost.total == pytest.approx(0, abs=1e-6)


def test_rows_of_a_cancelled_call_are_lost(service: Service) -> None:
    job = service.ask(request("a cat"))

    def cancel() -> None:
        service.store.cancel("me", job)
        service.worker._watch._beat()

    at_step(service, 1, cancel)
    service.work()
    assert service.worker._lost.total == 2 * 3  # the third step finds that it is cancelled


def test_rows_of_an_image_with_nan_are_lost(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting.break_second_image(monkeypatch)
    service.ask(request("a cat"), request("7 UP!"))
    service.work()
    assert service.worker._lost.total == ALONE


def test_rows_of_a_call_that_fails_are_lost(service: Service) -> None:
    calls = list[int]()

    def fail() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("once")

    at_step(service, 2, fail)
    job = service.ask(request("a cat"), request("7 UP!"))
    service.work()
    assert [image.state for image in service.images(job)] == ["done", "done"]
    assert service.worker._lost.total == 2 * 2 * 3


def test_rows_of_images_that_were_done_before_are_lost(tmp_path: Path) -> None:
    first = Service(tmp_path, name="first")
    first.ask(*map(request, SIMILAR))
    (group,) = first.worker.next_wave()
    first.store.finish("first", group.members[0].id, {})
    first.store.give_up("first")
    second = Service(tmp_path, name="second")
    second.work()
    independent, shared = 3 * ALONE, second.worker._lost.total
    assert 0 < shared < independent / 3


def test_the_service_is_told_what_is_lost(service: Service) -> None:
    told = list[tuple[str, dict[str, Any]]]()

    class Channel:
        def send(self, kind: str, **data: Any) -> None:
            told.append((kind, data))

    service.worker._channel = Channel()  # type: ignore[assignment]
    at_step(service, 2, lambda: (_ for _ in ()).throw(ValueError("always")))
    service.ask(request("a cat"))
    service.work()
    assert ("lost", {"rows": 6.0}) in told
