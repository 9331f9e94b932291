"""The trunks themselves: in memory, in files, and in the index, with limits on bytes and age.

A file is written first, and its row is inserted after it, both in one transaction of the index. So whatever moment a
process is killed at, a row has its file, and a file without a row is swept when the folder is opened next.
"""

import hashlib
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CotrunkError
from ..planning.trunk_recipe import TrunkRecipe
from ..planning.trunk_store import Found, Ghost, Vectors
from ..storage.files import StoredFiles
from .entries import Entry
from .failures import missing_on_failure
from .index import GHOSTS, TRUNKS
from .index_place import own_index, shared_index
from .memory import Memory, Tensors, size_of
from .tensor_files import TensorFiles, packed, sha256_of
from .vector_tables import VectorTables

MOST_GHOSTS = 4096  # earlier prompts without a similar one that are remembered per space and key
GIB = 2**30
DAY, HOUR = 86_400.0, 3600.0
# Seconds without the cache after a failure of a database or place that may not answer for long. Otherwise each prompt
# would wait for it.
REST = 30.0
ROOM = 0.02  # of the limit, which is free after an eviction of small trunks


@dataclass(frozen=True)
class Limits:
    """How much is kept.

    Attributes:
        memory: bytes of tensors in memory.
        disk: bytes of files; without a folder, `memory` takes its place.
        days: trunks and prompts are removed this long after they were stored; None for no limit.
    """

    memory: int = GIB
    disk: int = 10 * GIB
    days: float | None = None


