"""Whatever happens in whatever order, no image is lost and none is done twice."""

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from databases import new_database
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from stored import Clock, requests

from cotrunk.service.store import ENDED, Group, Store
from cotrunk.service.store.leases import ATTEMPTS

SECONDS = 10
# in memory where the system has such a folder: these tests do not need what an fsync is for
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
EMPTY = dict[str, Path]()


def empty() -> Path:
    """Return the file of an empty database, made once."""
    if "file" not in EMPTY:
        folder = Path(tempfile.mkdtemp(dir=MEMORY))
        Store(f"sqlite:///{folder}/store.db").close()
        EMPTY["file"] = folder / "store.db"
    return EMPTY["file"]


class History(RuleBasedStateMachine):
    """Jobs, two owners, and workers that come, work and die."""

    server: str | None = None  # of PostgreSQL; None: SQLite

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        if self.server is None:
            shutil.copy(empty(), self.folder / "store.db")
            self.store = Store(f"sqlite:///{self.folder}/store.db", self.clock)
        else:
            self.store = Store(new_database(self.server), self.clock)
        self.jobs: dict[str, tuple[str, list[str]]] = {}  # owner and ids of images
        self.workers = ["w0"]
        self.dead = list[str]()
        self.held: dict[str, dict[str, str]] = {}  # what each worker believes to have: image -> group
        self.plans: dict[str, object] = {}
        self.done: Counter[str] = Counter()
        self.ended: dict[str, str] = {}

    def teardown(self) -> None:
        self.finish_everything()
        self.store.close()
        shutil.rmtree(self.folder)

    def some(self, names: list[str], number: int) -> str:
        return names[number % len(names)]

    @rule(owner=st.sampled_from(["ann", "bob"]), count=st.integers(1, 4))
    def accept(self, owner: str, count: int) -> None:
        job, is_new = self.store.accept(owner, "images", requests(*"abcd"[:count]), body={})
        assert is_new
        self.jobs[job.id] = owner, [image.id for image in self.store.images(owner, job.id)]
        assert len(self.jobs[job.id][1]) == count

    @rule(number=st.integers(0, 9), size=st.integers(1, 3), groups=st.integers(1, 3))
    def lease(self, number: int, size: int, groups: int) -> None:
        worker = self.some(self.workers, number)
        ids = [image.id for image in self.store.waiting()]
        wanted = [(ids[i * size : (i + 1) * size], {"n": ids[i * size]}) for i in range(groups) if ids[i * size :]]
        leased = self.store.lease(worker, wanted, SECONDS)
        assert [group.images for group in leased] == [tuple(each) for each, _ in wanted]
        self.take(worker, leased)

    @rule(number=st.integers(0, 9))
    def reclaim(self, number: int) -> None:
        worker = self.some(self.workers, number)
        self.take(worker, self.store.reclaim(worker, SECONDS))

    def take(self, worker: str, groups: list[Group]) -> None:
        for group in groups:
            plan = self.plans.setdefault(group.id, group.plan)
            assert plan == group.plan  # the plan of a group never changes
            for image in group.images:
                assert image not in self.ended
                self.held.setdefault(worker, {})[image] = group.id
            assert group.attempt < ATTEMPTS or len(group.images) == 1

    @precondition(lambda self: any(self.held.values()))
    @rule(number=st.integers(0, 99), is_done=st.booleans())
    def end(self, number: int, is_done: bool) -> None:
        """Let a worker end an image that it believes to have, also if it is dead by now: its message was on its way."""
        worker, image = self.some([(w, i) for w, held in self.held.items() for i in held], number)  # type: ignore
        ended = self.store.finish if is_done else self.store.fail
        ok = ended(worker, image, "by it")  # type: ignore[operator]
        del self.held[worker][image]
        if ok:
            assert image not in self.ended
            self.ended[image] = "done" if is_done else "failed"

    @rule(number=st.integers(0, 9))
    def die(self, number: int) -> None:
        worker = self.some(self.workers, number)
        self.workers.remove(worker)
        self.dead.append(worker)
        self.workers.append(f"w{len(self.dead)}")

    @rule(number=st.integers(0, 9))
    def release(self, number: int) -> None:
        worker = self.some(self.workers, number)
        self.store.release(worker)
        self.held.pop(worker, None)

    @rule(number=st.integers(0, 9))
    def beat(self, number: int) -> None:
        worker = self.some(self.workers, number)
        for image in self.store.heartbeat(worker, SECONDS):
            assert self.ended[image] == "cancelled"

    @precondition(lambda self: self.jobs)
    @rule(number=st.integers(0, 99))
    def cancel(self, number: int) -> None:
        job = self.some([*self.jobs], number)
        owner, ids = self.jobs[job]
        assert self.store.cancel("eve", job) is None
        assert self.store.cancel(owner, job).state in ENDED
        for image in ids:
            self.ended.setdefault(image, "cancelled")

    @rule(seconds=st.sampled_from([1, SECONDS, 5 * SECONDS]))
    def wait(self, seconds: int) -> None:
        self.clock.time += seconds

    @invariant()
    def nothing_is_lost_and_nothing_is_done_twice(self) -> None:
        total: Counter[str] = Counter()
        for job, (owner, ids) in self.jobs.items():
            found = self.store.images(owner, job)
            assert [image.id for image in found] == ids
            states = Counter(image.state for image in found)
            total += states
            record = self.store.job(owner, job)
            assert {state: count for state, count in record.counts.items() if count} == dict(states)
            assert (record.state in ENDED) == (not states["waiting"] and not states["running"]) == bool(record.finished)
            told = Counter(
                image
                for event in self.store.events(owner, job)
                if event.kind in ENDED
                for image in event.data.get("images", [event.data.get("image")])
            )
            for image in found:
                if image.attempts >= ATTEMPTS and image.state == "failed" and image.id not in self.ended:
                    assert image.reason.startswith("set aside")
                    self.ended[image.id] = "failed"
                assert self.ended.get(image.id) == (image.state if image.state in ENDED else None)
                assert told[image.id] == (image.state in ENDED)  # each end has one event
                assert image.attempts <= ATTEMPTS
        queue = self.store.queue()
        assert (queue.images, queue.running_images) == (total["waiting"], total["running"])

    def finish_everything(self) -> None:
        """Let a last worker do what is left: it must find all of it."""
        self.clock.time += 100 * SECONDS
        while groups := self.store.reclaim("last", SECONDS):
            for group in groups:
                for image in group.images:
                    assert self.store.finish("last", image, {})
                    self.ended[image] = "done"
        for image in self.store.waiting():
            (group,) = self.store.lease("last", [([image.id], {})], SECONDS)
            assert self.store.finish("last", *group.images, {})
            self.ended[image.id] = "done"
        self.nothing_is_lost_and_nothing_is_done_twice()
        assert all(image in self.ended for _, ids in self.jobs.values() for image in ids)


def test_a_few_histories() -> None:
    run_state_machine_as_test(History, settings=settings(max_examples=4, stateful_step_count=12, derandomize=True))


@pytest.mark.slow
def test_many_histories() -> None:
    run_state_machine_as_test(History, settings=settings(max_examples=50, stateful_step_count=40))


@pytest.mark.slow
def test_histories_on_postgresql(postgresql: str) -> None:
    class OnServer(History):
        server = postgresql

    run_state_machine_as_test(OnServer, settings=settings(max_examples=8, stateful_step_count=30))
