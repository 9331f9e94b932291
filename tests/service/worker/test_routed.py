"""Workers side by side: each generates what is assigned to it, and an idle one what waits too long."""

import time
from pathlib import Path

from waiting import SIMILAR, Service, request


def pair(folder: Path, **options: object) -> tuple[Service, Service]:
    one, two = (Service(folder, name=name, is_routed=True, **options) for name in ("one", "two"))
    for service in (one, two):
        service.store.heartbeat(service.worker.name, 30)
    return one, two


def test_a_worker_generates_its_own_images_only(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    job = one.ask(*(request(prompt) for prompt in SIMILAR))
    first, second, third = (image.id for image in one.images(job))
    one.store.assign("one", "r", [first, third])
    two.work()
    assert [image.state for image in one.images(job)] == ["waiting"] * 3
    one.work()
    assert [image.state for image in one.images(job)] == ["done", "waiting", "done"]
    assert one.images(job)[0].group == one.images(job)[2].group
    two.store.assign("two", "r", [second])
    two.work()
    assert [image.state for image in one.images(job)] == ["done"] * 3


def test_an_idle_worker_takes_over(tmp_path: Path) -> None:
    one, two = pair(tmp_path, lease_seconds=0.01)
    job = one.ask(request(SIMILAR[0]))
    time.sleep(0.02)  # longer than a lease
    two.work()
    assert [image.state for image in one.images(job)] == ["done"]  # no worker had it for longer than a lease
    busy = one.ask(request(SIMILAR[1]))
    one.store.heartbeat("one", 60)
    one.store.assign("one", "r", [image.id for image in one.images(busy)])
    two.work()
    assert [image.state for image in one.images(busy)] == ["waiting"]  # its worker may still come


def test_a_plan_is_made_by_one_worker(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    job = one.ask(*(request(prompt) for prompt in SIMILAR), kind="plan")
    assert one.store.start_plan(job, "one")
    two.work()
    assert one.store.job("me", job).state == "running"  # type: ignore[union-attr]
    one.work()
    assert one.store.job("me", job).state == "done"  # type: ignore[union-attr]
