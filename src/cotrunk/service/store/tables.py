"""The tables of the store, and how JSON is kept in them.

JSON is text, not a type of the database: PostgreSQL's refuses prompts with a NUL or half a surrogate pair.
"""

import json
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

VERSION = 1  # of the schema; a database with a higher one is refused


class Json(TypeDecorator[Any]):
    """A column with JSON as ASCII text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


tables = MetaData()
Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts only in columns of exactly this type

meta = Table("cotrunk_meta", tables, Column("name", String, primary_key=True), Column("value", String, nullable=False))

jobs = Table(
    "cotrunk_jobs",
    tables,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("owner", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("state", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("finished", Float),
    Column("body", Json),
    Column("metadata", Json, nullable=False),
    Column("idempotency", String),  # digest of the key
    Column("digest", String),  # of the body that came with the key
    Column("images", Integer, nullable=False),
    Column("waiting", Integer, nullable=False),
    Column("running", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("cancelled", Integer, nullable=False),
    Column("requests", Json),  # the prompts of a plan job: it has no images
    Column("attempts", Integer, nullable=False),  # of a plan job
    Column("result", Json),
    Column("reason", Text),
    Column("model", String),
    UniqueConstraint("owner", "idempotency"),
    Index("cotrunk_jobs_of_owner", "owner", "number"),
    Index("cotrunk_jobs_finished", "finished"),
    Index("cotrunk_jobs_of_kind", "kind", "state", "number"),
    sqlite_autoincrement=True,
)

workers = Table(
    "cotrunk_workers",
    tables,
    Column("id", String, primary_key=True),
    Column("expires", Float, nullable=False),  # its images are free after this time
    Column("process", String),  # `process.identity`
)

groups = Table(
    "cotrunk_groups",
    tables,
    Column("id", String, primary_key=True),
    Column("images", Json, nullable=False),
    Column("plan", Json),
    Column("attempt", Integer, nullable=False),
    Column("created", Float, nullable=False),
)

images = Table(
    "cotrunk_images",
    tables,
    Column("order", Number, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("job", ForeignKey(jobs.c.id, ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("owner", String, nullable=False),
    Column("bucket", String, nullable=False),
    Column("request", Json, nullable=False),
    Column("custom_id", Json),
    Column("rows", Integer, nullable=False),
    Column("state", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("accepted", Float, nullable=False),
    Column("finished", Float),
    Column("worker", String),
    Column("group", ForeignKey(groups.c.id)),
    Column("result", Json),
    Column("reason", Text),
    UniqueConstraint("job", "number"),
    Index("cotrunk_images_group", "group"),
    # not of waiting images only: SQLite does not use such an index for a state that comes as a parameter
    Index("cotrunk_images_state", "state", "order", "rows"),
    sqlite_autoincrement=True,
)
# columns that are added to a database without them: others may ignore them, so the version of the schema stays
ADDED = (jobs.c.model,)
RUNNING = text("worker IS NOT NULL")
Index("cotrunk_images_worker", images.c.worker, images.c.state, sqlite_where=RUNNING, postgresql_where=RUNNING)

# The next two tables are for services with several workers. They came later than the others and change none of them:
# they are made where they are missing, and the version of the schema stays.
assignments = Table(
    "cotrunk_assignments",  # of waiting images
    tables,
    Column("image", ForeignKey(images.c.id, ondelete="CASCADE"), primary_key=True),
    Column("route", String, nullable=False),
    Column("worker", String, nullable=False),
    Index("cotrunk_assignments_worker", "worker"),
)

planners = Table(
    "cotrunk_planners",
    tables,
    Column("job", ForeignKey(jobs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("worker", String, nullable=False),  # makes the plan
)

events = Table(
    "cotrunk_events",
    tables,
    Column("id", Number, primary_key=True, autoincrement=True),
    Column("job", ForeignKey(jobs.c.id, ondelete="CASCADE"), nullable=False),
    Column("kind", String, nullable=False),
    Column("data", Json, nullable=False),
    Column("created", Float, nullable=False),
    Index("cotrunk_events_of_job", "job", "id"),
    sqlite_autoincrement=True,  # a number is never given twice, also after a removal
)

files = Table(
    "cotrunk_files",
    tables,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("owner", String, nullable=False),
    Column("name", Json, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created", Float, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Index("cotrunk_files_of_owner", "owner", "number"),
    sqlite_autoincrement=True,
)

batches = Table(
    "cotrunk_batches",
    tables,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("owner", String, nullable=False),
    Column("job", ForeignKey(jobs.c.id, ondelete="SET NULL")),
    Column("state", String, nullable=False),
    Column("ending", String, nullable=False),  # the state after "finalizing" or "cancelling"
    Column("endpoint", String, nullable=False),
    Column("window", String, nullable=False),
    Column("expires", Float, nullable=False),
    Column("input_file", String, nullable=False),
    Column("output_file", String),
    Column("error_file", String),
    Column("errors", Json, nullable=False),
    Column("metadata", Json, nullable=False),
    Column("counts", Json),  # fixed when the batch ends
    Column("times", Json, nullable=False),
    Index("cotrunk_batches_of_owner", "owner", "number"),
    Index("cotrunk_batches_state", "state"),
    sqlite_autoincrement=True,
)

keys = Table(
    "cotrunk_keys",
    tables,
    Column("name", String, primary_key=True),
    Column("prefix", String, nullable=False, unique=True),
    Column("salt", String, nullable=False),
    Column("hash", String, nullable=False),
    Column("limits", Json, nullable=False),
    Column("created", Float, nullable=False),
)
