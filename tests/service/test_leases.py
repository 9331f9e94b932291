"""Leases: an image has one worker, and survives the death of its worker."""

import os
import subprocess
import sys
from pathlib import Path

from stored import Clock, accept, requests, run

from cotrunk.service.store import Group, Store
from cotrunk.service.store.process import identity, is_gone


def die(store: Store, clock: Clock) -> None:
    """Let so much time pass that leases end."""
    clock.time += 100


def images(groups: list[Group]) -> list[tuple[str, ...]]:
    return [group.images for group in groups]


def test_an_image_is_leased_once(store: Store) -> None:
    accept(store, "a", "b", "c")
    first, second, third = (image.id for image in store.waiting())
    one, other = store.lease("w1", [([first, second], {"p": 1}), ([first], {"p": 2}), ([third], None)], 10)
    assert (one.images, one.plan, one.attempt) == ((first, second), {"p": 1}, 1)
    assert (other.images, other.plan) == ((third,), None)
    assert store.waiting() == []
    assert store.lease("w2", [([first, second, third], {})], 10) == []
    assert store.image("ann", first).group == one.id
    assert store.image("ann", first).attempts == 1
    assert store.group(one.id) == one


def test_a_group_of_gone_images_keeps_the_others_in_order(store: Store) -> None:
    accept(store, "a")
    gone = accept(store, "b")
    accept(store, "c")
    first, second, third = (image.id for image in store.waiting())
    store.cancel("ann", gone)
    (group,) = store.lease("w1", [([third, "img_" + "0" * 24, second, "\x00", first], {"p": 1})], 10)
    assert group.images == (third, first)


def test_what_a_group_means_to_each_job_is_told(store: Store) -> None:
    one, two = accept(store, "a", "b"), accept(store, "c")
    ids = [image.id for image in store.waiting()]
    (group,) = store.lease("w1", [(ids, {})], 10, tell=lambda group, own: {"tree": [group.id, len(own)]})
    for job, own in ((one, ids[:2]), (two, ids[2:])):
        event = store.events("ann", job)[-1]
        assert event.kind == "grouped"
        assert event.data == {"group": group.id, "images": own, "shared_with": ids, "tree": [group.id, len(own)]}


def test_only_the_worker_of_an_image_ends_it_and_only_once(store: Store) -> None:
    job = accept(store, "a")
    (image,) = run(store)
    assert not store.finish("w2", image, {})
    assert not store.fail("w2", image, "no")
    assert not store.finish("w1", "img_" + "0" * 24, {})
    assert store.finish("w1", image, {"x": 1})
    assert not store.finish("w1", image, {"x": 2})
    assert not store.fail("w1", image, "no")
    assert store.image("ann", image).result == {"x": 1}
    assert [event.kind for event in store.events("ann", job)] == ["accepted", "grouped", "done"]


def test_a_heartbeat_keeps_images(store: Store, clock: Clock) -> None:
    accept(store, "a")
    run(store)
    for _ in range(5):
        clock.time += 9
        store.heartbeat("w1", 10)
        assert store.reclaim("w2", 10) == []
    clock.time += 10
    assert len(store.reclaim("w2", 10)) == 1


def test_a_worker_that_was_given_up_cannot_finish(store: Store, clock: Clock) -> None:
    accept(store, "a")
    (image,) = run(store)
    die(store, clock)
    (group,) = store.reclaim("w2", 10)
    store.heartbeat("w1", 10)
    assert not store.finish("w1", image, {})
    assert store.reclaim("w1", 10) == []
    assert store.finish("w2", image, {"group": group.id})


def test_a_worker_does_not_reclaim_from_itself(store: Store, clock: Clock) -> None:
    accept(store, "a")
    (image,) = run(store)
    die(store, clock)
    assert store.reclaim("w1", 10) == []
    assert store.finish("w1", image, {})


