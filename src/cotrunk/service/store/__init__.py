"""The durable record of the service: jobs, images, groups, events, files, batches and keys, in SQLite or PostgreSQL.

Every public call of `Store` is one transaction: when a process dies, each call is either done or not done.
"""

from .records import (
    ENDED,
    Batch,
    Event,
    File,
    Group,
    IdempotencyConflict,
    ImageRequest,
    ImageRow,
    Job,
    Key,
    Owner,
    PlanJob,
    Queue,
    QueueFull,
    TooManyBatches,
    TooManyPlans,
    TooMuchStored,
)
from .store import Store

__all__ = [
    "ENDED",
    "Batch",
    "Event",
    "File",
    "Group",
    "IdempotencyConflict",
    "ImageRequest",
    "ImageRow",
    "Job",
    "Key",
    "Owner",
    "PlanJob",
    "Queue",
    "QueueFull",
    "Store",
    "TooManyBatches",
    "TooManyPlans",
    "TooMuchStored",
]
