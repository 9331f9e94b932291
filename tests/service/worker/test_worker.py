"""The worker on a tiny pipeline: groups, files, results, failures, cancellation and what a crash leaves."""

import errno
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import waiting
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from waiting import SIMILAR, STEPS, Service, request

import cotrunk
from cotrunk.engine.call_state import StepEvent
from cotrunk.errors import CotrunkError
from cotrunk.service.worker.asked import call_of
from cotrunk.service.worker.formed import Formed
from cotrunk.service.worker.savings import ENOUGH
from cotrunk.service.worker.wave import Call
from cotrunk.settings import Settings, Skipping
from cotrunk.storage.files import StorageError


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def pixels(service: Service, file: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO((service.folder / file).read_bytes())))


def recorded(service: Service, group: str) -> Formed:
    found = service.store.group(group)
    assert found is not None
    return Formed.leased(found)


def test_similar_images_share_and_are_those_of_their_recorded_plan(service: Service) -> None:
    job = service.ask(*(request(prompt) for prompt in [*SIMILAR, "7 UP!"]))
    service.work()
    *alike, other = service.images(job)
    assert [image.state for image in (*alike, other)] == ["done"] * 4
    assert len({image.group for image in alike}) == 1
    assert other.group != alike[0].group
    for image in alike:
        assert image.result is not None
        assert {image.id, *image.result["shared_with"]} == {each.id for each in alike}
        assert image.result["rows"]["sharing"] > 0
    assert other.result is not None
    assert other.result["shared_with"] == []
    formed = recorded(service, alike[0].group or "")
    settings = Settings.from_json(waiting.SETTINGS)
    result = cotrunk.generate(
        waiting.pipeline(), plan=formed.plan, settings=settings, num_inference_steps=STEPS, width=32, height=32
    )
    for member, expected in zip(formed.members, result.images, strict=True):
        found = next(image.result for image in alike if image.id == member.id)
        assert found is not None
        assert np.abs(pixels(service, found["file"]).astype(int) - np.asarray(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("skips", [True, False])
def test_images_do_not_share_where_skipping_leaves_nothing_to_save(tmp_path: Path, skips: bool) -> None:
    skipping = asdict(Skipping()) if skips else None
    service = Service(tmp_path, settings=waiting.SETTINGS | {"skipping": skipping})
    for rows, shares in ((5.0, False), (6.0, True)):
        for _ in range(ENOUGH):
            service.worker._savings.note(call_of(request(SIMILAR[0])), rows, shares=shares)
    job = service.ask(*map(request, SIMILAR))
    service.work()
    results = [image.result for image in service.images(job) if image.result is not None]
    assert [not result["shared_with"] for result in results] == [skips] * len(SIMILAR)


def test_an_image_alone_is_the_bare_pipelines_to_the_bit(service: Service) -> None:
    job = service.ask(request(SIMILAR[0], group="alone", seed=7), request(SIMILAR[1]), request(SIMILAR[2]))
    service.work()
    alone = service.images(job)[0].result
    assert alone is not None
    assert alone["shared_with"] == []
    assert alone["rows"]["computed"] == 2 * STEPS
    generator = torch.Generator().manual_seed(7)
    bare = waiting.pipeline()(SIMILAR[0], num_inference_steps=STEPS, width=32, height=32, generator=generator).images[0]
    assert np.array_equal(pixels(service, alone["file"]), np.asarray(bare))


def test_only_images_of_one_owner_group_name_and_settings_share(service: Service) -> None:
    one = service.ask(
        request(SIMILAR[0]), request(SIMILAR[1], negative_prompt="blurred"), request(SIMILAR[2], group="x")
    )
    two = service.ask(request(SIMILAR[1]), owner="you")
    service.work()
    images = [*service.images(one), *service.images(two, "you")]
    assert all(image.result is not None and image.result["shared_with"] == [] for image in images)


def test_images_of_different_jobs_and_outputs_share(service: Service) -> None:
    one = service.ask(request(SIMILAR[0]))
    two = service.ask(request(SIMILAR[1], output={"format": "jpeg"}))
    service.work()
    (first,), (second,) = service.images(one), service.images(two)
    assert first.group == second.group
    assert second.result is not None
    assert second.result["file"].endswith(".jpg")
    (event,) = [event for event in service.store.events("me", two) or () if event.kind == "grouped"]
    assert event.data["members"] == event.data["shared_with"] == [first.id, second.id]
    assert event.data["tree"]["stop"] == 2
    assert SIMILAR[0] not in (service.folder / second.result["file"]).read_bytes().decode("latin1")


def test_a_file_holds_its_own_words_and_ids(service: Service) -> None:
    job = service.ask(request(SIMILAR[0], seed=3), request(SIMILAR[1]))
    service.work()
    first, _ = service.images(job)
    assert first.result is not None
    text = Image.open(service.folder / first.result["file"]).text  # type: ignore[attr-defined]
    assert text["prompt"] == SIMILAR[0]
    assert text["image"] == first.id
    assert text["group"] == first.group
    assert text["seed"] == "3" == str(first.result["seed"])
    assert SIMILAR[1] not in str(text)


def test_seeds_differ_unless_they_are_given(service: Service) -> None:
    job = service.ask(request("a cat"), request("a cat"), request("a cat", seed=1), request("a cat", seed=1))
    service.work()
    seeds = [image.result["seed"] for image in service.images(job) if image.result is not None]
    assert len(set(seeds)) == 3
    assert seeds[2:] == [1, 1]


def test_previews_and_steps_become_events(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cotrunk.service.worker.progress.EVERY", 0.0)
    job = service.ask(request(SIMILAR[0], output={"partials": 2}), request(SIMILAR[1]))
    service.work()
    first, _ = service.images(job)
    events = service.store.events("me", job) or []
    partials = [event.data for event in events if event.kind == "partial"]
    assert [(data["index"], data["step"], data["image"]) for data in partials] == [(0, 2, first.id), (1, 4, first.id)]
    assert first.result is not None
    final = pixels(service, first.result["file"]).astype(float)
    errors = [np.abs(pixels(service, data["file"]) - final).mean() for data in partials]
    assert errors[1] < errors[0]  # the previews approach the image
    steps = [event.data["step"] for event in events if event.kind == "step"]
    assert steps[0] == 1  # the writer leaves out some of the next ones if it is behind
    assert steps == sorted({*steps} & {1, 2, 3, 4})


def test_a_preview_changes_no_image(tmp_path: Path) -> None:
    found = []
    for partials in (0, 3):
        service = Service(tmp_path / str(partials))
        job = service.ask(request(SIMILAR[0], seed=1, output={"partials": partials}), request(SIMILAR[1], seed=2))
        service.work()
        found.append([pixels(service, image.result["file"]) for image in service.images(job) if image.result])
    assert len(found[0]) == 2
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("ends", ["done", "cancelled", "stopped"])
def test_previews_are_removed_some_time_after_their_call(service: Service, ends: str) -> None:
    job = service.ask(request(SIMILAR[0], output={"partials": 3}), request("7 UP!", output={"partials": 3}))
    progress = service.worker._progress
    step = progress.step

    def look(call: Call, event: StepEvent) -> None:
        step(call, event)
        if event.step == 2 and ends == "cancelled":
            service.store.cancel("me", job)
            service.worker._watch._beat()
        if event.step == 2 and ends == "stopped":
            service.worker.stop(0)

    progress.step = look  # type: ignore[method-assign]
    if ends == "stopped":
        service.worker.run()  # at its end, it removes all of them
        assert list(service.folder.iterdir()) == []
        return
    service.work()
    shown = [path.name for path in service.folder.iterdir() if "partial" in path.name]
    assert len(shown) == (6 if ends == "done" else 4)  # a client may be about to read them
    progress.tidy(0)
    service.worker.finish()
    left = [path.name for path in service.folder.iterdir()]
    assert len(left) == (2 if ends == "done" else 0)
    assert not any("partial" in name for name in left)


def test_a_worker_that_goes_on_removes_previews(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.ask(request(SIMILAR[0], output={"partials": 3}))
    service.work()
    monkeypatch.setattr("cotrunk.service.worker.progress.KEPT", 0.0)
    service.worker.turn()
    service.worker.finish()
    assert len(list(service.folder.iterdir())) == 1


def test_a_plan_preview_is_answered_while_a_call_runs(service: Service) -> None:
    service.ask(request("a cat"))
    asked = ""
    progress = service.worker._progress
    step = progress.step

    def ask_once(call: Call, event: StepEvent) -> None:
        nonlocal asked
        step(call, event)
        if event.step == 1:
            asked = service.ask(*(request(prompt) for prompt in [*SIMILAR, "7 UP!"]), kind="plan")
            service.worker._watch.wake()
        if event.step == 2:
            job = service.store.job("me", asked)
            assert job is not None
            assert job.state == "done"

    progress.step = ask_once  # type: ignore[method-assign]
    service.work()
    job = service.store.job("me", asked, whole=True)
    assert job is not None
    assert job.state == "done"
    (group,) = job.result["groups"]
    assert group["images"] == [0, 1, 2]
    assert group["steps_shared"] == 2
    rows = job.result["rows"]
    assert rows["independent"] == 4 * 2 * STEPS
    assert rows["computed"] == rows["independent"] - group["rows"]["sharing"]


def test_cancelled_images_stop_the_call(service: Service) -> None:
    job = service.ask(request(SIMILAR[0]), request(SIMILAR[1]))
    later = service.ask(request("7 UP!"))
    service.worker._queue.look = 2
    steps = []

    def cancel(call: Call, event: StepEvent) -> None:
        steps.append(event.step)
        if len(steps) == 2:
            service.store.cancel("me", job)
            service.worker._watch._beat()

    service.worker._progress.step = cancel  # type: ignore[method-assign]
    service.work()
    assert [image.state for image in service.images(job)] == ["cancelled"] * 2
    assert steps[:3] == [0, 1, 0]  # the next step of that call was its last
    assert service.images(later)[0].state == "done"
    assert len(list(service.folder.iterdir())) == 1


def test_a_part_of_a_group_may_be_cancelled(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    job, other = service.ask(request(SIMILAR[0])), service.ask(request(SIMILAR[1]))
    delivery, batches = service.worker._delivery, []
    deliver = delivery.deliver
    monkeypatch.setattr(delivery, "deliver", lambda done, gone: batches.append(done.batch) or deliver(done, gone))

    def cancel(call: Call, event: StepEvent) -> None:
        if event.step == 2:  # the first of its own steps
            service.store.cancel("me", other)
            service.worker._watch._beat()

    service.worker._progress.step = cancel  # type: ignore[method-assign]
    service.work()
    assert [service.images(each)[0].state for each in (job, other)] == ["done", "cancelled"]
    (batch,) = batches
    assert batch.left == (1,)
    assert batch.spared["left"] == 2  # of the step that was left; the one before ran while it was cancelled


def test_a_group_of_a_dead_worker_runs_again_from_its_record(tmp_path: Path) -> None:
    first = Service(tmp_path, name="first", lease_seconds=30.0)
    job = first.ask(*(request(prompt) for prompt in SIMILAR))
    groups = first.worker.next_wave()
    first.store.give_up("first")  # it died
    second = Service(tmp_path, name="second")
    second.work()
    images = second.images(job)
    assert [image.state for image in images] == ["done"] * 3
    assert {image.group for image in images} == {groups[0].id}
    assert [image.attempts for image in images] == [2] * 3
    assert [image.result["seed"] for image in images if image.result] == list(groups[0].plan.seeds)


def test_after_two_deaths_images_run_alone(tmp_path: Path) -> None:
    first = Service(tmp_path, name="first")
    job = first.ask(*(request(prompt) for prompt in SIMILAR))
    seeds = first.worker.next_wave()[0].plan.seeds
    first.store.give_up("first")
    second = Service(tmp_path, name="second")
    second.store.reclaim("second", 30)
    second.store.give_up("second")
    third = Service(tmp_path, name="third")
    third.work()
    images = third.images(job)
    assert [image.state for image in images] == ["done"] * 3
    assert all(image.result and image.result["shared_with"] == [] for image in images)
    assert [image.result["seed"] for image in images if image.result] == list(seeds)


def test_a_worker_that_stops_gives_its_images_back(service: Service) -> None:
    job = service.ask(request("a cat"))

    def stop(call: Call, event: StepEvent) -> None:
        service.worker.stop(0)

    service.worker._progress.step = stop  # type: ignore[method-assign]
    service.worker.run()
    second = Service(service.folder.parent, name="second")
    second.work()
    (image,) = second.images(job)
    assert image.state == "done"
    assert image.attempts == 1


class Poisoned:
    """Makes the text encoder of a pipeline refuse calls with a certain prompt."""

    def __init__(self, pipe: Any, word: str, error: Exception) -> None:
        self.word, self.error, self.calls = word, error, list[int]()
        self._pipe, self._encode = pipe, pipe.encode_prompt

    def __call__(self, prompt: list[str], *args: Any, **kwargs: Any) -> Any:
        self.calls.append(len(prompt))
        if any(self.word in each for each in prompt):
            raise self.error
        return self._encode(prompt, *args, **kwargs)


@pytest.mark.parametrize("error", [ValueError("bad word"), torch.OutOfMemoryError("no memory")])
def test_one_image_that_fails_does_not_take_others_with_it(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    poisoned = Poisoned(waiting.pipeline(), SIMILAR[1], error)
    monkeypatch.setattr(waiting.pipeline(), "encode_prompt", poisoned, raising=False)
    job = service.ask(*(request(prompt) for prompt in [*SIMILAR, "7 UP!"]))
    service.work()
    images = service.images(job)
    assert [image.state for image in images] == ["done", "failed", "done", "done"]
    wrong = "bad word" if isinstance(error, ValueError) else "too little memory"
    assert wrong in (images[1].reason or "")


def test_a_full_device_gets_smaller_calls(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, most = waiting.pipeline(), 2
    encode, calls = pipe.encode_prompt, []

    def limited(prompt: list[str], *args: Any, **kwargs: Any) -> Any:
        calls.append(len(prompt))
        if len(prompt) > most:
            raise torch.OutOfMemoryError
        return encode(prompt, *args, **kwargs)

    monkeypatch.setattr(pipe, "encode_prompt", limited, raising=False)
    job = service.ask(*(request(prompt) for prompt in ("a cat", "7 UP!", "zebra (wild)", "QQQ", "1/2")))
    service.work()
    assert [image.state for image in service.images(job)] == ["done"] * 5
    assert service.worker._generator.batching.batch_size == 2
    service.ask(*(request(prompt) for prompt in ("a cat", "7 UP!", "zebra (wild)")))
    calls.clear()
    service.work()
    assert max(calls) == 2  # what was learnt stays


def test_an_image_with_nan_fails_with_its_reason(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting.break_second_image(monkeypatch)
    job = service.ask(request("a cat"), request("7 UP!"))
    service.work()
    one, two = service.images(job)
    assert one.state == "done"
    assert two.state == "failed"
    assert "NaN" in (two.reason or "")
    assert len(list(service.folder.iterdir())) == 1


def test_an_image_that_cannot_be_stored_fails_without_naming_the_storage(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, content: bytes) -> None:
        raise StorageError(f"Cannot write {name} in s3://internal: Access Denied.")

    monkeypatch.setattr(service.worker._delivery._files, "write", refuse)
    job = service.ask(request("a cat"))
    service.work()
    (image,) = service.images(job)
    assert image.reason == "The storage of images did not take this image: ask for it again."


def test_an_image_that_the_pipeline_refuses_fails_by_itself(service: Service) -> None:
    job = service.ask(request("a cat"), request("7 UP!", model="other"), request("zebra", width=33))
    service.work()
    good, other, odd = service.images(job)
    assert good.state == "done"
    assert (other.state, odd.state) == ("failed", "failed")
    assert "other" in (other.reason or "")
    assert "divisible by 8" in (odd.reason or "")


def test_a_large_bucket_is_planned_once_and_generated_call_by_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharing = {**waiting.SETTINGS["sharing"], "max_group": 2}
    service = Service(tmp_path, settings={"sharing": sharing, "batching": {"batch_size": 2}})
    planner, planned = service.worker._planner, []
    plan = planner._form
    monkeypatch.setattr(planner, "_form", lambda members: planned.append(len(members)) or plan(members))
    job = service.ask(*(request(prompt) for prompt in [*SIMILAR, "7 UP!"]))
    service.work()
    images = service.images(job)
    assert [image.state for image in images] == ["done"] * 4
    assert len({image.group for image in images}) == 3
    assert planned == [4]


def test_waiting_images_are_grouped_with_those_that_come_in_time(service: Service) -> None:
    waits = Service(service.folder.parent, wait_ms=60_000)
    first = waits.ask(request(SIMILAR[0]))
    assert not waits.worker.turn()
    second = waits.ask(request(SIMILAR[1], wait_ms=0))
    waits.work()
    assert waits.images(first)[0].group == waits.images(second)[0].group is not None


@pytest.mark.parametrize("mode", ["own", "shared", "stems", "off"])
def test_images_that_come_later_replay_the_trunks_of_earlier_ones(tmp_path: Path, mode: str) -> None:
    service = Service(tmp_path, trunks=mode)
    asked = [("me", SIMILAR[0]), ("me", SIMILAR[1]), ("me", SIMILAR[2]), ("you", SIMILAR[1]), ("you", "7 UP!")]
    found = []
    for owner, prompt in asked:
        job = service.ask(request(prompt), owner=owner)
        service.work()
        (image,) = service.images(job, owner)
        assert image.result is not None
        found.append(image.result)
    hits = [None if result["trunk"] is None else result["trunk"]["hit"] for result in found]
    # the first is exact, the second makes a trunk of both, and the third replays it
    wanted = {"own": [None, False, True, None, None], "shared": [None, False, True, True, None]}
    assert hits == wanted.get(mode, [None] * 5)
    if mode == "own":
        assert found[2]["rows"]["replay"] == 4
        assert found[2]["rows"]["computed"] == 2 * STEPS - 4
        assert found[1]["rows"]["sharing"] == 4 - 2  # it took the rows of the trunk, without guidance
        assert sum(found[1]["rows"][way] for way in ("computed", "sharing", "replay")) == 2 * STEPS


def test_an_image_is_written_although_the_storage_is_busy_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, busy = Service(tmp_path, images=f"memory://{tmp_path.name}/images"), [errno.EBUSY] * 2
    write = MemoryFileSystem.pipe_file

    def slow(files: Any, path: str, value: bytes, **how: Any) -> None:
        if busy:
            raise OSError(busy.pop(), "Please reduce your request rate")
        write(files, path, value, **how)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", slow)
    monkeypatch.setattr("cotrunk.storage.files.time.sleep", lambda seconds: None)
    job = service.ask(request(SIMILAR[0]))
    service.work()
    (image,) = service.images(job)
    assert (image.state, busy) == ("done", [])


@pytest.mark.slow
def test_an_image_replays_the_trunk_of_another_machine(tmp_path: Path, postgresql: str) -> None:
    from databases import new_database

    shared = {"database": new_database(postgresql), "trunks": "own", "trunk_folder": f"memory://{tmp_path.name}"}
    machines = [Service(tmp_path / name, name=name, **shared) for name in ("one", "two", "three")]
    found = []
    for service, prompt in zip(machines, SIMILAR, strict=True):
        job = service.ask(request(prompt))
        service.work()
        found.append(service.images(job)[0].result)
    # the first is exact, the second makes a trunk of both, and the third replays it
    assert [result["trunk"] and result["trunk"]["hit"] for result in found] == [None, False, True]
    assert found[2]["rows"]["replay"] == 4


def test_a_folder_of_trunks_that_cannot_be_shared_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CotrunkError, match=r"cannot be used.* with --trunk-folder"):
        Service(tmp_path, trunks="own", trunk_folder="nothing://bucket/trunks")


@pytest.mark.parametrize(("keep_days", "days"), [(7.0, 7.0), (0, None)])
def test_trunks_are_kept_as_long_as_jobs(tmp_path: Path, keep_days: float, days: float | None) -> None:
    cache = Service(tmp_path, trunks="own", keep_days=keep_days).worker._planner.cache
    assert cache is not None
    assert cache._trunks.trunks.backing.limits.days == days


def test_images_with_trunks_are_those_of_their_recorded_plans(tmp_path: Path) -> None:
    service = Service(tmp_path, trunks="own")
    for prompts in (SIMILAR[:1], SIMILAR[1:], ["a small red moat"]):
        service.ask(*(request(prompt) for prompt in prompts))
        service.work()
    first, last = (service.images(each.id)[0] for each in service.store.jobs("me", kind="images")[:2])
    for image in (first, last):
        assert image.result is not None
        assert image.result["trunk"]
        formed = recorded(service, image.group or "")
        settings = {"settings": Settings.from_json(waiting.SETTINGS), "num_inference_steps": STEPS}
        result = cotrunk.generate(waiting.pipeline(), plan=formed.plan, **settings, width=32, height=32)
        expected = np.asarray(result.images[formed.images.index(image.id)]).astype(int)
        assert np.abs(pixels(service, image.result["file"]).astype(int) - expected).max() <= 1


def test_one_call_serves_owners_with_their_own_trunks(tmp_path: Path) -> None:
    service = Service(tmp_path, trunks="own")
    for prompt in SIMILAR[:2]:
        service.ask(request(prompt), owner="me")
        service.work()
    one, two = service.ask(request(SIMILAR[2]), owner="me"), service.ask(request(SIMILAR[2], seed=3), owner="you")
    service.work()
    (mine,), (yours,) = service.images(one, "me"), service.images(two, "you")
    assert mine.result is not None
    assert yours.result is not None
    assert mine.result["trunk"]["hit"]
    assert yours.result["trunk"] is None


def test_a_cancelled_call_does_not_hold_up_the_others_of_its_wave(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = waiting.pipeline()
    encode = pipe.encode_prompt

    def limited(prompt: list[str], *args: Any, **kwargs: Any) -> Any:
        if len(prompt) > 1:
            raise torch.OutOfMemoryError
        return encode(prompt, *args, **kwargs)

    monkeypatch.setattr(pipe, "encode_prompt", limited, raising=False)
    first, second = service.ask(request("a cat")), service.ask(request("7 UP!"))

    def cancel(call: Call, event: StepEvent) -> None:
        if event.step == 1:
            service.store.cancel("me", first)
            service.worker._watch._beat()

    service.worker._progress.step = cancel  # type: ignore[method-assign]
    service.work()
    assert [service.images(job)[0].state for job in (first, second)] == ["cancelled", "done"]
