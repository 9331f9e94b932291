"""What the store takes and gives: plain records that hold no connection, and the two refusals of `Store.accept`."""

import hashlib
import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ...errors import CotrunkError

JobKind = Literal["images", "batch", "plan"]
JobState = Literal["waiting", "running", "done", "failed", "cancelled"]
ImageState = Literal["waiting", "running", "done", "failed", "cancelled"]
BatchState = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
ENDED = ("done", "failed", "cancelled")  # the states of a job or an image that do not change any more
ALONE = "alone"  # the group name of an image that shares with no other


class QueueFull(CotrunkError):  # noqa: N818 (a refusal, not an error)
    """The queue has no room for a job now.

    Attributes:
        waiting_rows: how many rows wait already: of the owner, or of all.
        limit: how many may.
        is_of_owner: whether the owner has too much in the queue.
    """

    def __init__(self, waiting_rows: int, limit: int, *, is_of_owner: bool = False) -> None:
        what = "The share of this key in the queue" if is_of_owner else "The queue"
        super().__init__(f"{what} is full ({waiting_rows:,} of {limit:,} rows wait): try again later.")
        self.waiting_rows, self.limit, self.is_of_owner = waiting_rows, limit, is_of_owner


class TooManyPlans(CotrunkError):  # noqa: N818
    """An owner waits for too many plans."""

    def __init__(self, most: int) -> None:
        super().__init__(f"{most} plans of this key are not answered yet, and more may not wait: try again later.")


class TooMuchStored(CotrunkError):  # noqa: N818
    """The files of an owner take too much room."""

    def __init__(self, most: int) -> None:
        mib = f"{most / 2**20:,.4g}"
        super().__init__(f"The uploaded files of this key may take {mib} MiB together: delete some.")


class TooManyBatches(CotrunkError):  # noqa: N818
    """An owner has too many batches that have not ended."""

    def __init__(self, most: int) -> None:
        super().__init__(f"{most} batches of this key have not ended, and more may not wait: try again later.")


class IdempotencyConflict(CotrunkError):  # noqa: N818
    """An idempotency key came back with another body."""

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used for another request: send a new key with a new request.")


@dataclass(frozen=True)
class ImageRequest:
    """One image that somebody asks for.

    Attributes:
        prompt: its prompt.
        settings: everything else that the image depends on, as JSON: model, steps, size, negative prompt, guidance;
            and `output`, how its file is written, which changes no image.
        seed: the seed of its noise, or None: its group's plan chooses.
        group: only images with the same group name share; "alone" shares with none.
        wait_ms: how long it may wait for similar prompts, in milliseconds, or None: the service's default.
        rows: the denoiser rows that it costs without sharing.
        custom_id: the name of its line in a batch.
    """

    prompt: str
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    group: str | None = None
    wait_ms: int | None = None
    rows: int = 0
    custom_id: str | None = None

    def bucket(self, owner: str) -> str:
        """Return the digest that only images have in common that may share."""
        # how an image is delivered (`shapes.Output`) does not change it
        same = {name: value for name, value in self.settings.items() if name != "output"}
        return digest([owner, same, self.group])

    def to_json(self) -> dict[str, Any]:
        # not `asdict`, whose deep copies of ten thousand images take most of the time of their job
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True)
class Job:
    """One call of the API, one batch or one preview of a plan.

    Attributes:
        id: its name, as clients see it.
        owner: whose it is.
        kind: "images", "batch" or "plan".
        state: "waiting" until the first image starts, "running" until the last ends, then "done" (at least one image
            is there), "failed" (none is) or "cancelled".
        created: when it was accepted, in seconds since 1970.
        finished: when its last image ended, or None.
        model: the name of the model.
        metadata: what the client wants to find again.
        images: how many images it has.
        counts: how many of them are waiting, running, done, failed, cancelled.
        body: the request as it came; None unless the job was asked for as a whole.
        result: the plan of a plan job; None unless the job was asked for as a whole.
        reason: why a plan job failed.
    """

    id: str
    owner: str
    kind: JobKind
    state: JobState
    created: float
    finished: float | None
    model: str
    metadata: dict[str, Any]
    images: int
    counts: dict[str, int]
    body: Any = None
    result: Any = None
    reason: str | None = None


