"""The index of a trunk cache in SQLite: which trunks there are, for whom, their members, and their use."""

import json
import math
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CotrunkError
from ..planning.trunk_recipe import TrunkRecipe
from ..planning.trunk_store import Vectors
from .entries import Entry, RememberedPrompt, decayed, entry_of_row, worth_of
from .failures import as_sentence, retried
from .tensor_files import PRIVATE_FILE

NAME = "index.sqlite"
FORMAT = 1  # of the tables; also part of every key, because it tells what a tensor means
WAIT = 60.0  # seconds to wait while another process writes
TABLES = """
CREATE TABLE IF NOT EXISTS trunks (
    number INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT NOT NULL UNIQUE, space TEXT NOT NULL, key TEXT NOT NULL,
    members TEXT NOT NULL, owners TEXT NOT NULL, seed INTEGER NOT NULL, steps INTEGER NOT NULL,
    precision TEXT NOT NULL, vectors BLOB NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL,
    rows_saved REAL NOT NULL, hits REAL NOT NULL, hit_at REAL NOT NULL, uses INTEGER NOT NULL, created REAL NOT NULL);
CREATE INDEX IF NOT EXISTS trunks_of_key ON trunks (space, key);
CREATE INDEX IF NOT EXISTS trunks_by_worth ON trunks (bytes, rows_saved, hits, hit_at, digest);
CREATE TABLE IF NOT EXISTS ghosts (
    number INTEGER PRIMARY KEY AUTOINCREMENT, space TEXT NOT NULL, key TEXT NOT NULL, text TEXT NOT NULL,
    owner TEXT NOT NULL, vectors BLOB NOT NULL, created REAL NOT NULL, UNIQUE (space, key, text));
"""


