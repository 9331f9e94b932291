"""Group many vectors greedily: merge along edges to nearest neighbours, as long as each group is a clique."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .cosines import GRID, Unit, grid_cosines
from .neighbours import EXACT_LIMIT, ROUNDING, neighbours

NEIGHBOURS = 32  # candidates per prompt; several times the usual group size
WORTH = 0.1  # among many rows, the part that a round finishes at least if there is to be another one
_PART = 16_384  # pairs whose vectors are in memory at once


def greedy_cliques(unit: Unit, codes: NDArray[np.intp], low: int, high: int, limit: int) -> list[list[int]]:
    """Merge along candidate edges, most similar first, wherever the union is still a clique of at most `limit`.

    Args:
        unit: (n, d) unit vectors, in an order that does not depend on the order of the prompts.
        codes: (n,) a code per identity; equal codes do not share a group.
        low, high: a pair may share a group from the first cosine to below the second, in millionths.
        limit: largest group.

    Returns:
        The groups, as rows of `unit`.
    """
    cliques = _Cliques(unit, codes, low, high, limit)
    active = np.arange(len(unit))
    while len(active) > 1:
        pairs, saturated = _candidate_pairs(unit, codes, active, low, high)
        merged = False
        for start in range(0, len(pairs), _PART):  # Python's own integers take more memory than the array
            left, right = np.divmod(pairs[start : start + _PART], len(unit))
            may = cliques.may_merge(left, right)
            for i, j in zip(left[may].tolist(), right[may].tolist(), strict=True):
                merged |= cliques.merge(i, j)
        # A prompt that has seen all its qualifying neighbours is finished. The others search again among
        # themselves, if their clique has room. Among a million, that may go on for long and change nearly nothing.
        left_over = saturated[cliques.has_room(saturated)]
        is_worth = merged and (len(active) <= EXACT_LIMIT or len(left_over) <= (1 - WORTH) * len(active))
        active = left_over if is_worth else left_over[:0]
    return [clique for clique in cliques.members if clique]


class _Cliques:
    """Groups that grow by merging. The arguments are those of `greedy_cliques`.

    Attributes:
        members: per row, those of the group that it leads; empty once it has been merged into another.
    """

    def __init__(self, unit: Unit, codes: NDArray[np.intp], low: int, high: int, limit: int) -> None:
        self._unit, self._codes, self._low, self._high, self._limit = unit, codes, low, high, limit
        self.members = [[i] for i in range(len(unit))]
        self._leader = np.arange(len(unit))
        self._size = np.ones(len(unit), np.intp)  # of the groups that rows lead
        self._refused: dict[int, set[int]] = {}  # pairs of leaders whose groups cannot merge, even after they grow

    def has_room(self, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return whether the group of each row may still grow."""
        return self._size[self._leader[rows]] < self._limit

    def may_merge(self, left: NDArray[np.intp], right: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return which pairs are in two groups that are small enough. The others stay so, because groups only grow."""
        a, b = self._leader[left], self._leader[right]
        return (a != b) & (self._size[a] + self._size[b] <= self._limit)

    def merge(self, i: int, j: int) -> bool:
        """Merge the groups of a qualifying pair, if the union is a clique that is not too large."""
        members, refused = self.members, self._refused
        a, b = int(self._leader[i]), int(self._leader[j])
        if a == b or len(members[a]) + len(members[b]) > self._limit or b in refused.get(a, ()):
            return False
        if len(members[a]) + len(members[b]) > 2 and not self._is_clique(members[a], members[b]):
            refused.setdefault(a, set()).add(b)
            refused.setdefault(b, set()).add(a)
            return False
        a, b = sorted((a, b), key=lambda c: (-len(members[c]), c))
        self._leader[members[b]] = a
        self._size[a] += self._size[b]
        members[a] += members[b]
        members[b] = []
        for other in refused.pop(b, ()):
            refused[other].discard(b)
            refused[other].add(a)
            refused.setdefault(a, set()).add(other)
        if len(members[a]) == self._limit:  # the limit refuses all from now on
            for other in refused.pop(a, ()):
                refused[other].discard(a)
        return True

    def _is_clique(self, one: list[int], other: list[int]) -> bool:
        """Return whether each pair across two groups may share. For two single rows their edge is enough."""
        if (self._codes[one][:, None] == self._codes[other][None, :]).any():
            return False
        cosines = grid_cosines(self._unit[one], self._unit[other])
        return bool(cosines.min() >= self._low and cosines.max() < self._high)


def _candidate_pairs(
    unit: Unit, codes: NDArray[np.intp], active: NDArray[np.intp], low: int, high: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the qualifying pairs among neighbours of the active rows, and the rows that may have more.

    Returns:
        The pairs (e,), most similar first: row i < j as i * n + j.
        The rows, in the order of `active`.
    """
    # with an upper limit, neighbours that are too similar come first: search further
    k = min(len(active), 1 + NEIGHBOURS * (4 if high <= GRID else 1))
    rows = unit if len(active) == len(unit) else unit[active]
    least = low / GRID - ROUNDING  # a preliminary selection; the exact one is below
    found, saturated = list[NDArray[np.intp]](), list[NDArray[np.intp]]()
    for start, similar, neighbour in neighbours(rows, k):
        own = active[start : start + len(similar)]
        if k < len(active):
            saturated.append(own[similar[:, -1] >= least])
        near = similar >= least
        left, right = own[np.nonzero(near)[0]], active[neighbour[near]]
        left, right = np.minimum(left, right), np.maximum(left, right)
        found.append((left * len(unit) + right)[codes[left] != codes[right]])
    # each pair once (the search finds most from both ends), in canonical order, without pairs of one prompt
    pair = np.concatenate(found)
    found.clear()
    pair.sort()
    is_new = np.ones(len(pair), bool)
    is_new[1:] = pair[1:] != pair[:-1]
    pair = pair[is_new]
    cosines = np.concatenate([np.zeros(0, np.int32), *_cosines(unit, pair)])
    keep = (cosines >= low) & (cosines < high)
    pair, cosines = pair[keep], cosines[keep]
    pair = pair[np.argsort(-cosines, kind="stable")]
    return pair, np.concatenate([active[:0], *saturated])


def _cosines(unit: Unit, pair: NDArray[np.intp]) -> Iterator[NDArray[np.int32]]:
    """Yield the cosines of numbered pairs in millionths, part by part."""
    for start in range(0, len(pair), _PART):
        left, right = np.divmod(pair[start : start + _PART], len(unit))
        product = np.einsum("ed,ed->e", unit[left], unit[right], dtype=np.float64)
        yield np.rint(product.clip(-1, 1) * GRID).astype(np.int32)
