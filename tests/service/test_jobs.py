"""Jobs: accepted once, bounded, cancelled in every state, seen by their owner only."""

import pytest
from stored import accept, requests, run

from cotrunk.service.store import IdempotencyConflict, ImageRequest, QueueFull, Store


def test_a_job_is_found_with_all_that_was_asked(store: Store) -> None:
    asked = ImageRequest(
        "a \x00 \ud800 cat", {"model": "mini", "steps": 3}, seed=7, group="g", wait_ms=5, rows=6, custom_id="x\x00"
    )
    job, is_new = store.accept("ann", "images", [asked], body={"p": "\x00"}, metadata={"m": "1"})
    assert is_new
    assert store.job("ann", job.id) == job
    assert (job.state, job.model, job.metadata, job.images) == ("waiting", "mini", {"m": "1"}, 1)
    assert store.job("ann", job.id, whole=True).body == {"p": "\x00"}
    assert job.body is store.jobs("ann")[0].body is None  # it may be large
    (image,) = store.images("ann", job.id)
    assert (image.request, image.state, image.number, image.attempts) == (asked, "waiting", 0, 0)
    assert store.waiting() == [image]
    assert store.image("ann", image.id) == image
    assert [event.kind for event in store.events("ann", job.id) or ()] == ["accepted"]


def test_another_owner_finds_nothing(store: Store) -> None:
    job = accept(store, "a cat")
    (image,) = store.images("ann", job)
    assert store.job("bob", job) is None
    assert store.images("bob", job) == []
    assert store.image("bob", image.id) is None
    assert store.events("bob", job) is None
    assert store.cancel("bob", job) is None
    assert store.jobs("bob") == []
    assert store.waiting() == [image]


@pytest.mark.parametrize("name", ["", "x", "\x00", "\ud800", "job_", "../../etc/passwd", "job_" + "0" * 24, "é" * 5000])
def test_what_is_not_an_id_is_not_found(store: Store, name: str) -> None:
    assert store.job("ann", name) is None
    assert store.image("ann", name) is None
    assert store.images("ann", name) == []
    assert store.events("ann", name) is None
    assert store.cancel("ann", name) is None
    assert store.jobs("ann", after=name) == []


def test_images_share_a_bucket_if_owner_settings_and_group_are_the_same() -> None:
    one = ImageRequest("a", {"x": 1, "y": 2})
    same = {"y": 2, "x": 1, "output": {"format": "webp"}}
    assert one.bucket("ann") == ImageRequest("b", same, seed=3, wait_ms=1, rows=9).bucket("ann")
    others = [
        one.bucket("bob"),
        ImageRequest("a", {"x": 1}).bucket("ann"),
        ImageRequest("a", {"x": 1, "y": 2}, group="g").bucket("ann"),
    ]
    assert len({one.bucket("ann"), *others}) == 4


def test_an_idempotency_key_gives_the_same_job(store: Store) -> None:
    first, _ = store.accept("ann", "images", requests("a"), body={"b": 1, "a": 2}, idempotency_key="k\ud800")
    second, is_new = store.accept("ann", "images", requests("a"), body={"a": 2, "b": 1}, idempotency_key="k\ud800")
    assert (second, is_new) == (first, False)
    assert len(store.waiting()) == 1
    with pytest.raises(IdempotencyConflict):
        store.accept("ann", "images", requests("a"), body={"a": 3}, idempotency_key="k\ud800")
    other, is_new = store.accept("bob", "images", requests("a"), body={"a": 2}, idempotency_key="k\ud800")
    assert is_new
    assert other.id != first.id


def test_a_full_queue_refuses_a_job_and_keeps_nothing_of_it(store: Store) -> None:
    accept(store, "a", "b", max_waiting_rows=100)
    with pytest.raises(QueueFull, match=r"80 of 100 rows wait") as refused:
        accept(store, "c", max_waiting_rows=100, idempotency_key="k")
    assert refused.value.waiting_rows == 80
    assert len(store.jobs("ann")) == 1
    run(store)
    accept(store, "c", max_waiting_rows=100, idempotency_key="k")


def test_an_empty_queue_takes_a_job_of_any_size(store: Store) -> None:
    accept(store, *"abc", max_waiting_rows=100)
    with pytest.raises(QueueFull):
        accept(store, *"abc", max_waiting_rows=100)
    assert accept(store, "d", max_waiting_rows=100)  # the large one enters the queue in parts


def test_the_events_of_all_jobs_are_read_together(store: Store) -> None:
    assert store.last_event() == 0
    one = accept(store, "a")
    before = store.last_event()
    other = accept(store, "b", owner="bob")
    assert [event.job for event in store.all_events(0)] == [one, other]
    assert [event.id for event in store.all_events(before)] == [store.last_event()]


def test_the_queue_tells_what_waits_and_since_when(store: Store, clock) -> None:
    assert store.queue().images == store.queue().rows == 0
    accept(store, "a")
    clock.time += 5
    accept(store, "b", "c")
    queue = store.queue()
    assert (queue.images, queue.rows, queue.oldest, queue.running_images) == (3, 120, 5.0, 0)
    run(store)
    queue = store.queue()
    assert (queue.images, queue.oldest, queue.running_images, queue.running_rows) == (0, 0.0, 3, 120)


