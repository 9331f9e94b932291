"""Faults of the worker: each costs the image, plan or record that is the reason, and nothing else."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import waiting
from sqlalchemy import update
from waiting import SIMILAR, Service, request

from cotrunk.engine.call_state import StepEvent
from cotrunk.service.store import ImageRequest
from cotrunk.service.store.tables import groups
from cotrunk.service.worker.wave import Call, Finished, LostDeviceError
from cotrunk.service.worker.writer import WriterError

LOST = RuntimeError("CUDA error: an illegal memory access was encountered")
BAD = "7 UP!"


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def states(service: Service, job: str) -> list[str]:
    return [image.state for image in service.images(job)]


def plan_of(service: Service, job: str) -> Any:
    found = service.store.job("me", job)
    assert found is not None
    return found


def refusing(plan: Callable[..., Any], error: Exception, most: int = 1000) -> Callable[..., Any]:
    """Return `Planner.plan`, but with an error for a certain prompt, or for too many."""

    def planned(requests: Sequence[ImageRequest], *arguments: Any) -> Any:
        if len(requests) > most or any(each.prompt == BAD for each in requests):
            raise error
        return plan(requests, *arguments)

    return planned


def break_records(service: Service) -> None:
    """Change the records of all groups to those of another version."""
    with service.store._database.write() as connection:
        connection.execute(update(groups).values(plan={"plan": {"format": 99}}))


@pytest.mark.parametrize("error", [RuntimeError("bad word"), torch.OutOfMemoryError("no memory")])
def test_an_image_that_cannot_be_grouped_fails_by_itself(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(service.worker._planner, "plan", refusing(service.worker._planner.plan, error))
    job = service.ask(*map(request, [BAD, *SIMILAR]))
    service.work()
    assert states(service, job) == ["failed", "done", "done", "done"]
    bad = service.images(job)[0]
    assert ("bad word" if isinstance(error, RuntimeError) and "bad" in str(error) else "memory") in (bad.reason or "")
    assert (bad.attempts, bad.group) == (0, None)
    failed = [event.data for event in service.store.events("me", job) or () if event.kind == "failed"]
    assert [(data["image"], data["reason"]) for data in failed] == [(bad.id, bad.reason)]


def test_images_that_cannot_be_grouped_together_are_generated_in_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(tmp_path, settings=waiting.SETTINGS | {"batching": {"batch_size": 2}})
    planner, made = service.worker._planner, list[int]()
    monkeypatch.setattr(planner, "plan", refusing(planner.plan, torch.OutOfMemoryError("no memory"), most=1))
    single = planner.single
    monkeypatch.setattr(planner, "single", lambda member: made.append(1) or single(member))
    job = service.ask(*map(request, [*SIMILAR, "a cat"]))
    assert len(service.worker.next_wave()) == 2
    assert len(made) == 2  # only as many as leave
    service.work()
    assert states(service, job)[2:] == ["done", "done"]


def test_prompts_that_cannot_be_compared_do_not_wait_for_each_other(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vectors(prompts: Sequence[str]) -> Any:
        raise RuntimeError("no vectors")

    monkeypatch.setattr(service.worker._planner, "vectors", vectors)
    jobs = [service.ask(request(prompt)) for prompt in SIMILAR[:2]]
    service.work()
    assert [states(service, job) for job in jobs] == [["done"], ["done"]]


@pytest.mark.parametrize("how", ["plan", "vectors"])
def test_an_image_that_loses_the_device_before_it_is_leased_is_set_aside(tmp_path: Path, how: str) -> None:
    service = Service(tmp_path)
    # the bad prompt is compared with the one before it
    good, bad, *others = (service.ask(request(prompt, seed=1)) for prompt in [SIMILAR[0], BAD, *SIMILAR[1:]])
    lives = 0
    while lives < 5:
        lives += 1
        life = Service(tmp_path, name=f"life {lives}", wait_ms=60_000)
        life.worker._queue.look = 2  # as many wait, so none waits for others
        planner = life.worker._planner
        if how == "plan":
            planner.plan = refusing(planner.plan, LOST)  # type: ignore[method-assign]
        else:
            vectors = planner.vectors

            def compared(prompts: Sequence[str], vectors: Any = vectors) -> Any:
                if prompts[0] == BAD:
                    raise LOST
                return vectors(prompts)

            planner.vectors = compared  # type: ignore[method-assign]
        try:
            life.work()
            break
        except LostDeviceError:
            life.store.give_up(life.worker.name)
    image = service.images(bad)[0]
    if how == "plan":  # it cannot be generated
        assert (lives, image.state, image.attempts) == (4, "failed", 3)
        assert "died 3 times" in (image.reason or "")
    else:  # once is enough: from then on it is compared with no other
        assert (lives, image.state, image.attempts) == (2, "done", 2)
    assert [states(service, job) for job in (good, *others)] == [["done"]] * 3


def test_an_image_that_loses_the_device_while_it_is_generated_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = waiting.pipeline()
    encode = pipe.encode_prompt

    def encoded(prompt: list[str], *args: Any, **kwargs: Any) -> Any:
        if BAD in prompt:
            raise LOST
        return encode(prompt, *args, **kwargs)

    monkeypatch.setattr(pipe, "encode_prompt", encoded, raising=False)
    store = Service(tmp_path)
    job = store.ask(*map(request, [BAD, *SIMILAR]))
    for life in map(str, range(3)):
        worker = Service(tmp_path, name=life).worker
        with pytest.raises(LostDeviceError):
            worker.run()
        store.store.give_up(life)  # its process has ended
    Service(tmp_path, name="last").work()
    assert states(store, job) == ["failed", "done", "done", "done"]


@pytest.mark.parametrize("deaths", [1, 2])
def test_images_whose_record_is_of_another_version_fail(tmp_path: Path, deaths: int) -> None:
    first = Service(tmp_path, name="first")
    job = first.ask(*map(request, SIMILAR))
    first.worker.next_wave()
    first.store.give_up("first")
    if deaths == 2:
        first.store.reclaim("second", 30)
        first.store.give_up("second")
    break_records(first)
    other = first.ask(request("a cat"))
    Service(tmp_path, name="last").work()
    assert states(first, job) == ["failed"] * 3
    assert all("another version of cotrunk wrote it" in (image.reason or "") for image in first.images(job))
    assert states(first, other) == ["done"]


@pytest.mark.parametrize("when", ["between steps", "between calls"])
@pytest.mark.parametrize("error", [RuntimeError("no vectors"), torch.OutOfMemoryError("no memory")])
def test_a_plan_that_fails_costs_no_image(
    service: Service, monkeypatch: pytest.MonkeyPatch, when: str, error: Exception
) -> None:
    planner = service.worker._planner
    monkeypatch.setattr(planner, "plan", refusing(planner.plan, error))
    plans = list[str]()
    step = service.worker._progress.step

    def ask(call: Call, event: StepEvent) -> None:
        step(call, event)
        if event.step == 1 and when == "between steps":
            plans.append(service.ask(request(BAD), kind="plan"))
            service.worker._watch.wake()
        if event.step == 3 and plans:
            assert plan_of(service, plans[0]).state == "failed"

    service.worker._progress.step = ask  # type: ignore[method-assign]
    if when == "between calls":
        plans.append(service.ask(request(BAD), kind="plan"))
    job = service.ask(*map(request, SIMILAR))
    service.work()
    assert states(service, job) == ["done"] * 3
    assert len({image.group for image in service.images(job)}) == 1
    wanted = "ask for fewer prompts" if isinstance(error, torch.OutOfMemoryError) else "no vectors"
    assert wanted in plan_of(service, plans[0]).reason


def test_a_large_plan_is_made_part_by_part_while_images_are_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cotrunk.service.worker.plan_jobs.SECONDS", 0.0)
    monkeypatch.setattr("cotrunk.service.worker.plan_jobs.SHARE", 0.0)
    monkeypatch.setattr("cotrunk.service.worker.plan_jobs.PROMPTS", 2)
    service = Service(tmp_path, settings=waiting.SETTINGS | {"batching": {"batch_size": 1}})
    step = service.worker._progress.step

    def look(call: Call, event: StepEvent) -> None:
        step(call, event)
        service.worker._watch.wake()

    service.worker._progress.step = look  # type: ignore[method-assign]
    plan = service.ask(*map(request, [*SIMILAR, "a cat", "a dog"]), kind="plan")
    later = service.ask(*map(request, SIMILAR), kind="plan")
    job = service.ask(*(request(prompt) for prompt in ("a cat", BAD, "zebra")))
    found = []
    while service.worker.turn():
        done = states(service, job).count("done") + service.worker._writer.is_busy
        found.append((done, plan_of(service, plan).state, plan_of(service, later).state))
    assert [state for _, state, _ in found][:3] == ["running", "running", "done"]
    assert found[2][0] >= 2  # an image per part of the plan
    assert found[-1][2] == "done"
    assert service.store.waiting_plans() == []


def test_a_plan_in_parts_that_a_worker_leaves_has_no_attempt(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cotrunk.service.worker.plan_jobs.SECONDS", 0.0)
    monkeypatch.setattr("cotrunk.service.worker.plan_jobs.PROMPTS", 1)
    service.ask(*map(request, SIMILAR), kind="plan")
    service.worker.turn()
    (plan,) = service.store.waiting_plans()
    assert (plan.job.state, plan.attempts) == ("running", 0)


def test_a_plan_during_which_a_worker_died_is_not_made_between_steps(service: Service) -> None:
    plan = service.ask(request(BAD), kind="plan")
    assert service.store.start_plan(plan)  # and then it died
    assert not service.worker._plans.make_small()
    assert service.worker._plans.go_on()
    assert plan_of(service, plan).state == "done"


def test_previews_and_events_that_cannot_be_written_cost_no_image(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str, content: bytes) -> None:
        if "partial" in name:
            raise OSError("the disk is full")
        (service.folder / name).write_bytes(content)

    monkeypatch.setattr("cotrunk.service.worker.progress.EVERY", 0.0)
    monkeypatch.setattr(service.worker._progress._files, "write", write)
    one = service.ask(request(SIMILAR[0], output={"partials": 3}))
    other = service.ask(request(BAD), owner="you")
    service.work()
    assert states(service, one) == ["done"]
    assert service.images(other, "you")[0].state == "done"
    assert not any(event.kind == "partial" for event in service.store.events("me", one) or ())


def test_previews_that_cannot_be_removed_cost_no_image(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(name: str) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(service.worker._progress._files, "remove_file", remove)
    job = service.ask(request("a cat", output={"partials": 1}))
    service.work()
    service.worker._progress.tidy(0)
    service.worker.finish()
    assert states(service, job) == ["done"]


def test_events_that_cannot_be_written_cost_no_image(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(told: Any) -> None:
        raise OSError("away")

    monkeypatch.setattr("cotrunk.service.worker.progress.EVERY", 0.0)
    monkeypatch.setattr(service.worker._progress._store, "tell", tell)
    job = service.ask(request("a cat"))
    service.work()
    assert states(service, job) == ["done"]


def test_an_image_that_cannot_be_written_fails_alone(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = service.worker._delivery
    written = delivery._written

    def write(group: Any, image: int, *arguments: Any) -> Any:
        if group.members[image].request.prompt == BAD:
            raise ValueError("odd image")
        return written(group, image, *arguments)

    monkeypatch.setattr(delivery, "_written", write)
    job = service.ask(*map(request, [BAD, "a cat"]))
    service.work()
    assert states(service, job) == ["failed", "done"]
    assert "odd image" in (service.images(job)[0].reason or "")


def test_a_call_that_cannot_be_delivered_ends_the_worker_and_not_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(tmp_path, name="first", settings=waiting.SETTINGS | {"batching": {"batch_size": 1}})

    def deliver(finished: Finished, cancelled: set[str]) -> None:
        raise ValueError("unexpected")

    monkeypatch.setattr(service.worker._delivery, "deliver", deliver)
    job = service.ask(*map(request, ["a cat", BAD]))
    with pytest.raises(WriterError, match="unexpected"):
        service.worker.run()
    assert "failed" not in states(service, job)
    service.store.give_up("first")
    Service(tmp_path, name="second").work()
    assert states(service, job) == ["done", "done"]
    assert service.images(job)[0].attempts == 2
