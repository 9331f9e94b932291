"""Find the stored trunk, or the earlier prompt, that is similar to all given prompts: the clique rule over time.

Every given prompt must have at least the threshold's cosine to *every* stored member. The first members narrow the
search: by one matrix product, or by faiss beyond `MATRIX_LIMIT` entries. What is left is compared in float64 and
rounded as `planning.grouping` does, so both ways give equal results.
"""

import importlib.util
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..planning.cosines import unit_rows
from ..planning.grouping import similarities_between
from ..planning.trunk_store import Vectors

MATRIX_LIMIT = 20_000  # entries; a matrix product of this size takes about 10 ms
REMOVED = 0.25  # the narrowing is made again when so many entries per remaining one were removed
MARGIN = 1e-4  # far above the rounding of a cosine in float32


class Nearest:
    """Unit vectors of entries, by the number of the entry. An entry has one vector per member."""

    def __init__(self) -> None:
        self._vectors: dict[int, Vectors] = {}
        # the width of vectors; numbers; first members as a matrix or in faiss
        self._narrowing: tuple[int, NDArray[np.int64], Any] | None = None
        self._removed: set[int] = set()  # entries that are still in the narrowing

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def numbers(self) -> set[int]:
        """The numbers of all entries."""
        return set(self._vectors)

    def has(self, number: int, vectors: Vectors) -> bool:
        """Return whether this entry has these vectors."""
        return number in self._vectors and np.array_equal(self._vectors[number], unit_rows(vectors))

    def update(self, added: Mapping[int, Vectors], removed: Iterable[int]) -> None:
        """Add and remove entries."""
        new = {number: unit_rows(vectors) for number, vectors in added.items()}
        is_known = not (self._vectors.keys() | self._removed).isdisjoint(new)
        self._removed |= {number for number in removed if self._vectors.pop(number, None) is not None}
        self._vectors |= new
        if self._narrowing is None or is_known or len(self._removed) > len(self._vectors) * REMOVED:
            self._narrowing, self._removed = None, set()
            return
        width, numbers, firsts = self._narrowing
        more, rows = _firsts(new, width)
        if isinstance(firsts, np.ndarray) and len(firsts) + len(rows) <= MATRIX_LIMIT:
            self._narrowing = width, np.concatenate([numbers, more]), np.concatenate([firsts, rows])
        elif isinstance(firsts, np.ndarray):
            self._narrowing, self._removed = None, set()
        else:
            firsts.add(rows)
            self._narrowing = width, np.concatenate([numbers, more]), firsts

    def best(
        self, vectors: Vectors, threshold: float, below: float | None = None, without: Collection[int] = ()
    ) -> tuple[int, float] | None:
        """Return the entry with the largest smallest cosine to the prompts, and that cosine; None if all are below.

        Among equals it is the entry with the smallest number, which is the oldest.

        Args:
            vectors: (k, d) of the prompts.
            threshold: smallest cosine of any prompt to any member.
            below: every cosine is smaller than this; None for no limit.
            without: entries that do not count.
        """
        ranked = self.ranked(vectors, threshold, below)
        return next(((number, cosine) for number, cosine in ranked if number not in without), None)

    def ranked(self, vectors: Vectors, threshold: float, below: float | None = None) -> Iterator[tuple[int, float]]:
        """Yield all entries that `best` could return, the best one first."""
        unit = unit_rows(np.atleast_2d(vectors))
        if not unit.any(axis=1).all():  # a prompt without a usable vector is similar to nothing
            return
        found = np.array(sorted(self._narrowed(unit[0], threshold)), np.int64)
        if not len(found):
            return
        members = [self._vectors[int(number)] for number in found]
        starts = np.cumsum([0, *map(len, members[:-1])])
        cosines = similarities_between(np.concatenate(members), unit)
        smallest = np.minimum.reduceat(cosines.min(axis=1), starts)
        usable = smallest >= threshold
        if below is not None:
            usable &= np.maximum.reduceat(cosines.max(axis=1), starts) < below
        places = np.flatnonzero(usable)
        for place in places[np.argsort(-smallest[places], kind="stable")]:
            yield int(found[place]), float(smallest[place])

    def _narrowed(self, vector: Vectors, threshold: float) -> Iterable[int]:
        """Return the entries whose first member may be similar enough to one prompt."""
        if self._narrowing is None or self._narrowing[0] != len(vector):
            numbers, firsts = _firsts(self._vectors, len(vector))
            self._narrowing, self._removed = (len(vector), numbers, _indexed(firsts)), set()
        _, numbers, firsts = self._narrowing
        if not len(numbers):
            return []
        if isinstance(firsts, np.ndarray):
            places = np.flatnonzero(firsts @ vector >= threshold - MARGIN)
        else:
            places = firsts.range_search(vector[None], threshold - MARGIN)[2]
        return [int(number) for number in numbers[places] if int(number) not in self._removed]


def _firsts(vectors: Mapping[int, Vectors], width: int) -> tuple[NDArray[np.int64], Vectors]:
    """Return the numbers of the entries with usable vectors of this width, and the vectors of their first members."""
    found = {number: own[0] for number, own in vectors.items() if own.shape[1] == width and own.any(axis=1).all()}
    return np.array([*found], np.int64), np.array([*found.values()], np.float32).reshape(-1, width)


def _indexed(firsts: Vectors) -> Any:
    """Return the rows as they are, or in faiss if there are many and faiss is installed."""
    if len(firsts) <= MATRIX_LIMIT or importlib.util.find_spec("faiss") is None:
        return firsts
    import faiss

    index = faiss.IndexFlatIP(firsts.shape[1])
    index.add(firsts)
    return index
