"""The main loop of the worker: take waiting images, form groups, generate, deliver."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ...engine.call_state import StepEvent
from ...errors import CotrunkError
from ...settings import Settings
from ..channel import Channel
from ..images import ImageFiles
from ..launch import WorkerSettings
from ..store import ImageRow, Store
from .admission import wave
from .asked import call_of
from .delivery import Delivery
from .formed import Formed, Member, told, told_alone
from .plan_jobs import plan_result
from .planning import Planner
from .progress import Progress
from .queue import Queue
from .savings import Savings
from .speed import Speed
from .watch import Watch
from .wave import Call, Finished, Generator, StoppedError, check_device, reason_of
from .writer import Writer

log = logging.getLogger("cotrunk.worker")
PATIENCE = 2.0  # calls, or seconds if they are longer, that images wait for a busy worker before an idle one has them
ROUTED_RECLAIM = 10.0  # seconds in place of the lease between looks for groups of workers that died: others do die
ADOPTED = 4  # calls that the images which an idle worker adopts at once fill at most


class Worker:
    """Generates images until it is stopped.

    Attributes:
        stopping: when the process has to end: None, or the time (`time.monotonic()`) at which it stops a running call.

    Args:
        name: of this worker; new for each process.
        launch: what it was started with.
        pipe: the loaded pipeline.
        store: the database.
        channel: to the API process; None if there is none.
    """

    def __init__(self, name: str, launch: WorkerSettings, pipe: Any, store: Store, channel: Channel | None) -> None:
        settings = Settings.from_json(launch.settings)
        self.name = name
        self.stopping: float | None = None
        self._launch, self._store, self._channel = launch, store, channel
        self._routed = name if launch.is_routed else None
        files = ImageFiles(launch.images)
        self._savings = Savings()
        self._planner = Planner(pipe, settings, launch, self._savings)
        self._generator = Generator(pipe, self._planner, settings.batching)
        self._delivery = Delivery(store, files, name, pipe, launch.model)
        self._writer = Writer()
        self._progress = Progress(store, channel, files, self._writer, pipe)
        self._speed = Speed()
        self._queue = Queue(self._planner, self._speed, self._savings, launch)
        self._watch = Watch(store, name, channel, launch.lease_seconds)
        self._reclaim_at = 0.0

    def run(self) -> None:
        """Work until the process has to end."""
        self._watch.start()
        try:
            while not self._is_ending():
                if not self.turn():
                    self._watch.wait(self._queue.seconds_left())
        finally:
            self._watch.end()
            self._writer.finish()
            self._store.release(self.name)

    def finish(self) -> None:
        """Wait until what was generated is written."""
        self._writer.finish()

    def stop(self, seconds: float) -> None:
        """Stop: after the running call if it ends in time, else at its next step after that many seconds."""
        self.stopping = time.monotonic() + seconds
        self._watch.wake()

    def _is_ending(self) -> bool:
        return self.stopping is not None or self._watch.is_orphaned

    def turn(self) -> bool:
        """Do the next piece of work; return False if there is none now."""
        self._watch.forget()  # only here, before new images are leased: a cancellation is reported once
        self._answer_plans()
        if time.monotonic() >= self._reclaim_at:
            self._writer.finish()  # each group by itself, from start to end: one of them may be why the worker died
            again = self._store.reclaim(self.name, self._launch.lease_seconds, told)
            for group in again:
                self._generate([Formed.leased(group)])
            if again:
                return True
            pause = min(ROUTED_RECLAIM, self._launch.lease_seconds) if self._routed else self._launch.lease_seconds
            self._reclaim_at = time.monotonic() + pause / 2
        groups = self.next_wave()
        if groups:
            self._generate(groups)
        return bool(groups)

    def next_wave(self) -> list[Formed]:
        """Return the groups to run next, recorded and leased; empty if no image leaves now."""
        size = self._generator.batching.batch_size
        buckets = self._queue.leaving(self._waiting(size), size)
        groups = list[Formed]()
        for members in buckets:
            try:
                groups += self._planner.form(members)
            except CotrunkError:
                groups += self._apart(members)
        if not groups:
            return []
        now = time.time()
        chosen = [replace(group, formed=now) for group in wave(groups, size)]
        wanted = [(group.images, group.record()) for group in chosen]
        leased = self._store.lease(self.name, wanted, self._launch.lease_seconds, told)
        self._progress.notify()
        return [Formed.leased(group) for group in leased]

    def _waiting(self, size: int) -> list[ImageRow]:
        """Return the images that wait for this worker. If there are none, it adopts some of others."""
        found = self._store.waiting(self._queue.look, self._routed)
        if found or self._routed is None:
            return found
        patience = PATIENCE * max(1.0, self._speed.seconds)
        if not self._store.adopt(self._routed, patience, self._launch.lease_seconds, ADOPTED * size):
            return found
        return self._store.waiting(self._queue.look, self._routed)

    def _generate(self, groups: Sequence[Formed]) -> None:
        """Generate groups in one call; if that fails, in smaller calls until the image at fault is found."""
        self._progress.begin()
        begin, rest, reason = time.perf_counter(), list(groups), None
        try:
            for finished in self._generator.batches(groups, self._on_step):
                self._deliver(finished, time.perf_counter() - begin)
                rest = [group for group in rest if group not in finished.groups]
                begin = time.perf_counter()
        except StoppedError as stopped:
            # its images have ended; or they go back to the queue, with all others, when the worker ends
            rest = [] if self._is_ending() else [group for group in rest if group.id not in stopped.call.groups]
        except SQLAlchemyError:
            raise  # the images are not at fault
        except Exception as error:
            check_device(error)
            reason = reason_of(error)
            log.warning("A call of %d groups failed: %s", len(rest), reason)
        finally:
            self._progress.notify()
        # not inside `except`: the exception refers to the tensors that must be freed
        if reason is not None:
            self._generate_apart(rest, reason)
        elif rest:
            self._generate(rest)

    def _generate_apart(self, groups: Sequence[Formed], reason: str) -> None:
        if len(groups) > 1:
            for group in groups:
                self._generate([group])
        elif len(groups[0].members) > 1:
            for alone in self._store.split(self.name, groups[0].id, told_alone):
                self._generate([Formed.leased(alone, alone=True)])
        else:
            self._store.fail(self.name, groups[0].members[0].id, reason)

    def _deliver(self, finished: Finished, seconds: float) -> None:
        self._writer.finish()  # at most the images of one call wait to be written
        self._writer.do(self._write, finished, self._watch.cancelled)
        cost = finished.batch.cost
        self._speed.note(cost.used, cost.independent, seconds)
        sizes = {group.id: group.size for group in finished.groups}
        for member, group, rows in zip(finished.call.members, finished.call.groups, finished.batch.rows, strict=True):
            if member.is_wanted:
                shares = sizes[group] > 1 or group in finished.trunks
                self._savings.note(call_of(member.request), rows, shares=shares)
        if self._channel is not None:
            speed = self._speed
            self._channel.send("speed", rows_per_second=speed.served, rows=cost.independent, seconds=speed.seconds)

    def _write(self, finished: Finished, cancelled: set[str]) -> None:
        self._delivery.deliver(finished, cancelled)
        self._progress.notify()

    def _on_step(self, call: Call, event: StepEvent) -> None:
        """Do what is due between two steps of a call.

        Raises:
            StoppedError: no image of the call is wanted any more, or the process has to end.
        """
        if self._watch.is_orphaned or (self.stopping is not None and time.monotonic() >= self.stopping):
            raise StoppedError(call)
        cancelled = self._watch.cancelled
        if all(member.id in cancelled or not member.is_wanted for member in call.members):
            raise StoppedError(call)
        if cancelled:
            self._generator.leave(cancelled)
        self._progress.step(call, event)
        if self._watch.take_news():
            self._answer_plans()

    def _answer_plans(self) -> None:
        """Answer jobs that ask for a plan only."""
        for job in self._store.waiting_plans(worker=self.name):
            if not self._store.start_plan(job.job.id, self.name):
                continue
            try:
                self._store.finish_plan(job.job.id, plan_result(self._planner, job, self._speed.computed))
            except CotrunkError as error:
                self._store.fail_plan(job.job.id, str(error))
            self._progress.notify()

    def _apart(self, members: Sequence[Member]) -> list[Formed]:
        """Return each image of a bucket as a group of its own. Those that the pipeline cannot generate fail."""
        found = list[Formed]()
        for member in members:
            try:
                found.append(self._planner.single(member))
            except CotrunkError as error:
                # only a worker that holds an image may end it
                self._store.lease(self.name, [([member.id], None)], self._launch.lease_seconds)
                self._store.fail(self.name, member.id, str(error))
        self._progress.notify()
        return found
