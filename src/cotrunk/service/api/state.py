"""What the routes have in common: the store, the limits, the worker, the files of images."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple

from anyio import to_thread
from fastapi import Request

from ..images import ImageFiles
from ..store import IdempotencyConflict, ImageRequest, Job, Owner, QueueFull, Store, TooManyPlans
from ..store.records import JobKind
from .answers import content_path
from .errors import LIMIT, ApiError, conflicting
from .hub import Hub
from .limits import Limits
from .link import WorkerLink
from .metrics import Metrics
from .requests import Reader
from .signing import Signer

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")
LONGEST_RETRY = 3600  # seconds that a refused client is asked to wait at most
SHORTEST_RETRY = 0.05  # seconds
PLAN_RETRY = 5  # seconds, for plans: each takes up to a few
UNKNOWN_RETRY = 10  # seconds, while the speed is not measured yet
log = logging.getLogger("cotrunk.service")


@dataclass
class Service:
    """The state of the API process.

    Attributes:
        store: the jobs.
        files: of the images.
        limits: of requests.
        model: the name of the model.
        link: to the worker.
        signer: of addresses.
        metrics: for Prometheus.
        hub: wakes requests that wait.
        logs_prompts: whether prompts are written to the log.
        needs_key: whether there are keys.
        is_stopping: whether the server was asked to stop.
    """

    store: Store
    files: ImageFiles
    limits: Limits
    model: str
    link: WorkerLink
    signer: Signer
    metrics: Metrics
    hub: Hub
    logs_prompts: bool = False
    needs_key: Callable[[], bool] = lambda: False
    is_stopping: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self.link.woken = self.hub.wake

    @property
    def reader(self) -> Reader:
        """What turns requests into images, with what is known about the model now."""
        return Reader(self.limits, self.model, self.link.facts)

    async def accept(
        self,
        owner: Owner,
        kind: JobKind,
        images: Sequence[ImageRequest],
        body: dict[str, Any],
        key: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> tuple[Job, bool]:
        """Record a job, and wake the worker. Return the job, and whether it is new.

        Raises:
            ApiError: the queue is full, or an idempotency key came with another request before.
        """
        try:
            job, is_new = await in_thread(
                lambda: self.store.accept(
                    owner.name,
                    kind,
                    images,
                    body={**body, "model": self.model},
                    metadata=metadata,
                    idempotency_key=key,
                    max_waiting_rows=self.limits.queued_rows,
                    max_owner_rows=self.owner_rows,
                    max_plans=self.limits.key_plans,
                )
            )
        except QueueFull as full:
            raise self.refusal(full, sum(image.rows for image in images)) from None
        except TooManyPlans as many:
            self.metrics.refused.labels("plans").inc()
            raise ApiError(429, str(many), "too_many_plans", kind=LIMIT, headers=retry_after(PLAN_RETRY)) from None
        except IdempotencyConflict as conflict:
            raise conflicting(conflict) from None
        if is_new:
            self.link.send("work")
            if self.logs_prompts:
                log.info("%s of %s: %s", job.id, owner.name, [image.prompt for image in images])
        return job, is_new

    @property
    def owner_rows(self) -> int | None:
        """The rows of one owner that may wait; None without keys: then there is one owner."""
        return self.limits.key_rows if self.needs_key() else None

    def refusal(self, full: QueueFull, rows: int) -> ApiError:
        """Return the answer to a request for which the queue has no room, with the time until it has."""
        self.metrics.refused.labels("key" if full.is_of_owner else "queue").inc()
        waiting = full.waiting_rows
        left = self.link.seconds_until(min(waiting, waiting + rows - full.limit))
        seconds = UNKNOWN_RETRY if left is None else min(LONGEST_RETRY, max(SHORTEST_RETRY, left))
        what, code = ("This key's share of the queue", "key_full") if full.is_of_owner else ("The queue", "queue_full")
        sentence = f"{what} is full ({waiting:,} rows wait): try again in {seconds:.3g} seconds."
        return ApiError(429, sentence, code, kind=LIMIT, headers=retry_after(seconds))

    async def cancel(self, owner: str, job: str) -> Job | None:
        """Cancel what a job has not finished, and tell the worker."""
        found = await in_thread(self.store.cancel, owner, job)
        self.link.send("cancel")
        self.hub.wake()
        return found

    async def leave(self, owner: str, job: str) -> None:
        """Cancel a job whose client has gone. If it is the server that goes, the job stays, for its next start."""
        if not self.is_stopping():
            await self.cancel(owner, job)

    def url(self, request: Request, image: str, owner: str) -> str:
        """Return an address of an image that needs no key for an hour."""
        return base_of(request) + self.signer.signed(content_path(image), owner)


def retry_after(seconds: float) -> dict[str, str]:
    """Return the headers that say when to try again: whole seconds for all clients, and milliseconds for OpenAI's."""
    return {"retry-after": str(max(1, -(-int(seconds * 1000) // 1000))), "retry-after-ms": str(int(seconds * 1000) + 1)}


def base_of(request: Request) -> str:
    """Return what addresses of this service begin with, as the client sees them."""
    return str(request.base_url).rstrip("/")


async def in_thread(act: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
    """Call something that waits for the database or for files, without holding up other requests."""
    return await to_thread.run_sync(act, *arguments)


def service_of(request: Request) -> Service:
    """Return the state of the process."""
    service: Service = request.app.state.service
    return service
