"""Several workers: an image waits for the one that it is assigned to, unless that has died or is busy too long."""

from sqlalchemy import select
from stored import SETTINGS, Clock, accept, requests

from cotrunk.service.store import ImageRequest, ImageRow, Store
from cotrunk.service.store.tables import assignments

LEASE = 10.0


def live(store: Store, *workers: str) -> None:
    for worker in workers:
        store.heartbeat(worker, LEASE)


def prompts(rows: list[ImageRow]) -> list[str]:
    return [row.request.prompt for row in rows]


def ids(store: Store) -> dict[str, str]:
    return {row.request.prompt: row.id for row in store.waiting()}


def test_a_worker_sees_its_own_images_only(store: Store) -> None:
    accept(store, "a", "b", "c")
    image = ids(store)
    live(store, "w1", "w2")
    assert prompts(store.unassigned()) == ["a", "b", "c"]
    assert store.assign("w1", "r1", [image["c"], image["a"]]) == 2
    assert store.assign("w2", "r2", [image["b"]]) == 1
    assert prompts(store.waiting(worker="w1")) == ["a", "c"]
    assert prompts(store.waiting(worker="w2")) == ["b"]
    assert prompts(store.waiting(1, "w1")) == ["a"]
    assert prompts(store.waiting()) == ["a", "b", "c"]
    assert store.unassigned() == store.waiting(worker="w3") == []


def test_only_images_that_wait_are_assigned(store: Store) -> None:
    job = accept(store, "a", "b", "c")
    image = ids(store)
    live(store, "w1")
    store.lease("w1", [([image["a"]], {})], LEASE)
    assert store.assign("w2", "r", [*image.values(), "img_" + "0" * 24]) == 2
    store.cancel("ann", job)
    assert store.waiting(worker="w2") == store.unassigned() == []
    assert store.assign("w2", "r", [*image.values()]) == 0


def test_a_lease_ends_the_assignment(store: Store, clock: Clock) -> None:
    accept(store, "a", "b")
    image = ids(store)
    live(store, "w1", "w2")
    store.assign("w1", "r", [*image.values()])
    assert len(store.lease("w2", [([image["a"]], {})], LEASE)) == 1  # the first one has it
    assert store.lease("w1", [([image["a"]], {})], LEASE) == []
    assert prompts(store.waiting(worker="w1")) == ["b"]
    with store._database.read() as connection:
        assert [*connection.scalars(select(assignments.c.image))] == [image["b"]]  # the table does not grow
    clock.time += 2 * LEASE
    live(store, "w1")
    assert store.adopt("w1", 0, 0, 10) == 0
    assert len(store.reclaim("w1", LEASE)) == 1


def test_images_of_a_dead_worker_are_free(store: Store, clock: Clock) -> None:
    accept(store, "a", "b")
    image = ids(store)
    live(store, "w1", "w2")
    store.assign("w1", "r", [image["a"]])
    store.assign("w2", "r", [image["b"]])
    clock.time += LEASE / 2
    live(store, "w2")
    assert store.alive() == {"w1", "w2"}
    assert store.unassigned() == []
    clock.time += LEASE / 2
    assert store.alive() == {"w2"}
    assert prompts(store.unassigned()) == ["a"]
    assert store.assign("w2", "r", [image["a"]]) == 1
    assert prompts(store.waiting(worker="w2")) == ["a", "b"]
    assert store.unassigned() == []


def test_a_worker_that_stops_in_good_order_frees_its_images_at_once(store: Store) -> None:
    accept(store, "a")
    live(store, "w1")
    store.assign("w1", "r", [*ids(store).values()])
    store.release("w1")
    assert prompts(store.unassigned()) == ["a"]


def test_an_idle_worker_adopts_a_route_of_a_busy_one(store: Store, clock: Clock) -> None:
    accept(store, "a", "b", "c", "d")
    image = ids(store)
    live(store, "w1", "w2")
    store.assign("w1", "even", [image["b"], image["d"]])
    store.assign("w1", "odd", [image["a"], image["c"]])
    clock.time += 4
    assert store.adopt("w2", 5, 100, 10) == 0  # the busy worker may still come
    clock.time += 1
    assert store.adopt("w1", 5, 100, 10) == 0  # they are its own
    assert store.adopt("w2", 5, 100, 10) == 2
    assert prompts(store.waiting(worker="w2")) == ["a", "c"]
    assert store.adopt("w2", 5, 100, 1) == 1
    assert prompts(store.waiting(worker="w1")) == ["d"]


def test_images_without_a_living_worker_are_adopted_later(store: Store, clock: Clock) -> None:
    accept(store, "a", "b")
    accept(store, "c", owner="bob")  # of another bucket
    image = ids(store)
    live(store, "w1", "w2")
    store.assign("w1", "r", [image["a"]])
    clock.time += LEASE
    live(store, "w2")
    assert store.adopt("w2", 1, 12, 10) == 0  # the dispatcher has time to find them a worker
    clock.time += 2
    assert [store.adopt("w2", 1, 12, 10) for _ in range(4)] == [1, 1, 1, 0]
    assert prompts(store.waiting(worker="w2")) == ["a", "b", "c"]


def test_several_workers_make_a_plan_once(store: Store, clock: Clock) -> None:
    job, _ = store.accept("ann", "plan", requests("a"), body={})
    live(store, "w1", "w2")
    assert store.start_plan(job.id, "w1")
    assert store.waiting_plans(worker="w2") == []
    assert not store.start_plan(job.id, "w2")
    assert len(store.waiting_plans(worker="w1")) == len(store.waiting_plans()) == 1
    clock.time += LEASE
    live(store, "w2")
    ((plan),) = store.waiting_plans(worker="w2")
    assert store.start_plan(plan.job.id, "w2")
    assert not store.start_plan(job.id, "w2") or not store.start_plan(job.id, "w2")  # the third attempt is the last
    assert "3 times" in store.job("ann", job.id).reason


def test_the_first_value_is_settled_for_all(store: Store) -> None:
    assert store.settled("x") is None
    assert store.settled("x", "1") == "1"
    assert store.settled("x", "2") == store.settled("x") == "1"
    assert store.settled("y", "2") == "2"


def test_a_database_of_an_earlier_version_gets_what_is_missing(database: str, clock: Clock) -> None:
    from sqlalchemy import create_engine, text

    first = Store(database, clock)
    accept(first, "a")
    first.close()
    engine = create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        for table in ("cotrunk_assignments", "cotrunk_planners"):
            connection.execute(text(f"DROP TABLE {table}"))
    engine.dispose()
    second = Store(database, clock)
    assert second.assign("w1", "r", [*ids(second).values()]) == 1
    second.close()


def test_many_images_are_assigned_at_once(store: Store) -> None:
    store.accept("ann", "images", [ImageRequest("a", SETTINGS) for _ in range(1201)], body={})
    live(store, "w1")
    assert store.assign("w1", "r", [row.id for row in store.waiting(2000)]) == 1201
    (group,) = store.lease("w1", [([row.id for row in store.waiting(2000, "w1")], {})], LEASE)
    assert len(group.images) == 1201
    assert store.waiting(2000, "w1") == []
