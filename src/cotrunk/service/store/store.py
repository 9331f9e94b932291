"""`Store`: every call is one transaction on the database. An id of another owner, or of nothing, gives None.

One file: the list of all that the service asks its database. The work is in the modules next to it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import select

from . import assignments, batches, events, files, jobs, keys, leases, parts, plans, retention, settled
from .database import Database
from .ids import is_id
from .leases import Tell
from .records import Batch, Event, File, Group, ImageRequest, ImageRow, Job, JobKind, Key, Owner, PlanJob, Queue
from .tables import groups as group_table
from .tables import images as image_table


class Store:
    """The durable record of the service. One object may be used by many threads; two processes use the same URL.

    Args:
        url: `sqlite:///FILE`, or `postgresql://USER@HOST/NAME`.
        clock: what gives the time, in seconds since 1970.

    Raises:
        CotrunkError: the database cannot be used.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self._database = Database(url)
        self._now = clock

    def close(self) -> None:
        self._database.close()

    # jobs, for the API

    def accept(
        self,
        owner: str,
        kind: JobKind,
        requests: Sequence[ImageRequest],
        *,
        body: Any,
        metadata: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
        max_waiting_rows: int | None = None,
        max_owner_rows: int | None = None,
        max_plans: int | None = None,
    ) -> tuple[Job, bool]:
        """Record a job and its images; return the job, and False if it came with the same key before.

        A job with more rows than the owner may have in the queue enters it in parts: `feed` is to be called regularly.

        Raises:
            QueueFull: the owner has images in the queue, and with this job more than `max_owner_rows`; or the queue has
                no room for it, or for its first part.
            TooManyPlans: the owner waits for `max_plans` plans.
            IdempotencyConflict: the key came with another body before.
        """
        with self._database.write() as connection:
            return jobs.accept(
                connection,
                self._now(),
                owner,
                kind,
                requests,
                body=body,
                metadata=metadata,
                idempotency_key=idempotency_key,
                max_waiting_rows=max_waiting_rows,
                max_owner_rows=max_owner_rows,
                max_plans=max_plans,
            )

    def feed(self, max_waiting_rows: int, max_owner_rows: int | None = None) -> int:
        """Let images of large jobs and batches enter the queue, as far as it has room; return how many."""
        with self._database.read() as connection:  # most of the time there are none
            if not parts.has_held(connection):
                return 0
        with self._database.write() as connection:
            return parts.feed(connection, max_waiting_rows, max_owner_rows)

    def job(self, owner: str, identifier: str, *, whole: bool = False) -> Job | None:
        """Return a job; with its body and its result, which may be megabytes, only if it is wanted whole."""
        if not is_id(identifier):
            return None
        with self._database.read() as connection:
            return jobs.find(connection, owner, identifier, whole=whole)

    def jobs(self, owner: str, limit: int = 20, after: str | None = None, kind: JobKind | None = None) -> list[Job]:
        """Return jobs, newest first, from the one that follows `after`."""
        if after is not None and not is_id(after):
            return []
        with self._database.read() as connection:
            return jobs.listed(connection, owner, limit, after, kind)

    def images(self, owner: str, job: str) -> list[ImageRow]:
        """Return the images of a job in their order; none if it is not the owner's."""
        if not is_id(job):
            return []
        query = select(image_table).where(image_table.c.job == job, image_table.c.owner == owner)
        with self._database.read() as connection:
            return jobs.image_rows(connection, query.order_by(image_table.c.number))

    def image(self, owner: str, identifier: str) -> ImageRow | None:
        if not is_id(identifier):
            return None
        query = select(image_table).where(image_table.c.id == identifier, image_table.c.owner == owner)
        with self._database.read() as connection:
            return next(iter(jobs.image_rows(connection, query)), None)

    def cancel(self, owner: str, job: str) -> Job | None:
        """Cancel what a job has not finished, and return the job. Running images stop at their next step."""
        if not is_id(job):
            return None
        with self._database.write() as connection:
            if jobs.find(connection, owner, job) is None:
                return None
            jobs.cancel(connection, self._now(), job)
            return jobs.find(connection, owner, job)

    def events(self, owner: str, job: str, after: int = 0) -> list[Event] | None:
        """Return the events of a job with a number above `after`, oldest first; at most 500, so ask again."""
        if not is_id(job):
            return None
        with self._database.read() as connection:
            return events.after(connection, job, after) if jobs.find(connection, owner, job) else None

    def all_events(self, after: int) -> list[Event]:
        """Return the events of all jobs of all owners with a number above `after`, at most 500.

        Read the last ones again: an event may appear after one with a higher number.
        """
        with self._database.read() as connection:
            return events.of_all_jobs(connection, after)

    def last_event(self) -> int:
        """Return the highest number of an event, 0 if there are none."""
        with self._database.read() as connection:
            return events.newest(connection)

    def queue(self) -> Queue:
        with self._database.read() as connection:
            return jobs.queue(connection, self._now())

    # images, for the worker

    def waiting(self, limit: int = 1000, worker: str | None = None) -> list[ImageRow]:
        """Return the images that wait, oldest first: all, or those that are assigned to a worker."""
        with self._database.read() as connection:
            return (
                leases.waiting(connection, limit) if worker is None else assignments.waiting(connection, worker, limit)
            )

    def unassigned(self, limit: int = 1000) -> list[ImageRow]:
        """Return waiting images that no living worker has, oldest first."""
        with self._database.read() as connection:
            return assignments.unassigned(connection, self._now(), limit)

    def assign(self, worker: str, route: str, images: Sequence[str]) -> int:
        """Assign those of some images that wait to a worker; return how many.

        Args:
            worker: the name of the worker.
            route: what the images have in common.
            images: their ids.
        """
        with self._database.write() as connection:
            return assignments.assign(connection, worker, route, images)

    def adopt(self, worker: str, busy_seconds: float, gone_seconds: float, most: int) -> int:
        """Assign waiting images of others to an idle worker: the oldest, and others of its route. Return how many.

        Args:
            worker: the name of the idle worker.
            busy_seconds: age from which it may have images of a worker that lives.
            gone_seconds: age from which it may have images that no living worker has.
            most: how many it gets at most.
        """
        with self._database.read() as connection:  # most of the time there are none
            found = assignments.adoptable(connection, self._now(), worker, busy_seconds, gone_seconds, most)
        return 0 if found is None else self.assign(worker, *found)

    def alive(self) -> set[str]:
        """Return the names of the workers that give signs of life."""
        with self._database.read() as connection:
            return assignments.alive(connection, self._now())

    def settled(self, name: str, value: str | None = None) -> str | None:
        """Return the value that was settled first under a name, for all processes of the service and for good.

        Args:
            name: what it is.
            value: settles it, if nothing is yet; None only asks.
        """
        with self._database.write() as connection:
            return settled.settled(connection, name, value)

    def lease(
        self,
        worker: str,
        groups: Sequence[tuple[Sequence[str], Any]],
        seconds: float,
        tell: Tell | None = None,
    ) -> list[Group]:
        """Record groups, each as (ids of its images, plan), and give their images to a worker.

        Images that do not wait any more are left out of their group, and a group without images is not returned.

        Args:
            worker: the name of the worker, new for each process.
            groups: what it will generate.
            seconds: how long it keeps the images without a heartbeat.
            tell: returns more data for the event `grouped` of a job, from the group and the ids of the job's images.
        """
        with self._database.write() as connection:
            now = self._now()
            leases.extend(connection, now, worker, seconds)
            return leases.lease(connection, now, worker, groups, tell)

    def heartbeat(self, worker: str, seconds: float) -> tuple[str, ...]:
        """Keep a worker's leases for some more seconds; return the ids of images cancelled since the last time."""
        with self._database.write() as connection:
            leases.extend(connection, self._now(), worker, seconds)
            return leases.stopped(connection, worker)

    def reclaim(self, worker: str, seconds: float, tell: Tell | None = None) -> list[Group]:
        """Give one group of workers that died to this one; call it again when it has ended, until nothing comes.

        After the first death a group runs again as recorded; after the second, each of its images runs alone, with the
        plan of its group; after the third the image is set aside.
        """
        with self._database.write() as connection:
            now = self._now()
            leases.extend(connection, now, worker, seconds)
            return leases.reclaim(connection, now, worker, tell)

    def finish(self, worker: str, image: str, result: dict[str, Any]) -> bool:
        """Record that an image is done; return False if it was cancelled or given to another worker."""
        with self._database.write() as connection:
            return leases.end(connection, self._now(), worker, image, "done", result=result)

    def finish_all(self, worker: str, results: Sequence[tuple[str, dict[str, Any]]]) -> int:
        """Record that images are done, as (id, result), like `finish` for each; return how many."""
        with self._database.write() as connection:
            return leases.end_all(connection, self._now(), worker, results)

    def fail(self, worker: str, image: str, reason: str) -> bool:
        """Record that an image cannot be generated, and why; return False if it is not this worker's any more."""
        with self._database.write() as connection:
            return leases.end(connection, self._now(), worker, image, "failed", reason=reason)

    def refuse(self, image: str, reason: str) -> bool:
        """Record that an image that waits cannot be generated; return False if it does not wait any more."""
        with self._database.write() as connection:
            return leases.refuse(connection, self._now(), image, reason)

    def tried(self, images: Sequence[str]) -> None:
        """Count an attempt of images that wait, because the worker has to end and one of them may be the reason."""
        with self._database.write() as connection:
            leases.tried(connection, self._now(), images)

    def split(self, worker: str, group: str, tell: Tell | None = None) -> list[Group]:
        """Make a group of its own, with the same plan, of each image of a group that failed together."""
        with self._database.write() as connection:
            return leases.split(connection, self._now(), worker, group, tell)

    def release(self, worker: str) -> None:
        """Give back the images of a worker that stops in good order; this start does not count as an attempt."""
        with self._database.write() as connection:
            leases.release(connection, worker)

    def give_up(self, worker: str) -> None:
        """Let the leases of a worker end now, because its process has ended."""
        with self._database.write() as connection:
            leases.give_up(connection, worker)

    def group(self, identifier: str) -> Group | None:
        """Return a recorded group, with all the images that it was first started with."""
        with self._database.read() as connection:
            query = select(group_table).where(group_table.c.id == identifier)
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else Group(row["id"], tuple(row["images"]), row["plan"], row["attempt"])

    def event(self, job: str, kind: str, data: dict[str, Any]) -> None:
        """Record that something happened to a job; does nothing if the job is removed."""
        with self._database.write() as connection:
            if jobs.hold(connection, [job]):
                events.add(connection, self._now(), job, kind, data)

    def tell(self, told: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
        """Record several events at once, as (job, kind, data), like `event` for each."""
        with self._database.write() as connection:
            held = jobs.hold(connection, [job for job, _, _ in told])
            for job, kind, data in told:
                if job in held:
                    events.add(connection, self._now(), job, kind, data)

    def waiting_plans(self, limit: int = 10, worker: str | None = None, longest: int | None = None) -> list[PlanJob]:
        """Return the jobs that ask for a plan only, oldest first.

        Args:
            limit: how many at most.
            worker: leaves out those that other living workers are making.
            longest: leaves out those whose requests have more characters as JSON.
        """
        with self._database.read() as connection:
            return plans.waiting(connection, self._now(), limit, worker, longest)

    def start_plan(self, job: str, worker: str | None = None) -> bool:
        """Count an attempt at a plan; return False if it is not wanted any more, or was tried too often.

        Args:
            job: its id.
            worker: who makes it, if there are several; False also if another living worker does.
        """
        with self._database.write() as connection:
            return plans.start(connection, self._now(), job, worker)

    def pause_plan(self, job: str) -> None:
        """Take back an attempt at a plan, of which a part is made."""
        with self._database.write() as connection:
            plans.pause(connection, job)

    def finish_plan(self, job: str, result: Any) -> bool:
        """Record a plan; return False if its job has ended already."""
        with self._database.write() as connection:
            return plans.end(connection, self._now(), job, "done", result=result)

    def fail_plan(self, job: str, reason: str) -> bool:
        """Record why there is no plan; return False if its job has ended already."""
        with self._database.write() as connection:
            return plans.end(connection, self._now(), job, "failed", reason=reason)

    # files and batches

    def add_file(
        self,
        owner: str,
        name: str,
        purpose: str,
        content: bytes,
        max_bytes: int | None = None,
        idempotency_key: str | None = None,
    ) -> File:
        """Record a file, or return the one that came with the same key before.

        Raises:
            IdempotencyConflict: the key came with another file before.
            TooMuchStored: with it, the files of the owner with this purpose would have more than `max_bytes`.
        """
        with self._database.write() as connection:
            return files.add(connection, self._now(), owner, name, purpose, content, max_bytes, idempotency_key)

    def file(self, owner: str, identifier: str) -> File | None:
        if not is_id(identifier):
            return None
        with self._database.read() as connection:
            return files.find(connection, owner, identifier)

    def file_content(self, owner: str, identifier: str) -> bytes | None:
        if not is_id(identifier):
            return None
        with self._database.read() as connection:
            return files.content_of(connection, owner, identifier)

    def files(self, owner: str, limit: int = 20, after: str | None = None, purpose: str | None = None) -> list[File]:
        """Return files, newest first, from the one that follows `after`."""
        if after is not None and not is_id(after):
            return []
        with self._database.read() as connection:
            return files.listed(connection, owner, limit, after, purpose)

    def remove_file(self, owner: str, identifier: str) -> bool:
        if not is_id(identifier):
            return False
        with self._database.write() as connection:
            return files.remove(connection, owner, identifier)

    def add_batch(
        self,
        owner: str,
        input_file: str,
        endpoint: str,
        window: str = "24h",
        metadata: dict[str, Any] | None = None,
        max_open: int | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Record a batch that is still to be validated, or return the one that came with the same key before.

        Raises:
            IdempotencyConflict: the key came with another batch before.
            TooManyBatches: the owner has `max_open` batches that have not ended.
        """
        with self._database.write() as connection:
            asked = batches.Asked(owner, input_file, endpoint, window, metadata or {})
            return batches.add(connection, self._now(), asked, max_open, idempotency_key)

    def batch(self, owner: str, identifier: str) -> Batch | None:
        if not is_id(identifier):
            return None
        with self._database.read() as connection:
            return batches.find(connection, owner, identifier)

    def batches(self, owner: str, limit: int = 20, after: str | None = None) -> list[Batch]:
        """Return batches, newest first, from the one that follows `after`."""
        if after is not None and not is_id(after):
            return []
        with self._database.read() as connection:
            return batches.listed(connection, owner, limit, after)

    def cancel_batch(self, owner: str, identifier: str) -> Batch | None:
        """Cancel a batch; what is done already still goes to its output file."""
        if not is_id(identifier):
            return None
        with self._database.write() as connection:
            if batches.find(connection, owner, identifier) is not None:
                batches.stop(connection, self._now(), identifier, "cancelled")
            return batches.find(connection, owner, identifier)

    def validating_batches(self) -> list[Batch]:
        """Return batches whose files are still to be validated: by `start_batch` or `fail_batch`."""
        with self._database.read() as connection:
            return batches.validating(connection)

    def start_batch(
        self, identifier: str, requests: Sequence[ImageRequest], max_waiting_rows: int | None = None
    ) -> Batch:
        """Accept the requests of a validated batch; one that was cancelled meanwhile stays as it is.

        With `max_waiting_rows`, none of its images is in the queue yet: `feed` lets them enter it.
        """
        with self._database.write() as connection:
            return batches.start(connection, self._now(), identifier, requests, max_waiting_rows)

    def fail_batch(self, identifier: str, errors: Sequence[dict[str, Any]]) -> Batch:
        """Refuse a batch whose file is wrong."""
        with self._database.write() as connection:
            return batches.fail(connection, self._now(), identifier, errors)

    def finalizing_batches(self) -> list[Batch]:
        """Return batches whose images have all ended and whose output files are still to be written."""
        with self._database.read() as connection:
            return batches.finalizing(connection)

    def finish_batch(self, identifier: str, output: bytes, errors: bytes) -> Batch:
        """Record the output files of a batch (empty ones are not made); does nothing if it was done before."""
        with self._database.write() as connection:
            return batches.finish(connection, self._now(), identifier, output, errors)

    def expire_batches(self) -> int:
        """Let batches end whose time is over; return how many."""
        with self._database.read() as connection:
            late = batches.overdue(connection, self._now())
        for identifier in late:
            # each in a transaction of its own: one that held several jobs, in this order, could wait for another one
            with self._database.write() as connection:
                batches.stop(connection, self._now(), identifier, "expired")
        return len(late)

    # keys

    def add_key(self, name: str, limits: dict[str, Any] | None = None) -> str:
        """Make a key and return it: this is the only time that it can be seen.

        Raises:
            CotrunkError: the name is not a name, or is in use.
        """
        with self._database.write() as connection:
            return keys.add(connection, self._now(), name, limits or {})

    def keys(self) -> list[Key]:
        with self._database.read() as connection:
            return keys.listed(connection)

    def has_key(self, name: str) -> bool:
        """Return whether there is a key of this name."""
        with self._database.read() as connection:
            return keys.is_known(connection, name)

    def remove_key(self, name: str) -> bool:
        with self._database.write() as connection:
            return keys.remove(connection, name)

    def owner_of(self, plain: str) -> Owner | None:
        """Return the holder of a key, or None."""
        with self._database.read() as connection:
            return keys.owner_of(connection, plain)

    # retention

    def ended(self, before: float) -> list[tuple[str, list[str]]]:
        """Return some jobs that ended before a time, each with the ids of its images."""
        with self._database.read() as connection:
            return retention.ended(connection, before)

    def remove_jobs(self, identifiers: Sequence[str]) -> None:
        """Remove ended jobs with their images and events. Remove the files of the images first."""
        with self._database.write() as connection:
            retention.remove(connection, identifiers)

    def remove_rest(self, before: float) -> None:
        """Remove groups without images, ended batches, and files without a batch that are older than a time."""
        is_left = True
        while is_left:
            with self._database.write() as connection:
                is_left = retention.remove_groups(connection, before)
        with self._database.write() as connection:
            retention.remove_rest(connection, before)