def test_a_job_ends_with_its_last_image(store: Store, clock) -> None:
    job = accept(store, "a", "b")
    first, second = run(store)
    assert store.job("ann", job).state == "running"
    assert store.finish("w1", first, {"seed": 1})
    assert store.job("ann", job).state == "running"
    clock.time += 1
    assert store.fail("w1", second, "too large")
    ended = store.job("ann", job)
    assert (ended.state, ended.finished, ended.counts["done"], ended.counts["failed"]) == ("done", clock.time, 1, 1)
    one, two = store.images("ann", job)
    assert (one.result, one.state, two.reason, two.state) == ({"seed": 1}, "done", "too large", "failed")
    events = store.events("ann", job)
    assert [event.kind for event in events] == ["accepted", "grouped", "done", "failed"]
    assert [event.data.get("state") for event in events] == [None, None, "running", "done"]
    assert store.events("ann", job, events[1].id) == events[2:]


def test_a_job_without_a_single_image_has_failed(store: Store) -> None:
    job = accept(store, "a")
    store.fail("w1", *run(store), "too large")
    assert store.job("ann", job).state == "failed"


def test_a_cancelled_job_that_waits_never_starts(store: Store) -> None:
    job = accept(store, "a", "b")
    ids = [image.id for image in store.waiting()]
    assert store.cancel("ann", job).state == "cancelled"
    assert store.waiting() == []
    assert store.lease("w1", [(ids, {})], 10) == []


def test_a_cancelled_job_that_runs_is_told_to_its_worker_once(store: Store) -> None:
    job, other = accept(store, "a", "b"), accept(store, "c")
    first, second, third = run(store)
    store.finish("w1", first, {})
    assert store.cancel("ann", job).state == "cancelled"
    assert store.heartbeat("w2", 10) == ()
    assert store.heartbeat("w1", 10) == (second,)
    assert store.heartbeat("w1", 10) == ()
    assert not store.finish("w1", second, {})
    assert [image.state for image in store.images("ann", job)] == ["done", "cancelled"]
    assert store.finish("w1", third, {})
    assert store.job("ann", other).state == "done"


def test_a_cancelled_image_cannot_be_finished_before_its_worker_knows(store: Store) -> None:
    job = accept(store, "a")
    (image,) = run(store)
    store.cancel("ann", job)
    assert not store.finish("w1", image, {})
    assert not store.fail("w1", image, "no")
    assert [event.kind for event in store.events("ann", job)] == ["accepted", "grouped", "cancelled"]
    assert store.image("ann", image).result is None


def test_cancelling_what_has_ended_changes_nothing(store: Store) -> None:
    job = accept(store, "a")
    store.finish("w1", *run(store), {})
    before = store.job("ann", job), store.events("ann", job)
    assert store.cancel("ann", job) == before[0]
    assert store.events("ann", job) == before[1]


def test_jobs_are_listed_newest_first(store: Store) -> None:
    ids = [accept(store, "a") for _ in range(3)]
    plan, _ = store.accept("ann", "plan", requests("a"), body={})
    assert [job.id for job in store.jobs("ann")] == [plan.id, *reversed(ids)]
    assert [job.id for job in store.jobs("ann", limit=1, after=ids[2])] == [ids[1]]
    assert [job.id for job in store.jobs("ann", kind="plan")] == [plan.id]


def test_a_plan_has_no_images_and_a_result(store: Store) -> None:
    job, _ = store.accept("ann", "plan", requests("a", "b"), body={})
    assert store.waiting() == []
    ((plan),) = store.waiting_plans()
    assert [request.prompt for request in plan.requests] == ["a", "b"]
    assert store.start_plan(job.id)
    assert store.finish_plan(job.id, {"groups": 1})
    assert not store.finish_plan(job.id, {"groups": 2})
    ended = store.job("ann", job.id)
    assert (ended.state, ended.result) == ("done", None)
    assert store.job("ann", job.id, whole=True).result == {"groups": 1}
    assert store.waiting_plans() == []


def test_a_plan_that_kills_its_worker_three_times_is_set_aside(store: Store) -> None:
    job, _ = store.accept("ann", "plan", requests("a"), body={})
    assert [store.start_plan(job.id) for _ in range(4)] == [True, True, True, False]
    assert store.job("ann", job.id).state == "failed"
    assert "3 times" in store.job("ann", job.id).reason


def test_a_cancelled_plan_is_not_started(store: Store) -> None:
    job, _ = store.accept("ann", "plan", requests("a"), body={})
    assert store.cancel("ann", job.id).state == "cancelled"
    assert not store.start_plan(job.id)
    assert not store.finish_plan(job.id, {})


def test_many_images_are_accepted_and_cancelled(store: Store) -> None:
    job = accept(store, *("a",) * 1201)
    assert len(store.waiting(2000)) == 1201
    assert store.cancel("ann", job).counts["cancelled"] == 1201
