"""The vectors of trunks and remembered prompts in memory, as the index has them now."""

from collections.abc import Hashable, Iterator

from ..planning.trunk_store import Vectors
from .index import Index
from .nearest import Nearest

KEPT = 64  # spaces and keys

Place = tuple[str, str, str]  # table, space and key


class VectorTables:
    """The vectors of each space and key that was asked for last.

    Args:
        index: what they are read from.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._tables: dict[Place, tuple[Hashable, Nearest]] = {}

    def ranked(
        self, table: str, space: str, key: str, vectors: Vectors, threshold: float, below: float | None
    ) -> Iterator[tuple[int, float]]:
        """Yield the entries that are similar enough to all prompts, as `Nearest.ranked` does."""
        place = (table, space, key)
        held = self._table(place)
        for number, cosine in held.ranked(vectors, threshold, below):
            if self._is_current(place, held, number):
                yield number, cosine

    def _is_current(self, place: Place, table: Nearest, number: int) -> bool:
        """Return whether an entry of the index still has these vectors.

        A database that was restored from a copy, or whose tables were made again, may give the number to another
        trunk, of another owner.
        """
        found = self._index.vectors(*place, [number])
        if number in found and table.has(number, found[number]):
            return True
        self._tables.pop(place, None)
        return False

    def _table(self, place: Place) -> Nearest:
        seen, table = self._tables.pop(place, (None, Nearest()))
        changes = self._index.changes()
        if seen != changes:
            numbers = self._index.numbers(*place)
            added, removed = numbers - table.numbers, table.numbers - numbers
            if added or removed:
                table.update(self._index.vectors(*place, added), removed)
        self._tables[place] = changes, table
        while len(self._tables) > KEPT:
            del self._tables[next(iter(self._tables))]
        return table
