"""The index of a trunk cache: which trunks there are, for whom, their members, and their use."""

import hashlib
import json
import math
import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from ..planning.trunk_recipe import TrunkRecipe
from ..planning.trunk_store import Vectors
from .entries import Entry, RememberedPrompt, decayed, entry_of_row, worth_of

FORMAT = 1  # part of every key, because it tells what a tensor means
VERSION = 2  # of the tables
CHUNK = 500  # values in one statement
TABLES = """
CREATE TABLE IF NOT EXISTS cotrunk_trunks (
    number NUMBER, digest TEXT NOT NULL UNIQUE, space TEXT NOT NULL, key TEXT NOT NULL,
    members TEXT NOT NULL, owners TEXT NOT NULL, seed INTEGER NOT NULL, steps INTEGER NOT NULL,
    precision TEXT NOT NULL, vectors BYTES NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL,
    rows_saved REAL NOT NULL, hits REAL NOT NULL, hit_at REAL NOT NULL, uses INTEGER NOT NULL, created REAL NOT NULL);
CREATE INDEX IF NOT EXISTS cotrunk_trunks_of_key ON cotrunk_trunks (space, key);
CREATE INDEX IF NOT EXISTS cotrunk_trunks_by_worth ON cotrunk_trunks (bytes, rows_saved, hits, hit_at, digest);
CREATE TABLE IF NOT EXISTS cotrunk_ghosts (
    number NUMBER, space TEXT NOT NULL, key TEXT NOT NULL, text TEXT NOT NULL, digest TEXT NOT NULL,
    owner TEXT NOT NULL, vectors BYTES NOT NULL, created REAL NOT NULL, UNIQUE (space, key, digest))
"""
TRUNKS, GHOSTS = "cotrunk_trunks", "cotrunk_ghosts"