def test_the_same_group_runs_again_without_what_is_done(store: Store, clock: Clock) -> None:
    accept(store, "a", "b", "c")
    first, second, third = (image.id for image in store.waiting())
    (group,) = store.lease("w1", [([first, second, third], {"seeds": [1, 2, 3]})], 10)
    store.finish("w1", second, {})
    die(store, clock)
    (again,) = store.reclaim("w2", 10)
    assert again == Group(group.id, (first, third), {"seeds": [1, 2, 3]}, 2)
    assert [image.attempts for image in (store.image("ann", each) for each in (first, second, third))] == [2, 1, 2]


def test_after_two_deaths_images_run_alone_one_at_a_time(store: Store, clock: Clock) -> None:
    job = accept(store, "a", "b")
    first, second = (image.id for image in store.waiting())
    (group,) = store.lease("w1", [([first, second], {"p": 1})], 10)
    for worker in ("w2", "w3"):
        die(store, clock)
        again = store.reclaim(worker, 10)
    assert [(each.images, each.plan, each.attempt) for each in again] == [((first,), {"p": 1}, 3)]
    assert again[0].id != group.id
    die(store, clock)  # the first image has killed three workers; the second is innocent
    assert images(store.reclaim("w4", 10)) == [(second,)]
    failed = store.image("ann", first)
    assert (failed.state, failed.attempts) == ("failed", 3)
    assert "died 3 times" in failed.reason
    assert store.finish("w4", second, {})
    assert store.reclaim("w4", 10) == []
    assert (store.job("ann", job).counts["done"], store.job("ann", job).counts["failed"]) == (1, 1)
    kinds = [event.kind for event in store.events("ann", job)]
    assert kinds == ["accepted", "grouped", "grouped", "failed", "grouped", "done"]


def test_groups_come_before_images_that_run_alone(store: Store, clock: Clock) -> None:
    accept(store, "a")
    (old,) = run(store, "w1")
    die(store, clock)
    store.reclaim("w2", 10)
    accept(store, "b")
    (new,) = run(store, "w2")
    die(store, clock)
    assert images(store.reclaim("w3", 10)) == [(new,)]
    assert images(store.reclaim("w3", 10)) == [(old,)]
    assert store.reclaim("w3", 10) == []


def test_groups_that_have_not_started_again_keep_their_attempts(store: Store, clock: Clock) -> None:
    accept(store, "a", "b", "c")
    first, second, third = (image.id for image in store.waiting())
    store.lease("w1", [([first, second], {}), ([third], {})], 10)
    die(store, clock)
    assert images(store.reclaim("w2", 10)) == [(first, second)]
    die(store, clock)
    assert images(store.reclaim("w3", 10)) == [(third,)]  # innocent: the first group has killed two workers
    assert store.image("ann", third).attempts == 2
    assert images(store.reclaim("w3", 10)) == [(first,)]
    assert store.image("ann", second).attempts == 2


def test_a_single_image_is_set_aside_after_three_deaths(store: Store, clock: Clock) -> None:
    job = accept(store, "a")
    (image,) = run(store)
    groups = []
    for worker in ("w2", "w3"):
        die(store, clock)
        groups += store.reclaim(worker, 10)
    assert [group.attempt for group in groups] == [2, 3]
    die(store, clock)
    assert store.reclaim("w4", 10) == []
    assert store.image("ann", image).state == store.job("ann", job).state == "failed"


def test_a_worker_that_stops_in_good_order_costs_no_attempt(store: Store) -> None:
    accept(store, "a", "b")
    ids = run(store)
    for number in range(2, 8):
        store.release(f"w{number - 1}")
        (group,) = store.reclaim(f"w{number}", 10)
        assert (group.images, group.attempt) == (tuple(ids), 1)
        assert store.image("ann", ids[0]).attempts == 1


def test_a_worker_that_is_given_up_loses_its_images_at_once(store: Store) -> None:
    accept(store, "a")
    run(store)
    store.give_up("w1")
    assert len(store.reclaim("w2", 10)) == 1