class Store:
    """All trunks of a place, of all owners. Several processes may use one.

    Args:
        place: a folder, which is created if it does not exist, or, with a database, the URL of one; None keeps
            everything in the memory of this process.
        database: URL of the PostgreSQL database with the index, for several machines; None for a file in the folder.
        limits: how much is kept.
        now: returns the time in seconds.

    Raises:
        CotrunkError: the place or the database cannot be used.
    """

    def __init__(
        self,
        place: str | Path | None = None,
        database: str | None = None,
        limits: Limits = Limits(),
        now: Callable[[], float] = time.time,
    ) -> None:
        self.limits, self.now = limits, now
        self.files = None if place is None else TensorFiles(StoredFiles(str(place), "--trunks", (), is_private=True))
        self.index = own_index(self.files) if database is None else shared_index(self.files, database)
        self.memory = Memory(limits.memory)
        self._tables = VectorTables(self.index)
        self.has_warned = False  # of failures
        self.rest, self.rests_until = (REST if database is not None else 0.0), -math.inf
        self._aged_at = 0.0
        try:
            self.sweep()
        except BaseException:
            self.index.close()
            raise

    def digest(self, space: str, key: str, recipe: TrunkRecipe) -> str:
        """Return the digest that names a trunk."""
        return hashlib.sha256(f"{space}\0{recipe.digest(key)}".encode()).hexdigest()

    @missing_on_failure(None)
    def nearest(
        self,
        space: str,
        key: str,
        vectors: Vectors,
        threshold: float,
        below: float | None = None,
        without: Collection[TrunkRecipe] = (),
    ) -> Found | None:
        """Return the trunk that is most similar to all prompts, as `access.Trunks.find` does."""
        self._age()
        for number, cosine in self._tables.ranked(TRUNKS, space, key, vectors, threshold, below):
            entry = self.index.entry_of(number)
            # the index may have changed meanwhile, or it is too old
            if entry is not None and entry.created >= self._oldest() and entry.recipe not in without:
                return Found(entry.recipe, cosine)
        return None

    @missing_on_failure(None)
    def nearest_ghost(
        self, space: str, key: str, vectors: Vectors, threshold: float, below: float | None = None
    ) -> Ghost | None:
        """Return the earlier lone prompt that is most similar to all prompts; None if none is near enough."""
        self._age()
        for number, cosine in self._tables.ranked(GHOSTS, space, key, vectors, threshold, below):
            ghost = self.index.ghost(number)
            if ghost is not None and ghost.created >= self._oldest():
                return Ghost(ghost.text, ghost.vector, cosine)
        return None

    @missing_on_failure(None)
    def remember(self, space: str, key: str, text: str, owner: str, vector: Vectors) -> None:
        """Remember a prompt that had no similar one."""
        self._age()
        self.index.add_ghost(space, key, text, owner, vector, self.now(), MOST_GHOSTS)

    @missing_on_failure(None)
    def writers(self, space: str, key: str, text: str) -> set[str] | None:
        """Return who wrote a remembered prompt; None if the index fails."""
        return self.index.ghost_owners(space, key, text)

    @missing_on_failure(False)
    def has(self, digest: str) -> bool:
        """Return whether a trunk is in the index, and not too old."""
        created = self.index.created(digest)
        return created is not None and created >= self._oldest()

    @missing_on_failure(None)
    def load(self, digest: str) -> Tensors | None:
        """Return the tensors of a trunk, and count the use; None if it is not stored, too old, or its file is damaged.

        A trunk whose file is missing or damaged is removed.
        """
        entry = self.index.entry(digest)
        if entry is None or entry.created < self._oldest():
            self.memory.drop(digest)
            return None
        tensors = self.memory.get(digest)
        if tensors is None:
            tensors = self.files.read(digest, entry.sha256) if self.files is not None else None
            if tensors is None:
                self.remove([digest])
                return None
            self.memory.put(digest, tensors)
        self._count_hit(digest)
        return tensors

    @missing_on_failure(None)
    def _count_hit(self, digest: str) -> None:
        """Count a use. The trunk serves even if this fails, e.g. because another process is writing for long."""
        self.index.count_hit(digest, self.now())

    @missing_on_failure(False)
    def store(
        self,
        space: str,
        key: str,
        recipe: TrunkRecipe,
        owners: Sequence[str],
        tensors: Tensors,
        vectors: Vectors,
        rows_saved: float,
    ) -> bool:
        """Keep a trunk, and evict others if there are too many bytes. Return whether it was written.

        A failure to write is a warning: a run does not depend on the cache.

        Args:
            owners: who wrote each member.
            tensors: the outputs, by name.
            vectors: (m, d) of the members.
            rows_saved: denoiser rows that one use saves.
        """
        digest, now = self.digest(space, key, recipe), self.now()
        content = packed(tensors) if self.files is not None else b""
        row: dict[str, Any] = {
            "digest": digest,
            "space": space,
            "key": key,
            "bytes": len(content) or size_of(tensors),
            "sha256": sha256_of(content),
            "rows_saved": rows_saved,
            "hits": 1.0,
            "hit_at": now,
            "uses": 0,
            "created": now,
        }
        if row["bytes"] > self._limit or self.has(digest):
            return False
        with self.index.writing():
            if self.has(digest):  # another process was faster, and its file may differ in the last places
                return False
            self.index.remove([digest])  # one that is too old
            if self.files is not None:
                self.files.write(digest, content)
            self.index.add(row, recipe, owners, vectors)
            evicted = self._evicted(now)
            self.index.remove(evicted)
        self.forget(evicted)  # first: without a folder, memory would drop others to make room
        if digest not in evicted:
            self.memory.put(digest, {name: tensor.detach().cpu() for name, tensor in tensors.items()})
        self._age()
        return digest not in evicted

    def remove(self, digests: Collection[str]) -> None:
        """Remove trunks from everywhere."""
        self.index.remove(digests)
        self.forget(digests)

    def is_whole(self, entry: Entry) -> bool:
        """Return whether the file of a trunk can be read and has the content that was written."""
        return self.files is None or self.files.read(entry.digest, entry.sha256) is not None

    def sweep(self) -> tuple[int, int]:
        """Remove what killed processes left: files without a row, and rows without a file. Return how many of each."""
        self._remove_old()
        if self.files is None:
            return 0, 0
        before = self.index.digests()
        on_disk = set(self.files.digests())  # at a URL, this may take long: others write meanwhile
        with self.index.writing():  # so that no process is between a file and its row
            self.files.remove_parts()
            now = self.index.digests()
            strays = on_disk - now.keys()
            lost = {digest for digest, number in now.items() if before.get(digest) == number} - on_disk
            self._remove_files(strays)
            self.index.remove(lost)
        return len(strays), len(lost)

    @property
    def _limit(self) -> int:
        return self.limits.memory if self.files is None else self.limits.disk

    def _oldest(self) -> float:
        """Return the time before which what was stored is too old."""
        return -1.0 if self.limits.days is None else self.now() - self.limits.days * DAY

    def _age(self) -> None:
        """Remove what is too old, at most once an hour."""
        if not 0 <= self.now() - self._aged_at < HOUR:
            self._remove_old()

    def _remove_old(self) -> None:
        self._aged_at = self.now()
        if self.limits.days is not None:
            self.forget(self.index.remove_older(self._oldest(), self.now()))

    def _evicted(self, now: float) -> list[str]:
        """Return the trunks of least worth, as many as are needed to keep the limit.

        Of small trunks it returns more, so that not every new one has to look at all others.
        """
        excess, room, evicted = self.index.size() - self._limit, int(self._limit * ROOM), list[str]()
        if excess > 0:
            for digest, size in self.index.least_worth(now):
                if excess <= 0 and size > room + excess:
                    break
                evicted.append(digest)
                excess -= size
        return evicted

    def forget(self, digests: Collection[str]) -> None:
        """Remove the tensors of trunks that are no longer in the index."""
        for digest in digests:
            self.memory.drop(digest)
        self._remove_files(digests)

    def _remove_files(self, digests: Collection[str]) -> None:
        """Remove the files of trunks, as far as that is possible: what stays is swept later."""
        if self.files is None:
            return
        for digest in digests:
            try:
                self.files.remove(digest)
            except CotrunkError:
                if self.files.stored.folder is None:  # a server that does not answer would take long for each
                    return
