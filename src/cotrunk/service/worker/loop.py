"""The main loop of the worker: take waiting images, form groups, generate, deliver."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ...engine.call_state import StepEvent
from ...errors import first_line
from ...settings import Settings
from ...storage.transient import PAUSES
from ..channel import Channel
from ..images import ImageFiles
from ..launch import WorkerSettings
from ..store import Group, ImageRow, Store
from .admission import wave
from .asked import call_of
from .delivery import Delivery
from .formed import Formed, Member, told, told_alone
from .lost import LostRows
from .plan_jobs import PlanJobs
from .planning import Planner
from .progress import Progress
from .queue import Queue
from .savings import Savings
from .speed import Speed
from .watch import Watch
from .wave import Call, Finished, Generator, LostDeviceError, StoppedError, check_device, reason_of
from .writer import Writer, WriterError

log = logging.getLogger("cotrunk.worker")
PATIENCE = 2.0  # calls, or seconds if they are longer, that images wait for a busy worker before an idle one has them
ROUTED_RECLAIM = 10.0  # seconds in place of the lease between looks for groups of workers that died: others do die
ADOPTED = 4  # calls that the images which an idle worker adopts at once fill at most
OTHER_VERSION = (
    "The record of this image's group cannot be read, because another version of cotrunk wrote it: ask for it again."
)


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
        files = ImageFiles(launch.images, PAUSES)  # an image that was generated is not given up at once
        self._savings = Savings()
        self._planner = Planner(pipe, settings, launch, self._savings)
        self._generator = Generator(pipe, self._planner, settings.batching)
        self._delivery = Delivery(store, files, name, pipe, launch.model)
        self._writer = Writer()
        self._progress = Progress(store, channel, files, self._writer, pipe)
        self._speed, self._lost = Speed(), LostRows()
        self._plans = PlanJobs(self._planner, store, name, self._speed, self._progress.notify)
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
        self._progress.tidy(0)
        # not after an error: its images may be the reason, so this start counts as an attempt
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
        """Do the next piece of work; return False if there is none now.

        Raises:
            LostDeviceError: the device cannot be used any more.
            WriterError: what was generated cannot be written.
        """
        self._watch.forget()  # only here, before new images are leased: a cancellation is reported once
        self._progress.tidy()
        has_plans = self._plans.go_on()
        if time.monotonic() >= self._reclaim_at:
            self._writer.finish()  # each group by itself, from start to end: one of them may be why the worker died
            again = self._store.reclaim(self.name, self._launch.lease_seconds, told)
            for group in again:
                if groups := self._readable([group]):
                    self._generate(groups)
            if again:
                return True
            pause = min(ROUTED_RECLAIM, self._launch.lease_seconds) if self._routed else self._launch.lease_seconds
            self._reclaim_at = time.monotonic() + pause / 2
        groups = self.next_wave()
        if groups:
            self._generate(groups)
        return bool(groups) or has_plans

    def next_wave(self) -> list[Formed]:
        """Return the groups to run next, recorded and leased; empty if no image leaves now."""
        size = self._generator.batching.batch_size
        groups = list[Formed]()
        while not groups:  # images that cannot be generated have failed, and the next ones leave
            try:
                buckets = self._queue.leaving(self._waiting(size), size)
                if not buckets or self._is_ending():
                    return []
                groups = [group for members in buckets for group in self._formed(members, size)]
            except LostDeviceError as lost:
                self._store.tried(lost.images)
                raise
        now = time.time()
        chosen = [replace(group, formed=now) for group in wave(groups, size)]
        wanted = [(group.images, group.record()) for group in chosen]
        leased = self._store.lease(self.name, wanted, self._launch.lease_seconds, told)
        self._progress.notify()
        return self._readable(leased)

    def _readable(self, groups: Sequence[Group], *, alone: bool = False) -> list[Formed]:
        """Return groups from their records. The images of those that cannot be read fail."""
        found = list[Formed]()
        for group in groups:
            try:
                found.append(Formed.leased(group, alone=alone))
            except Exception as error:  # whatever another version has written
                log.error("The record of %s cannot be read: %s", group.id, first_line(error))
                for image in group.images:
                    self._store.fail(self.name, image, OTHER_VERSION)
                self._progress.notify()
        return found

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
        except (SQLAlchemyError, WriterError, LostDeviceError):
            raise  # these images are not at fault, or it is not known
        except Exception as error:
            check_device(error)
            reason = reason_of(error)
            log.warning("A call of %d groups failed: %s", len(rest), reason)
        finally:
            self._lost.end()
            self._tell_lost()
            self._progress.end()
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
            for alone in self._readable(self._store.split(self.name, groups[0].id, told_alone), alone=True):
                self._generate([alone])
        else:
            self._store.fail(self.name, groups[0].members[0].id, reason)

    def _deliver(self, finished: Finished, seconds: float) -> None:
        self._writer.finish()  # at most the images of one call wait to be written
        self._lost.delivered()
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
        self._lost.add(finished.batch.cost.used - self._delivery.deliver(finished, cancelled))
        self._tell_lost()
        self._progress.notify()

    def _tell_lost(self) -> None:
        if self._channel is not None:
            self._channel.send("lost", rows=self._lost.total)

    def _on_step(self, call: Call, event: StepEvent) -> None:
        """Do what is due between two steps of a call.

        Raises:
            LostDeviceError: the device cannot be used any more.
            WriterError: images of the call before cannot be written.
            StoppedError: no image of the call is wanted any more, or the process has to end.
        """
        self._lost.step(call, event.rows)
        if self._watch.is_orphaned or (self.stopping is not None and time.monotonic() >= self.stopping):
            raise StoppedError(call)
        cancelled = self._watch.cancelled
        if all(member.id in cancelled or not member.is_wanted for member in call.members):
            raise StoppedError(call)
        if cancelled:
            self._generator.leave(cancelled)
        self._progress.step(call, event)
        if self._watch.take_news() and self._plans.make_small():
            self._watch.wake()  # there may be another one: after the next step

    def _formed(self, members: Sequence[Member], size: int) -> list[Formed]:
        """Return the groups of the images of one bucket. Those that the pipeline cannot generate fail.

        Raises:
            LostDeviceError: the device cannot be used any more.
        """
        try:
            return self._planner.form(members)
        except Exception as error:
            check_device(error, [member.id for member in members])
            log.warning("%d images cannot be grouped: %s", len(members), first_line(error))
        # not inside `except`: the exception refers to the tensors that must be freed
        found = list[Formed]()
        for member in members:
            if len(found) >= size:
                break
            try:
                found.append(self._planner.single(member))
            except Exception as error:
                check_device(error, [member.id])
                self._store.refuse(member.id, reason_of(error))
        self._progress.notify()
        return found
