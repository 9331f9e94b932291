"""The index of a trunk cache in PostgreSQL, which several machines share."""

import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from ..errors import CotrunkError, first_line
from ..storage.database_url import CONNECTING, POSTGRESQL, checked_url, shown_url

WAIT = 60  # seconds to wait while another process writes
# Seconds after which the server gives up a writer that is silent within a transaction: it uploads a file, or its
# machine is gone. Otherwise no other could write any more.
SILENCE = 120
SCHEMA_LOCK = 0x636F7473  # an advisory lock of PostgreSQL; any number that nothing else uses ("cots")
STATE = "cotrunk_trunk_index"  # a table of one row


class PostgresTables:
    """Tables in a PostgreSQL database. All methods may be called from several threads, processes and machines.

    Args:
        url: postgresql://USER:PASSWORD@HOST/NAME.

    Attributes:
        types: of columns, by the names that `Index` gives them.

    Raises:
        CotrunkError: the URL is wrong, the database cannot be reached.
    """

    types: Mapping[str, str] = {
        "NUMBER": "BIGSERIAL PRIMARY KEY",
        "INTEGER": "BIGINT",
        "REAL": "DOUBLE PRECISION",
        "BYTES": "BYTEA",
    }

    def __init__(self, url: str) -> None:
        self._url = checked_url(url)
        if self._url.get_backend_name() != POSTGRESQL:
            raise CotrunkError(
                f"{shown_url(self._url)} is on one machine, and several share these trunks: name a database of "
                "PostgreSQL, postgresql://USER@HOST/NAME."
            )
        self._lock = threading.RLock()
        self._writer: Any = None  # the connection of the transaction
        # before each use the pool looks whether its connection still lives; errors must not repeat prompts
        self._engine = create_engine(
            self._url,
            pool_size=1,
            pool_pre_ping=True,
            hide_parameters=True,
            isolation_level="READ COMMITTED",
            connect_args=CONNECTING,
        )

        @event.listens_for(self._engine, "connect")
        def _set_up(connection: Any, record: Any) -> None:
            connection.execute(f"SET lock_timeout = '{WAIT}s'")
            connection.execute(f"SET idle_in_transaction_session_timeout = '{SILENCE}s'")
            connection.commit()

    def create(self, statements: Iterable[str], version: int) -> None:
        """Make the tables, unless they exist.

        Args:
            statements: that make them.
            version: of the tables.

        Raises:
            CotrunkError: they are of another version.
        """
        with self._as_sentence(), self._engine.begin() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})")  # processes start together
            connection.exec_driver_sql(
                f"CREATE TABLE IF NOT EXISTS {STATE} (version BIGINT, changes BIGINT, id TEXT, is_marked BOOLEAN)"
            )
            found = connection.exec_driver_sql(f"SELECT version FROM {STATE}").scalar()
            if found not in (None, version):
                raise CotrunkError(
                    f"The trunk index in {self} was made by another version of cotrunk: name another database, or stop "
                    f"all that use it and drop its tables cotrunk_trunks, cotrunk_ghosts and {STATE}."
                )
            if found is None:
                for statement in statements:
                    connection.exec_driver_sql(statement)
                connection.exec_driver_sql(
                    f"INSERT INTO {STATE} VALUES (%s, 0, %s, FALSE)", (version, secrets.token_hex(16))
                )

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Mapping[str, Any]]:
        """Execute a statement, whose values are question marks, and return its rows.

        Raises:
            CotrunkError: it fails.
        """
        with self._lock, self._as_sentence():
            if self._writer is not None:
                return _rows(self._writer, statement, values)
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                return _rows(connection, statement, values)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers on all machines waiting until the block ends; undo its changes if it raises."""
        with self._lock:
            if self._writer is not None:
                yield
                return
            with self._as_sentence():
                self._writer = self._engine.connect()
            try:
                self.execute(f"UPDATE {STATE} SET changes = changes + 1")  # locks its only row
                yield
                with self._as_sentence():
                    self._writer.commit()
            finally:
                writer, self._writer = self._writer, None
                with suppress(SQLAlchemyError):  # the connection may be lost; what the block raised counts
                    writer.close()  # undoes what was not committed

    def changes(self) -> tuple[str, int]:
        """Return a value that differs after any process has changed the tables."""
        row = self.execute(f"SELECT id, changes FROM {STATE}")[0]
        return row["id"], row["changes"]

    def flush(self) -> None:
        """Free the space of rows that were removed. The log of the server, and copies of it, may still hold them."""
        with suppress(CotrunkError):  # PostgreSQL does it itself later
            self.execute("VACUUM cotrunk_trunks, cotrunk_ghosts")

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()

    def marked(self) -> tuple[str, bool]:
        """Return the id of this index, and whether the place of its files has been marked with it."""
        row = self.execute(f"SELECT id, is_marked FROM {STATE}")[0]
        return row["id"], row["is_marked"]

    def mark(self) -> None:
        """Record that the place of the files has been marked."""
        self.execute(f"UPDATE {STATE} SET is_marked = TRUE")

    def __str__(self) -> str:
        return shown_url(self._url)

    @contextmanager
    def _as_sentence(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            why = first_line(error.orig if isinstance(error, DBAPIError) and error.orig else error)
            is_lost = isinstance(error, OperationalError | InterfaceError)
            remedy = "Start the database, or name another" if is_lost else "Name another database"
            raise CotrunkError(f"The trunk index in {self} cannot be used: {why}. {remedy}.") from None


def _rows(connection: Any, statement: str, values: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
    result = connection.exec_driver_sql(statement.replace("?", "%s"), tuple(values))
    return result.mappings().all() if result.returns_rows else []
