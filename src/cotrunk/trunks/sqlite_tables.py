"""The index of a trunk cache in a file of its folder, which the processes of one machine share, or in memory."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CotrunkError
from .tensor_files import PRIVATE_FILE

WAIT = 60.0  # seconds to wait while another process writes
PAUSE = 0.01  # seconds between two attempts of a statement that does not wait
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class SqliteTables:
    """Tables in SQLite. All methods may be called from several threads, and by several processes on one file.

    Args:
        path: of the file; None for tables in memory.

    Attributes:
        types: of columns, by the names that `Index` gives them.

    Raises:
        CotrunkError: the file cannot be opened or is damaged.
    """

    types: Mapping[str, str] = {
        "NUMBER": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "INTEGER": "INTEGER",
        "REAL": "REAL",
        "BYTES": "BLOB",
    }

    def __init__(self, path: Path | None) -> None:
        self._path, self._lock, self._own_changes = path, threading.RLock(), 0
        try:
            if path is not None:
                # SQLite would make it readable for others; its log has the permissions of the file
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE))
        except OSError as error:
            raise CotrunkError(
                f"Cannot open the trunk cache {path.parent if path else ''}: {error.strerror or error}. Choose another "
                "folder."
            ) from None
        with self._as_sentence():
            self._db = sqlite3.connect(
                ":memory:" if path is None else path, WAIT, isolation_level=None, check_same_thread=False
            )
            self._db.row_factory = sqlite3.Row
            retried(lambda: self._db.execute("PRAGMA journal_mode = WAL"), WAIT)  # this one does not wait by itself
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA secure_delete = ON")  # overwrites the prompts of removed rows

    def create(self, statements: Iterable[str], version: int) -> None:
        """Make the tables, unless they exist.

        Args:
            statements: that make them.
            version: of the tables.

        Raises:
            CotrunkError: they are of another version.
        """
        with self.writing():
            found = self.execute("PRAGMA user_version")[0]["user_version"]
            if found == 1:  # the same columns under other names; lone prompts are only forgotten
                self.execute("ALTER TABLE trunks RENAME TO cotrunk_trunks")
                self.execute("DROP TABLE ghosts")
            elif found not in (0, version):
                raise CotrunkError(
                    f"The trunk cache of {self._path} was written by another version of cotrunk: delete the folder, or "
                    "choose another."
                )
            for statement in statements:
                self.execute(statement)
            self.execute(f"PRAGMA user_version = {version}")

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Mapping[str, Any]]:
        """Execute a statement, whose values are question marks, and return its rows.

        Raises:
            CotrunkError: it fails.
        """
        with self._lock, self._as_sentence():
            rows: Sequence[Any] = self._db.execute(statement, values).fetchall()
            return rows

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes and threads from writing until the block ends; undo its changes if it raises."""
        with self._lock:
            with self._as_sentence():
                is_within = self._db.in_transaction
            if is_within:
                yield
                return
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # after some errors SQLite has undone it
                    self.execute("ROLLBACK")
                raise
            self._own_changes += 1

    def changes(self) -> tuple[int, int]:
        """Return a value that differs after any process has changed the tables."""
        with self._lock:
            return self._own_changes, self.execute("PRAGMA data_version")[0]["data_version"]

    def flush(self) -> None:
        """Write the log into the file and empty it: it may hold the texts of rows that were removed."""
        self.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _as_sentence(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if _is_busy(error):
                why = "is in use: another process keeps it locked. Wait until that process has ended, or choose another"
            elif isinstance(error, sqlite3.OperationalError | sqlite3.ProgrammingError):
                why = f"cannot be used: {error}. See whether its disk is full or may not be written, or choose another"
            else:
                why = f"cannot be used ({error}): delete the folder, which loses only time, or choose another"
            raise CotrunkError(f"The index {self._path or 'in memory'} {why} folder.") from None


def _is_busy(error: sqlite3.Error) -> bool:
    """Return whether another process holds a lock."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in BUSY  # the low byte of an extended code


def retried(execute: Callable[[], Any], seconds: float) -> None:
    """Execute a statement that does not wait for locks by itself, again and again while another process holds one."""
    until = time.monotonic() + seconds
    while True:
        try:
            execute()
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > until:
                raise
        time.sleep(PAUSE)
