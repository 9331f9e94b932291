"""Connections and transactions: SQLite in a file, or PostgreSQL by URL.

SQLite runs with a write-ahead log and `synchronous=FULL`. A killed process loses nothing with NORMAL either, because
the operating system has what it wrote. But after a power cut NORMAL may lose the last accepted jobs, whose ids
clients have already. FULL costs one fsync per transaction.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, select
from sqlalchemy import text as sql
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ...errors import CotrunkError, first_line
from ...storage.database_url import CONNECTING, SQLITE, checked_url, shown_url
from .tables import ADDED, VERSION, meta, tables

BUSY_SECONDS = 30  # how long a writer of SQLite waits for another process
CONNECTIONS = 20  # per process: one per thread of the API that may ask at the same time
# errors and the log must not repeat what a statement writes: prompts, files, hashes of keys
OPTIONS: dict[str, Any] = {"pool_size": CONNECTIONS, "hide_parameters": True}
SCHEMA_LOCK = 0x636F7472  # an advisory lock of PostgreSQL; any number that nothing else uses ("cotr")


class Database:
    """A database with the tables of the store, made if they do not exist.

    Raises:
        CotrunkError: the URL is wrong, the database cannot be reached or written, or a newer cotrunk made it.
    """

    def __init__(self, url: str) -> None:
        self.url = checked_url(url)
        self.is_sqlite = self.url.get_backend_name() == SQLITE
        self._engine = self._sqlite() if self.is_sqlite else self._postgresql()
        # SQLite makes waiting writers sleep and poll, so those of one process queue here
        self._writers: Any = threading.Lock() if self.is_sqlite else nullcontext()
        self._try(self._prepare)

    def _sqlite(self) -> Engine:
        path = Path(self.url.database or "")
        if not path.name or self.url.database == ":memory:":
            raise CotrunkError("The database must be a file, because two processes use it: name one, sqlite:///FILE.")
        self._try(lambda: path.parent.mkdir(parents=True, exist_ok=True))
        engine = create_engine(self.url, connect_args={"timeout": BUSY_SECONDS}, **OPTIONS)

        @event.listens_for(engine, "connect")
        def _set_up(connection: Any, record: Any) -> None:
            connection.isolation_level = None  # transactions begin below, not in the driver
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            # a transaction that reads first and writes later may fail at the write, so writers lock at once
            is_read = connection.get_execution_options().get("reads", False)
            connection.exec_driver_sql("BEGIN" if is_read else "BEGIN IMMEDIATE")

        return engine

    def _postgresql(self) -> Engine:
        return create_engine(self.url, pool_pre_ping=True, connect_args=CONNECTING, **OPTIONS)

    def _prepare(self) -> None:
        with self.write() as connection:
            if not self.is_sqlite:  # both processes start at the same time
                connection.execute(sql("SELECT pg_advisory_xact_lock(:number)"), {"number": SCHEMA_LOCK})
            meta.create(connection, checkfirst=True)
            found = connection.scalar(select(meta.c.value).where(meta.c.name == "version"))
            if found is not None and int(found) != VERSION:
                raise CotrunkError(
                    f"The database {self} has schema {found}, and this cotrunk knows schema {VERSION}: "
                    "upgrade cotrunk, or name another database."
                )
            tables.create_all(connection)  # those that are missing
            _add_columns(connection)
            if found is None:
                connection.execute(meta.insert().values(name="version", value=str(VERSION)))

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (DBAPIError, SQLAlchemyError) as error:
            why = first_line(error.orig if isinstance(error, DBAPIError) and error.orig else error)
            remedy = "Name a file that you may write" if self.is_sqlite else "Start it, or name another"
            raise CotrunkError(f"Cannot use the database {self}: {why}. {remedy}.") from error
        except OSError as error:
            raise CotrunkError(f"Cannot write {self.url.database}: {error.strerror}. Choose another folder.") from error

    def __str__(self) -> str:
        return shown_url(self.url)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Run a block in one transaction, which is undone if the block raises."""
        with self._writers, self._engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Run a block that only reads; it sees the database as it was at its first query (SQLite)."""
        with self._engine.connect().execution_options(reads=True) as connection, connection.begin():
            yield connection

    def close(self) -> None:
        self._engine.dispose()


def _add_columns(connection: Connection) -> None:
    """Add the columns that a database of an earlier cotrunk does not have."""
    for column in ADDED:
        if column.name not in {known["name"] for known in inspect(connection).get_columns(column.table.name)}:
            kind = column.type.compile(connection.dialect)
            connection.execute(sql(f"ALTER TABLE {column.table.name} ADD COLUMN {column.name} {kind}"))