def test_cancelled_images_are_not_reclaimed(store: Store, clock: Clock) -> None:
    job = accept(store, "a", "b")
    first, _ = run(store)
    store.finish("w1", first, {})
    store.cancel("ann", job)
    die(store, clock)
    assert store.reclaim("w2", 10) == []


def test_a_group_that_fails_together_is_split(store: Store, clock: Clock) -> None:
    accept(store, "a", "b", "c")
    first, second, third = (image.id for image in store.waiting())
    (group,) = store.lease("w1", [([first, second, third], {"p": 1})], 10)
    store.finish("w1", second, {})
    alone = store.split("w1", group.id)
    assert [(each.images, each.plan, each.attempt) for each in alone] == [
        ((first,), {"p": 1}, 1),
        ((third,), {"p": 1}, 1),
    ]
    assert store.split("w2", alone[0].id) == []
    assert store.finish("w1", first, {})
    die(store, clock)
    assert images(store.reclaim("w2", 10)) == [(third,)]


def test_an_image_that_waits_can_be_refused(store: Store) -> None:
    job = accept(store, "a", "b")
    first, second = (image.id for image in store.waiting())
    assert store.refuse(first, "no")
    assert not store.refuse(first, "no")
    assert not store.refuse("img_" + "0" * 24, "no")
    assert (store.image("ann", first).state, store.image("ann", first).reason) == ("failed", "no")
    assert store.lease("w1", [([first, second], {})], 10)[0].images == (second,)
    assert not store.refuse(second, "no")
    assert store.finish("w1", second, {})
    assert [event.kind for event in store.events("ann", job)] == ["accepted", "failed", "grouped", "done"]
    assert store.job("ann", job).counts["failed"] == 1


def test_images_that_wait_are_set_aside_when_workers_have_died_with_them(store: Store, clock: Clock) -> None:
    accept(store, "a", "b")
    first, second = (image.id for image in store.waiting())
    store.tried([first, second])
    store.tried([first])
    assert [image.attempts for image in store.waiting()] == [2, 1]
    store.tried([first])
    assert (store.image("ann", first).state, store.image("ann", second).state) == ("failed", "waiting")
    assert "died 3 times" in store.image("ann", first).reason
    store.lease("w1", [([second], {})], 10)
    store.tried([first, second])  # neither waits
    assert (store.image("ann", first).attempts, store.image("ann", second).attempts) == (3, 2)


def test_a_reason_may_have_any_characters(store: Store) -> None:
    accept(store, "a")
    (image,) = run(store)
    plan = store.accept("ann", "plan", requests("p"), body={})[0].id
    for end in (lambda reason: store.fail("w1", image, reason), lambda reason: store.fail_plan(plan, reason)):
        assert end("a\x00b\ud800c")
    assert store.image("ann", image).reason == store.job("ann", plan).reason == "a\ufffdb?c"


def test_the_death_of_a_process_is_known_at_once(store: Store, database: str) -> None:
    accept(store, "a")
    code = (
        "import sys, time; from cotrunk.service.store import Store; store = Store(sys.argv[1]);"
        "store.lease('w1', [([image.id for image in store.waiting()], {})], 1e6); print(flush=True); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, database], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert store.queue().running_images == 1
    assert store.reclaim("w2", 10) == []
    process.kill()
    process.wait()
    assert len(store.reclaim("w2", 10)) == 1


def test_a_process_is_gone_only_if_that_is_certain() -> None:
    mine = identity()
    assert mine is not None
    place, number, started = mine.rsplit(" ", 2)
    assert not is_gone(mine)
    assert not is_gone(None)
    assert not is_gone(f"another-boot pid:[1] 1 {started}")
    assert is_gone(f"{place} {number} {int(started) - 1}")  # the number belongs to another process now
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        fields = Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        process = f"{place} {child.pid} {fields[19]}"
        assert not is_gone(process)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(process)  # its parent has not asked for its exit code yet
    assert is_gone(process)
