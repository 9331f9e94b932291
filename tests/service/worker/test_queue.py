"""The waiting images as the worker sees them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import waiting
from stored import Clock
from waiting import request

from cotrunk.service.store import ImageRequest, ImageRow
from cotrunk.service.worker.asked import call_of
from cotrunk.service.worker.queue import IDLE, WAITING, Queue
from cotrunk.service.worker.savings import ENOUGH, Savings
from cotrunk.service.worker.speed import Speed

SIZE = 8
VECTORS = {"red": (1.0, 0.0), "green": (0.96, 0.28), "else": (0.0, 1.0)}


class Planner:
    """Knows three prompts, two of them similar; a similar image saves 20 rows."""

    shares, threshold = True, 0.9

    def vectors(self, prompts: list[str]) -> np.ndarray:
        return np.array([VECTORS[prompt] for prompt in prompts])

    def saved_rows(self, asked: ImageRequest) -> float:
        return 20.0


def row(number: int, asked: ImageRequest, accepted: float, job: str | None = None) -> ImageRow:
    place = f"{number:024x}"
    fields = {"number": 0, "owner": "me", "bucket": asked.bucket("me"), "request": asked, "state": "waiting"}
    fields |= {"attempts": 0, "accepted": accepted, "group": None, "result": None, "reason": None}
    return ImageRow(id=f"img_{place}", job=job or f"job_{place}", **fields)  # type: ignore[arg-type]


@pytest.fixture
def speed() -> Speed:
    speed = Speed()
    speed.note(100, 100, 1)  # a similar image saves a fifth of a second
    return speed


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def own(tmp_path: Path, speed: Speed, clock: Clock) -> Queue:
    launch = waiting.launch(tmp_path, wait_ms=50, batch_wait_ms=60_000)
    return Queue(Planner(), speed, Savings(), launch, clock)  # type: ignore[arg-type]


def arrive(own: Queue, clock: Clock, prompts: list[str], *, apart: float, job: str | None = None) -> None:
    """Let images come one by one, each of which leaves before the next one comes."""
    for number, prompt in enumerate(prompts):
        own.leaving([row(number, request(prompt), clock.time, job)], SIZE)
        clock.time += apart


def waits(own: Queue, clock: Clock, **options: Any) -> bool:
    return own.leaving([row(999, request("red", **options), clock.time)], SIZE) == []


def test_an_image_waits_until_unrelated_ones_have_come(own: Queue, clock: Clock) -> None:
    assert waits(own, clock)
    assert own.seconds_left() == pytest.approx(0.05)
    arrive(own, clock, ["else"] * 10, apart=1.0)
    assert not waits(own, clock)
    assert own.seconds_left() == IDLE


def test_similar_images_make_others_wait(own: Queue, clock: Clock) -> None:
    arrive(own, clock, ["red", "green"] * 10, apart=0.02)
    assert waits(own, clock)


@pytest.mark.parametrize("job", ["job_one", None])
def test_images_of_one_job_do_not_make_others_wait(own: Queue, clock: Clock, job: str | None) -> None:
    arrive(own, clock, ["red", "green"] * 10, apart=0.02, job=job)
    assert waits(own, clock) == (job is None)


def test_similar_images_that_come_too_late_do_not_count(own: Queue, clock: Clock) -> None:
    arrive(own, clock, ["red", "green"] * 10, apart=0.5)
    assert not waits(own, clock)


def test_images_of_a_batch_wait_until_it_does_not_pay(own: Queue, clock: Clock) -> None:
    line = row(1, request("red", custom_id="line 1"), clock.time)
    assert own.leaving([line], SIZE) == []
    assert own.seconds_left() == WAITING
    clock.time += 0.09
    assert own.leaving([line], SIZE) == []
    clock.time += 0.02
    assert own.leaving([line], SIZE)


def test_a_request_may_say_how_long_it_waits(own: Queue, clock: Clock) -> None:
    assert not waits(own, clock, wait_ms=0)
    assert waits(own, clock, wait_ms=10)
    assert own.seconds_left() == pytest.approx(0.01)


def test_no_image_waits_if_as_many_wait_as_are_looked_at(own: Queue, clock: Clock) -> None:
    rows = [row(number, request("red", negative_prompt=str(number), wait_ms=60_000), clock.time) for number in range(3)]
    own.look = 4
    assert own.leaving(rows, SIZE) == []
    own.look = 3  # there may be more behind these, and the device is idle
    assert own.leaving(rows, SIZE)


def test_an_image_with_which_the_worker_has_lost_its_device_is_grouped_with_no_other(own: Queue, clock: Clock) -> None:
    rows = [replace(row(number, request("red", wait_ms=60_000), clock.time), attempts=number) for number in range(2)]
    assert [[member.id for member in bucket] for bucket in own.leaving(rows, SIZE)] == [[rows[1].id]]


def test_an_image_does_not_wait_if_sharing_has_saved_nothing(own: Queue, clock: Clock) -> None:
    call = call_of(request("red"))
    for _ in range(ENOUGH):
        own._savings.note(call, 10.0, shares=False)
    for _ in range(ENOUGH - 1):
        own._savings.note(call, 11.0, shares=True)
    assert waits(own, clock)
    own._savings.note(call, 11.0, shares=True)
    assert not waits(own, clock)


def test_what_sharing_saves_is_that_of_late() -> None:
    savings = Savings()
    for rows in (5.0, 8.0):
        for _ in range(60):
            savings.note("call", 10.0, shares=False)
            savings.note("call", rows, shares=True)
    assert savings.of_pair("call", 99.0) == pytest.approx(4.0, abs=0.1)
    assert savings.of_pair("other", 99.0) == 99.0


def test_images_share_until_it_is_known_that_sharing_takes_more_rows() -> None:
    savings = Savings()
    assert savings.pays("call")
    for _ in range(ENOUGH):
        assert savings.pays("call")
        savings.note("call", 26.0, shares=True)
    for _ in range(ENOUGH):  # as many without sharing, for comparison
        assert not savings.pays("call")
        savings.note("call", 25.0, shares=False)
    assert not savings.pays("call")
    assert savings.pays("other")
    for _ in range(60):
        savings.note("call", 28.0, shares=False)
    assert savings.pays("call")
