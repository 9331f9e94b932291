"""Transactions of several processes on PostgreSQL never wait for each other in a circle, and never collide."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from databases import new_database
from sqlalchemy import text
from stored import Clock, accept, requests, run

from cotrunk.service.store import Store, jobs, leases

pytestmark = pytest.mark.slow
DAY = 86_400


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(postgresql: str, clock: Clock) -> Iterator[Store]:
    store = Store(new_database(postgresql), clock)
    yield store
    store.close()


class Other(threading.Thread):
    """Does something in a thread until it has to wait for a lock."""

    def __init__(self, store: Store, act: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._store, self._act, self.error = store, act, None

    def run(self) -> None:
        try:
            self._act()
        except Exception as error:
            self.error = error

    def until_it_waits(self) -> None:
        """Start it, and return when it waits for a lock."""
        self.start()
        until = time.monotonic() + 60
        waits = text(
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
            "WHERE NOT l.granted AND a.datname = current_database()"
        )
        while time.monotonic() < until:
            with self._store._database.read() as connection:
                if connection.scalar(waits):
                    return
            assert self.is_alive(), self.error or "it has ended without waiting"
            time.sleep(0.01)
        raise AssertionError("it does not wait")

    def end(self) -> None:
        """Wait for its end, and raise its error."""
        self.join(60)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


def test_two_first_signs_of_life_do_not_collide(store: Store) -> None:
    other = Other(store, lambda: store.heartbeat("w1", 10))
    with store._database.write() as connection:
        leases.extend(connection, store._now(), "w1", 10)
        other.until_it_waits()
    other.end()


def test_batches_that_expire_do_not_wait_in_a_circle(store: Store, clock: Clock) -> None:
    batches = [store.add_batch("ann", "file", "/v1/images/generations") for _ in range(2)]
    owned = [store.start_batch(batch.id, requests("a")).job for batch in batches]
    while owned == sorted(owned):  # the first batch has the job that others hold last
        batches = [store.add_batch("ann", "file", "/v1/images/generations") for _ in range(2)]
        owned = [store.start_batch(batch.id, requests("a")).job for batch in batches]
    clock.time += DAY
    other = Other(store, store.expire_batches)
    with store._database.write() as connection:
        jobs.hold(connection, [min(owned)])
        other.until_it_waits()
        jobs.hold(connection, [max(owned)])
    other.end()
    assert {store.batch("ann", batch.id).state for batch in batches} == {"finalizing"}


def test_a_worker_that_gives_its_images_back_holds_their_jobs_first(store: Store) -> None:
    job = accept(store, "a", "b")
    first, _ = run(store)
    other = Other(store, lambda: store.release("w1"))
    with store._database.write() as connection:
        jobs.hold(connection, [job])
        other.until_it_waits()
        jobs.move(connection, store._now(), job, [first], ("running",), "cancelled")
    other.end()
    assert [image.attempts for image in store.images("ann", job)] == [1, 0]