class Tables(Protocol):
    """Where the tables are: see `SqliteTables` and `PostgresTables`."""

    types: Mapping[str, str]

    def create(self, statements: Iterable[str], version: int) -> None: ...
    def execute(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Mapping[str, Any]]: ...
    def writing(self) -> AbstractContextManager[None]: ...
    def changes(self) -> Hashable: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class Index:
    """What is stored, with its vectors. Texts are JSON: PostgreSQL takes no NUL, and nothing half a surrogate pair.

    Args:
        tables: where it is kept.

    Raises:
        CotrunkError: another version made the tables, or they cannot be used. All methods raise it then.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        tables.create(_statements(tables.types), VERSION)
        self.changes, self.flush, self.close = tables.changes, tables.flush, tables.close

    def writing(self) -> AbstractContextManager[None]:
        """Keep other processes and threads from writing until a block ends; undo its changes if it raises.

        Files are written and swept inside such a block, so a sweep never meets a file whose row is still to come.
        """
        return self._tables.writing()

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
        values = [*row.values()]
        with self.writing():
            self._tables.execute(
                f"INSERT INTO {TRUNKS} ({', '.join(row)}) VALUES ({_marks(values)}) ON CONFLICT DO NOTHING", values
            )

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
        rows = self._tables.execute(f"SELECT created FROM {TRUNKS} WHERE digest = ?", (digest,))
        return rows[0]["created"] if rows else None

    def digests(self) -> dict[str, int]:
        """Return the digests of all trunks, with their numbers. One that is stored again gets another number."""
        return {row["digest"]: row["number"] for row in self._tables.execute(f"SELECT digest, number FROM {TRUNKS}")}

    def least_worth(self, now: float) -> list[tuple[str, int]]:
        """Return the digest and the bytes of all trunks, those of least worth first, and among equals the oldest."""
        columns = "digest, rows_saved, hits, hit_at, bytes, number"  # not the vectors: an index has all of these
        rows = self._tables.execute(f"SELECT {columns} FROM {TRUNKS}")
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

    def remove(self, digests: Collection[str]) -> None:
        """Remove trunks."""
        with self.writing():
            for part in _chunks(digests):
                self._tables.execute(f"DELETE FROM {TRUNKS} WHERE digest IN ({_marks(part)})", part)

    def count_hit(self, digest: str, now: float) -> None:
        """Count a use of a trunk. Of two at the same time one may count less; to wait for writers would cost more."""
        for row in self._tables.execute(f"SELECT hits, hit_at FROM {TRUNKS} WHERE digest = ?", (digest,)):
            hits = decayed(row["hits"], now - row["hit_at"]) + 1
            self._tables.execute(
                f"UPDATE {TRUNKS} SET hits = ?, hit_at = ?, uses = uses + 1 WHERE digest = ?", (hits, now, digest)
            )

    def size(self) -> int:
        """Return the bytes of all trunks."""
        return int(self._tables.execute(f"SELECT COALESCE(SUM(bytes), 0) AS size FROM {TRUNKS}")[0]["size"])

    def add_ghost(self, space: str, key: str, text: str, owner: str, vector: Vectors, now: float, most: int) -> None:
        """Remember a prompt that had no similar one. Beyond `most` of a space and key, the oldest are forgotten."""
        of_key, place = "space = ? AND key = ?", (space, key, _digest(text))
        with self.writing():
            self._tables.execute(f"DELETE FROM {GHOSTS} WHERE {of_key} AND digest = ?", place)  # it gets a new number
            self._tables.execute(
                f"INSERT INTO {GHOSTS} (space, key, digest, text, owner, vectors, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*place, json.dumps(text), owner, _packed(vector), now),
            )
            self._tables.execute(
                f"DELETE FROM {GHOSTS} WHERE {of_key} AND number NOT IN "
                f"(SELECT number FROM {GHOSTS} WHERE {of_key} ORDER BY number DESC LIMIT ?)",
                (space, key, space, key, most),
            )

    def ghost(self, number: int) -> RememberedPrompt | None:
        """Return a remembered prompt, if it is there."""
        for row in self._tables.execute(f"SELECT text, vectors, created FROM {GHOSTS} WHERE number = ?", (number,)):
            return RememberedPrompt(json.loads(row["text"]), _unpacked(row["vectors"])[0], row["created"])
        return None

    def ghost_owners(self, space: str, key: str, text: str) -> set[str]:
        """Return who wrote a remembered prompt."""
        query = f"SELECT owner FROM {GHOSTS} WHERE space = ? AND key = ? AND digest = ?"
        rows = self._tables.execute(query, (space, key, _digest(text)))
        return {row["owner"] for row in rows}

    def remove_older(self, created: float, now: float) -> list[str]:
        """Remove what was stored before a time, and return the digests of the trunks.

        What was stored while the clock was ahead counts as stored now.
        """
        with self.writing():
            for table in (TRUNKS, GHOSTS):
                self._tables.execute(f"UPDATE {table} SET created = ? WHERE created > ?", (now, now))
            rows = self._tables.execute(f"SELECT digest FROM {TRUNKS} WHERE created < ?", (created,))
            self.remove_ghosts(created=created)
            self.remove([row["digest"] for row in rows])
        return [row["digest"] for row in rows]

    def remove_ghosts(self, owner: str | None = None, created: float = math.inf) -> int:
        """Forget prompts of an owner, or of all, that were remembered before a time; return their number."""
        where, values = ("created < ?", [created]) if owner is None else ("created < ? AND owner = ?", [created, owner])
        with self.writing():
            found = self._tables.execute(f"SELECT number FROM {GHOSTS} WHERE {where}", values)
            self._tables.execute(f"DELETE FROM {GHOSTS} WHERE {where}", values)
        return len(found)

    def count_ghosts(self) -> int:
        """Return the number of remembered prompts."""
        return int(self._tables.execute(f"SELECT COUNT(*) AS count FROM {GHOSTS}")[0]["count"])

    def numbers(self, table: str, space: str, key: str) -> set[int]:
        """Return the numbers of the trunks or ghosts of a space and key."""
        rows = self._tables.execute(f"SELECT number FROM {table} WHERE space = ? AND key = ?", (space, key))
        return {row["number"] for row in rows}

    def vectors(self, table: str, space: str, key: str, numbers: Collection[int]) -> dict[int, Vectors]:
        """Return the members' vectors of some trunks or ghosts of a space and key."""
        found: dict[int, Vectors] = {}
        for part in _chunks(numbers):
            query = f"SELECT number, vectors FROM {table} WHERE space = ? AND key = ? AND number IN ({_marks(part)})"
            rows = self._tables.execute(query, (space, key, *part))
            found |= {row["number"]: _unpacked(row["vectors"]) for row in rows}
        return found

    def _entries(self, where: str, values: Sequence[Any]) -> list[Entry]:
        rows = self._tables.execute(f"SELECT * FROM {TRUNKS} WHERE {where} ORDER BY number", values)
        return [entry_of_row(row) for row in rows]


def _statements(types: Mapping[str, str]) -> Iterator[str]:
    """Yield the statements that make the tables, with the types of columns of a database."""
    for statement in TABLES.split(";"):
        yield re.sub("|".join(rf"\b{name}\b" for name in types), lambda found: types[found[0]], statement)


def _digest(text: str) -> str:
    """Return the digest of a text: PostgreSQL indexes no long ones."""
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()


def _chunks(values: Collection[Any]) -> Iterator[list[Any]]:
    """Yield values, as many at a time as one statement takes."""
    listed = [*values]
    for start in range(0, len(listed), CHUNK):
        yield listed[start : start + CHUNK]


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _packed(vectors: Vectors) -> bytes:
    """Return (m, d) vectors as bytes: m, then the rows."""
    rows = np.atleast_2d(np.asarray(vectors, "<f4"))
    return np.uint32(len(rows)).tobytes() + rows.tobytes()


def _unpacked(content: bytes) -> Vectors:
    count = int(np.frombuffer(content[:4], "<u4")[0])
    return np.frombuffer(content[4:], "<f4").reshape(count, -1)