@dataclass(frozen=True)
class ImageRow:
    """An image of a job.

    Attributes:
        id: its name; the name of its file is derived from it.
        job: the id of its job.
        number: its place in the job.
        owner: whose it is.
        bucket: only images of one bucket may share.
        request: what was asked for.
        state: "waiting", "running", "done", "failed" or "cancelled".
        attempts: how often a worker started it.
        accepted: when it was accepted, in seconds since 1970.
        group: the id of the group that it was last started in, or None.
        result: what the worker says about the finished image.
        reason: why it failed.
        finished: when it ended, or None.
    """

    id: str
    job: str
    number: int
    owner: str
    bucket: str
    request: ImageRequest
    state: ImageState
    attempts: int
    accepted: float
    group: str | None
    result: dict[str, Any] | None
    reason: str | None
    finished: float | None = None


@dataclass(frozen=True)
class Group:
    """Images that a worker generates together.

    Attributes:
        id: its name.
        images: the ids of the images that are still to be generated; a subset of those in the plan after a crash or a
            cancellation.
        plan: the plan as recorded before the first start: seeds, trunk recipes and whatever else the images depend on.
        attempt: 1 for the first start. From 3 on it has a single image: the worker died twice.
    """

    id: str
    images: tuple[str, ...]
    plan: Any
    attempt: int


@dataclass(frozen=True)
class Event:
    """Something that happened to a job. Ids grow within a job, so clients resume after the last one they saw."""

    id: int
    job: str
    kind: str
    data: dict[str, Any]
    created: float


@dataclass(frozen=True)
class PlanJob:
    """A job that asks for a plan only, with its prompts."""

    job: Job
    requests: tuple[ImageRequest, ...]
    attempts: int = 0  # that ended with the death of the worker


@dataclass(frozen=True)
class Queue:
    """What waits and what runs: images, their rows without sharing, and the age in seconds of the oldest that waits."""

    images: int
    rows: int
    oldest: float
    running_images: int
    running_rows: int


@dataclass(frozen=True)
class Owner:
    """The holder of a key, with the limits that the key was made with."""

    name: str
    limits: dict[str, Any]


@dataclass(frozen=True)
class Key:
    """A key without its secret, for a list of them."""

    name: str
    prefix: str
    limits: dict[str, Any]
    created: float


@dataclass(frozen=True)
class File:
    """An uploaded file, or the output of a batch, without its content."""

    id: str
    owner: str
    name: str
    purpose: str
    bytes: int
    created: float


@dataclass(frozen=True)
class Batch:
    """A list of requests in one file, with the fields and states of OpenAI's batches.

    Attributes:
        id: its name.
        owner: whose it is.
        job: the id of the job that generates its images, once it is validated.
        state: "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling" or "cancelled".
        endpoint: where its requests would go one by one.
        window: the time that it may take, as it was asked for, such as "24h".
        input_file: the id of the file with the requests.
        output_file: the id of the file with the answers, when the batch has ended.
        error_file: the id of the file with the requests that failed, when the batch has ended.
        errors: what is wrong with the input file.
        metadata: what the client wants to find again.
        counts: requests (not images): total, completed, failed.
        times: when it entered each state, in seconds since 1970; `expires` is the time at which it must have ended.
    """

    id: str
    owner: str
    job: str | None
    state: BatchState
    endpoint: str
    window: str
    input_file: str
    output_file: str | None
    error_file: str | None
    errors: list[dict[str, Any]]
    metadata: dict[str, Any]
    counts: dict[str, int]
    times: dict[str, float]


def digest(content: Any) -> str:
    """Return the SHA-256 of JSON content; equal content gives equal digests, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()
