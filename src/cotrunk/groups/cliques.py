"""Groups of a training set: cliques of the graph of similar captions (SAGE, section 3.1).

The paper enumerates all cliques of two to five captions whose every pair has a cosine in (tau_min, tau_max). On a
large graph there are far too many: here at most so many a caption, drawn at random, and at most so many in all.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import CotrunkError
from ..planning.grouping import unit_rows

BLOCK = 512  # captions compared with all others at once
LOOKED_AT = 16  # cliques that are enumerated before chance decides, as a multiple of those wanted of a caption

Neighbours = list[NDArray[np.int32]]  # for each caption, those that it has an edge to, ascending


@dataclass(frozen=True)
class Graph:
    """Which captions are similar.

    Attributes:
        neighbours: for each caption, ascending.
        edges: pairs in the range of similarity.
        dropped: of these, pairs left out because both captions have too many closer ones.
    """

    neighbours: Neighbours
    edges: int
    dropped: int


@dataclass(frozen=True)
class Cliques:
    """Groups of captions.

    Attributes:
        groups: ascending indices of captions; no group twice.
        capped: captions with more cliques than were wanted of one.
        cut: groups that were drawn but left out for the limit in all.
    """

    groups: list[tuple[int, ...]]
    capped: int
    cut: int


def similarity_graph(
    vectors: NDArray[np.floating],
    low: float,
    high: float,
    *,
    most: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> Graph:
    """The graph with an edge wherever low < cosine < high.

    Args:
        vectors: (n, d).
        low, high: tau_min and tau_max.
        most: edges that a caption keeps, the most similar first; an edge stays if one of its ends keeps it.
        progress: told after every block how many captions are done.

    Raises:
        CotrunkError: low not below high, or bounds that are no cosines.
    """
    if not -1 <= low < high <= 1.000001:
        raise CotrunkError(f"The similarities ({low}, {high}) are no range: give two cosines, the lower one first.")
    unit = unit_rows(vectors)
    count, edges = len(unit), 0
    kept: list[NDArray[np.int64]] = []  # directed edges, one end * count + other
    for start in range(0, count, BLOCK):
        cosines = unit[start : start + BLOCK] @ unit.T
        inside = (cosines > low) & (cosines < high)
        inside[np.arange(len(cosines)), start + np.arange(len(cosines))] = False
        rows, columns = np.nonzero(inside)
        edges += len(rows)
        ends = np.searchsorted(rows, np.arange(len(cosines) + 1))
        for row, (first, last) in enumerate(itertools.pairwise(ends)):
            near = columns[first:last]
            if len(near) > most:
                near = near[np.argpartition(-cosines[row, near], most - 1)[:most]]
            kept.append((start + row) * count + near)
        progress(min(start + BLOCK, count))
    directed = np.concatenate(kept) if kept else np.zeros(0, np.int64)
    both = np.unique(np.concatenate([directed, directed % count * count + directed // count])) if count else directed
    ends = np.searchsorted(both, np.arange(1, count) * count)
    neighbours = [part.astype(np.int32) for part in np.split(both % count, ends)] if count else []
    # rounding at the bounds may see a pair from one side only
    return Graph(neighbours, edges // 2, max(0, (edges - len(both)) // 2))


def sample_cliques(
    neighbours: Sequence[NDArray[np.int32]],
    *,
    smallest: int = 2,
    largest: int = 5,
    per_caption: int = 4,
    in_all: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Cliques:
    """Cliques of `smallest` to `largest` captions, at most `per_caption` of those whose first member a caption is.

    A caption with few cliques gives all of them, or a fair draw; one with many gives those that random growth finds:
    a member after the other is drawn from what is similar to all before it, up to a size that was drawn first.

    Args:
        neighbours: of `similarity_graph`.
        in_all: at most so many; which, is drawn at random. None: no limit.
        seed: of every draw; the same for one caption whatever the others are.
        progress: told now and then how many captions are done.

    Raises:
        CotrunkError: sizes that are none.
    """
    if not 2 <= smallest <= largest:
        raise CotrunkError(f"Groups of {smallest} to {largest} captions are none: use 2 or more, the smaller first.")
    groups: list[tuple[int, ...]] = []
    capped = 0
    for caption, all_near in enumerate(neighbours):
        near = all_near[all_near > caption]  # a clique belongs to its first member
        if len(near) < smallest - 1:
            continue
        draw = np.random.default_rng((seed, caption))
        some = _first(_cliques((caption,), near, neighbours, smallest, largest), LOOKED_AT * per_caption + 1)
        if len(some) <= LOOKED_AT * per_caption:
            capped += len(some) > per_caption
            chosen = draw.permutation(len(some))[:per_caption]
            groups += [some[i] for i in sorted(chosen)]
        else:
            capped += 1
            groups += _grown(caption, near, neighbours, smallest, largest, per_caption, draw)
        if caption % 1000 == 0:
            progress(caption)
    progress(len(neighbours))
    if in_all is not None and len(groups) > in_all:
        chosen = np.random.default_rng(seed).permutation(len(groups))[:in_all]
        return Cliques([groups[i] for i in sorted(chosen)], capped, len(groups) - in_all)
    return Cliques(groups, capped, 0)


def _cliques(
    members: tuple[int, ...],
    candidates: NDArray[np.int32],
    neighbours: Sequence[NDArray[np.int32]],
    smallest: int,
    largest: int,
) -> Iterator[tuple[int, ...]]:
    """All cliques that extend these members by candidates, which are similar to all of them."""
    for i, candidate in enumerate(candidates):
        grown = (*members, int(candidate))
        if len(grown) >= smallest:
            yield grown
        if len(grown) < largest:
            rest = np.intersect1d(candidates[i + 1 :], neighbours[candidate], assume_unique=True)
            yield from _cliques(grown, rest, neighbours, smallest, largest)


def _first(cliques: Iterator[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    return [clique for clique, _ in zip(cliques, range(count), strict=False)]


def _grown(
    caption: int,
    near: NDArray[np.int32],
    neighbours: Sequence[NDArray[np.int32]],
    smallest: int,
    largest: int,
    count: int,
    draw: np.random.Generator,
) -> list[tuple[int, ...]]:
    """Up to `count` different cliques found by random growth."""
    found: dict[tuple[int, ...], None] = {}
    for _ in range(4 * count):  # tries, of which some find the same again
        size, members, candidates = int(draw.integers(smallest, largest + 1)), [caption], near
        while len(members) < size and len(candidates):
            member = int(draw.choice(candidates))
            members.append(member)
            candidates = np.intersect1d(candidates, neighbours[member], assume_unique=True)
        if len(members) >= smallest:
            found[tuple(sorted(members))] = None
        if len(found) == count:
            break
    return list(found)
