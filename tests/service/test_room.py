"""No owner fills the queue for all: large jobs and batches enter it in parts, side by side."""

import pytest
from stored import Clock, accept, requests, run

from cotrunk.service.store import ImageRequest, QueueFull, Store, TooManyBatches, TooManyPlans, TooMuchStored

ENDPOINT = "/v1/images/generations"
ROWS, OF_OWNER = 800, 400  # of the queue, and of one owner in it: an image has 40


def batch(store: Store, owner: str, count: int) -> str:
    """Start a batch and return its job."""
    file = store.add_file(owner, "in.jsonl", "batch", b"{}\n")
    found = store.add_batch(owner, file.id, ENDPOINT)
    asked = [ImageRequest("a cat", {}, rows=40, custom_id=str(number)) for number in range(count)]
    started = store.start_batch(found.id, asked, ROWS)
    assert started.job is not None
    return started.job


def owned(store: Store) -> dict[str, int]:
    """Return how many images of each owner are in the queue."""
    owners = [image.owner for image in store.waiting()]
    return {owner: owners.count(owner) for owner in sorted({*owners})}


def job(store: Store, owner: str, count: int) -> str:
    return accept(store, *["a"] * count, owner=owner, max_waiting_rows=ROWS, max_owner_rows=OF_OWNER)


def test_a_large_job_leaves_room_for_others(store: Store) -> None:
    large = job(store, "ann", 100)
    assert store.job("ann", large).counts["waiting"] == 100
    assert {image.state for image in store.images("ann", large)} == {"waiting"}
    assert store.waiting() == []
    assert store.feed(ROWS, OF_OWNER) == 5  # half of the share of ann
    assert store.feed(ROWS, OF_OWNER) == 0
    job(store, "bob", 10)
    job(store, "ann", 5)  # a small one still fits into the share
    assert owned(store) == {"ann": 10, "bob": 10}
    with pytest.raises(QueueFull, match=r"share of this key in the queue is full \(400 of 400 rows wait\)"):
        job(store, "ann", 1)
    with pytest.raises(QueueFull, match="The queue is full"):
        job(store, "eve", 1)


def test_an_owner_has_one_large_job_at_a_time(store: Store) -> None:
    job(store, "ann", 100)
    with pytest.raises(QueueFull):
        job(store, "ann", 100)
    job(store, "bob", 100)


def test_the_images_of_a_large_job_come_in_their_order_behind_what_came_meanwhile(store: Store, clock: Clock) -> None:
    large, done = job(store, "ann", 12), list[int]()
    store.feed(ROWS, OF_OWNER)
    job(store, "bob", 1)
    while waiting := store.waiting():
        done += [image.number if image.owner == "ann" else -1 for image in waiting]
        for image in run(store):
            store.finish("w1", image, {})
        store.feed(ROWS, OF_OWNER)
    assert done == [*range(5), -1, *range(5, 12)]
    found = store.job("ann", large)
    assert (found.state, found.counts["done"], found.counts["waiting"]) == ("done", 12, 0)
    assert [image.number for image in store.images("ann", large)] == [*range(12)]


def test_batches_larger_than_the_queue_go_on_side_by_side(store: Store) -> None:
    jobs = [batch(store, "ann", 50), batch(store, "ann", 2), batch(store, "bob", 50)]
    assert accept(store, *["a"] * 20, owner="eve", max_waiting_rows=ROWS)  # the queue is full of small requests
    store.feed(ROWS, OF_OWNER)
    counts = [[image.job for image in store.waiting()].count(job) for job in jobs]
    # half of the queue: a quarter for each owner, but not more than half of what one may have
    assert counts == [2, 2, 5]
    ended = 0
    while store.waiting():
        for image in run(store):
            ended += store.finish("w1", image, {})
        store.feed(ROWS, OF_OWNER)
    assert ended == 122
    assert len(store.finalizing_batches()) == 3


def test_an_image_that_is_larger_than_any_share_runs(store: Store) -> None:
    found = batch(store, "ann", 2)
    assert store.feed(10, 10) == 1
    assert store.feed(10, 10) == 0
    (image,) = run(store)
    store.finish("w1", image, {})
    assert store.feed(10, 10) == 1
    assert store.job("ann", found).counts["waiting"] == 1


def test_a_cancelled_job_has_no_images_left_that_would_enter_the_queue(store: Store) -> None:
    large = job(store, "ann", 100)
    store.feed(ROWS, OF_OWNER)
    assert store.cancel("ann", large).state == "cancelled"
    assert store.job("ann", large).counts == {"waiting": 0, "running": 0, "done": 0, "failed": 0, "cancelled": 100}
    assert store.feed(ROWS, OF_OWNER) == 0
    assert store.waiting() == []


def test_an_expired_batch_names_what_never_entered_the_queue(store: Store, clock: Clock) -> None:
    found = batch(store, "ann", 100)
    store.feed(ROWS, OF_OWNER)
    clock.time += 86_401
    assert store.expire_batches() == 1
    assert {image.reason for image in store.images("ann", found)} == {"expired"}
    assert store.feed(ROWS, OF_OWNER) == 0


def test_plans_batches_and_files_of_an_owner_are_limited(store: Store) -> None:
    for _ in range(2):
        store.accept("ann", "plan", requests("p"), body={}, max_plans=2)
    with pytest.raises(TooManyPlans, match="2 plans of this key"):
        store.accept("ann", "plan", requests("p"), body={}, max_plans=2)
    store.accept("bob", "plan", requests("p"), body={}, max_plans=2)
    store.finish_plan(store.waiting_plans()[0].job.id, {})
    store.accept("ann", "plan", requests("p"), body={}, max_plans=2)

    file = store.add_file("ann", "x", "batch", b"12345", max_bytes=8)
    store.add_file("ann", "x", "batch_output", b"12345")
    store.add_file("ann", "x", "batch", b"123", max_bytes=8)
    with pytest.raises(TooMuchStored, match="delete some"):
        store.add_file("ann", "x", "batch", b"1", max_bytes=8)
    store.add_file("bob", "x", "batch", b"1", max_bytes=8)
    store.remove_file("ann", file.id)
    store.add_file("ann", "x", "batch", b"1", max_bytes=8)

    found = store.add_batch("ann", file.id, ENDPOINT, max_open=1)
    with pytest.raises(TooManyBatches, match="1 batches of this key have not ended"):
        store.add_batch("ann", file.id, ENDPOINT, max_open=1)
    store.add_batch("bob", file.id, ENDPOINT, max_open=1)
    store.cancel_batch("ann", found.id)
    store.add_batch("ann", file.id, ENDPOINT, max_open=1)