class Index:
    """The tables. All methods may be called from several threads, and by several processes on one file.

    Args:
        folder: of the file; None for an index in memory.

    Raises:
        CotrunkError: the file cannot be opened, is damaged, or was written by another version.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / NAME
        self._lock, self._own_changes = threading.RLock(), 0
        try:
            with as_sentence(self.path):
                self._open()
        except OSError as error:
            why = error.strerror or error
            raise CotrunkError(f"Cannot open the trunk cache {folder}: {why}. Choose another folder.") from None

    def _open(self) -> None:
        if self.path is not None:
            # SQLite would make it readable for others; its log has the permissions of the file
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE))
        self._db = sqlite3.connect(
            ":memory:" if self.path is None else self.path, WAIT, isolation_level=None, check_same_thread=False
        )
        self._db.row_factory = sqlite3.Row
        retried(lambda: self._db.execute("PRAGMA journal_mode = WAL"), WAIT)  # this one does not wait by itself
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA secure_delete = ON")  # overwrites the prompts of removed rows
        with self.writing():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, FORMAT):
                raise CotrunkError(
                    f"The trunk cache of {self.path} was written by another version of cotrunk: delete the folder, or "
                    "choose another."
                )
            for statement in TABLES.split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {FORMAT}")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes and threads from writing until the block ends; undo its changes if it raises.

        Files are written and swept inside such a block, so a sweep never meets a file whose row is still to come.
        """
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:  # after some errors SQLite has undone it
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
            self._own_changes += 1

    def changes(self) -> tuple[int, int]:
        """Return a value that differs after any process has changed the file."""
        with self._lock:
            return self._own_changes, self._db.execute("PRAGMA data_version").fetchone()[0]

    def add(self, entry: Mapping[str, Any], recipe: TrunkRecipe, owners: Sequence[str], vectors: Vectors) -> None:
        """Insert a trunk, as used once now.

        Args:
            entry: the columns apart from the recipe, owners and vectors.
        """
        row = {
            **entry,
            "members": json.dumps(recipe.members),
            "owners": json.dumps(list(owners)),
            "seed": recipe.seed,
            "steps": recipe.steps,
            "precision": recipe.precision,
            "vectors": _packed(vectors),
        }
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        with self.writing():
            self._db.execute(f"INSERT OR IGNORE INTO trunks ({names}) VALUES ({marks})", tuple(row.values()))

    def entry(self, digest: str) -> Entry | None:
        """Return the trunk of this digest, if there is one."""
        return next(iter(self._entries("digest = ?", (digest,))), None)

    def entry_of(self, number: int) -> Entry | None:
        """Return the trunk of this number, if there is one."""
        return next(iter(self._entries("number = ?", (number,))), None)

    def entries(self) -> list[Entry]:
        """Return all trunks in the order in which they were stored."""
        return self._entries("TRUE", ())

    def created(self, digest: str) -> float | None:
        """Return when a trunk was stored; None if it is not there."""
        with self._lock:
            row = self._db.execute("SELECT created FROM trunks WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else row["created"]

    def digests(self) -> set[str]:
        """Return the digests of all trunks."""
        with self._lock:
            return {row["digest"] for row in self._db.execute("SELECT digest FROM trunks")}

    def least_worth(self, now: float) -> list[tuple[str, int]]:
        """Return the digest and the bytes of all trunks, those of least worth first, and among equals the oldest."""
        columns = "digest, rows_saved, hits, hit_at, bytes, number"  # not the vectors: an index has all of these
        with self._lock:
            rows = self._db.execute(f"SELECT {columns} FROM trunks").fetchall()
        ranked = sorted(
            (
                worth_of(row["rows_saved"], row["hits"], row["hit_at"], row["bytes"], now),
                row["number"],
                row["digest"],
                row["bytes"],
            )
            for row in rows
        )
        return [(digest, size) for _, _, digest, size in ranked]

    def flush(self) -> None:
        """Write the log into the file and empty it: it may hold the texts of rows that were removed."""
        with self._lock:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def remove(self, digests: Collection[str]) -> None:
        """Remove trunks."""
        with self.writing():
            self._db.executemany("DELETE FROM trunks WHERE digest = ?", [(digest,) for digest in digests])

    def count_hit(self, digest: str, now: float) -> None:
        """Count a use of a trunk."""
        with self.writing():
            found = self._db.execute("SELECT hits, hit_at FROM trunks WHERE digest = ?", (digest,)).fetchone()
            if found is not None:
                hits = decayed(found["hits"], now - found["hit_at"]) + 1
                self._db.execute(
                    "UPDATE trunks SET hits = ?, hit_at = ?, uses = uses + 1 WHERE digest = ?", (hits, now, digest)
                )

    def size(self) -> int:
        """Return the bytes of all trunks."""
        with self._lock:
            return self._db.execute("SELECT COALESCE(SUM(bytes), 0) FROM trunks").fetchone()[0]

    def add_ghost(self, space: str, key: str, text: str, owner: str, vector: Vectors, now: float, most: int) -> None:
        """Remember a prompt that had no similar one. Beyond `most` of a space and key, the oldest are forgotten."""
        with self.writing():
            self._db.execute(
                "INSERT OR REPLACE INTO ghosts (space, key, text, owner, vectors, created) VALUES (?, ?, ?, ?, ?, ?)",
                (space, key, text, owner, _packed(vector), now),
            )
            self._db.execute(
                "DELETE FROM ghosts WHERE space = ? AND key = ? AND number NOT IN "
                "(SELECT number FROM ghosts WHERE space = ? AND key = ? ORDER BY number DESC LIMIT ?)",
                (space, key, space, key, most),
            )

    def ghost(self, number: int) -> RememberedPrompt | None:
        """Return a remembered prompt, if it is there."""
        with self._lock:
            row = self._db.execute("SELECT text, vectors, created FROM ghosts WHERE number = ?", (number,)).fetchone()
        return None if row is None else RememberedPrompt(row["text"], _unpacked(row["vectors"])[0], row["created"])

    def ghost_owners(self, space: str, key: str, text: str) -> set[str]:
        """Return who wrote a remembered prompt."""
        with self._lock:
            rows = self._db.execute("SELECT owner FROM ghosts WHERE space=? AND key=? AND text=?", (space, key, text))
            return {row["owner"] for row in rows}

    def remove_older(self, created: float, now: float) -> list[str]:
        """Remove what was stored before a time, and return the digests of the trunks.

        What was stored while the clock was ahead counts as stored now.
        """
        with self.writing():
            for table in ("trunks", "ghosts"):
                self._db.execute(f"UPDATE {table} SET created = ? WHERE created > ?", (now, now))
            rows = self._db.execute("SELECT digest FROM trunks WHERE created < ?", (created,)).fetchall()
            self.remove_ghosts(created=created)
            self.remove([row["digest"] for row in rows])
        return [row["digest"] for row in rows]

    def remove_ghosts(self, owner: str | None = None, created: float = math.inf) -> int:
        """Forget prompts of an owner, or of all, that were remembered before a time; return their number."""
        where = "created < ? AND (owner = ? OR ? IS NULL)"
        with self.writing():
            return self._db.execute(f"DELETE FROM ghosts WHERE {where}", (created, owner, owner)).rowcount

    def count_ghosts(self) -> int:
        """Return the number of remembered prompts."""
        with self._lock:
            return self._db.execute("SELECT COUNT(*) FROM ghosts").fetchone()[0]

    def numbers(self, table: str, space: str, key: str) -> set[int]:
        """Return the numbers of the trunks or ghosts of a space and key."""
        with self._lock:
            rows = self._db.execute(f"SELECT number FROM {table} WHERE space = ? AND key = ?", (space, key))
            return {row["number"] for row in rows}

    def vectors(self, table: str, numbers: Collection[int]) -> dict[int, Vectors]:
        """Return the members' vectors of some trunks or ghosts."""
        found = {}
        with self._lock:
            for number in numbers:
                row = self._db.execute(f"SELECT vectors FROM {table} WHERE number = ?", (number,)).fetchone()
                if row is not None:
                    found[number] = _unpacked(row["vectors"])
        return found

    def _entries(self, where: str, values: Sequence[Any]) -> list[Entry]:
        with self._lock:
            rows = self._db.execute(f"SELECT * FROM trunks WHERE {where} ORDER BY number", values).fetchall()
        return [entry_of_row(row) for row in rows]


def _packed(vectors: Vectors) -> bytes:
    """Return (m, d) vectors as bytes: m, then the rows."""
    rows = np.atleast_2d(np.asarray(vectors, "<f4"))
    return np.uint32(len(rows)).tobytes() + rows.tobytes()


def _unpacked(content: bytes) -> Vectors:
    count = int(np.frombuffer(content[:4], "<u4")[0])
    return np.frombuffer(content[4:], "<f4").reshape(count, -1)
