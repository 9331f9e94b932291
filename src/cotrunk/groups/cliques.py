"""Find the groups of a training set: cliques in the graph of similar captions (SAGE, section 3.1).

The paper enumerates all cliques of two to five captions in which every pair has a cosine in (tau_min, tau_max). A large
graph has far too many, so a random sample is taken, with a limit per caption and a total limit.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import CotrunkError
from ..planning.cosines import unit_rows

BLOCK = 512  # captions compared with all others at once
ENUMERATED = 16  # a caption with more than this multiple of the wanted cliques gets them by random growth

Neighbours = list[NDArray[np.int32]]  # neighbours of each caption, ascending


@dataclass(frozen=True)
class Graph:
    """Which captions are similar.

    Attributes:
        neighbours: the similar captions of each caption, ascending.
        edges: number of pairs in the range of similarity.
        dropped: number of these pairs that were dropped, because both captions have enough closer neighbours.
    """

    neighbours: Neighbours
    edges: int
    dropped: int


@dataclass(frozen=True)
class Cliques:
    """Groups of captions.

    Attributes:
        groups: indices of captions, ascending; all groups differ.
        capped: number of captions with more cliques than the limit per caption.
        cut: number of groups dropped by the total limit.
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
    """Return the graph that has an edge wherever low < cosine < high.

    Args:
        vectors: (n, d) embeddings of the captions.
        low, high: tau_min and tau_max.
        most: maximum edges per caption, the most similar first. An edge is kept if either end keeps it.
        progress: called with the number of captions that are done.

    Raises:
        CotrunkError: low is not below high, or a bound is not a cosine.
    """
    if not -1 <= low < high <= 1.000001:
        raise CotrunkError(f"The similarities ({low}, {high}) are not a range: give two cosines, the lower one first.")
    unit = unit_rows(vectors)
    count, edges = len(unit), 0
    kept: list[NDArray[np.int64]] = []  # directed edges, as first caption * count + second
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
    # a cosine at a bound may count from one side only, because of rounding
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
    """Sample cliques of `smallest` to `largest` captions, at most `per_caption` for each first member.

    If a caption is the first member of few cliques, all of them are found and the sample is uniform. If it is the first
    of many, cliques grow at random: a size is drawn, then one member at a time from the captions that are similar to
    all members so far.

    Args:
        neighbours: from `similarity_graph`.
        in_all: maximum number of cliques, of which a random subset is kept; None for no limit.
        seed: random seed; the cliques of one caption do not depend on those of others.
        progress: called with the number of captions that are done.

    Raises:
        CotrunkError: the sizes are not a range.
    """
    if not 2 <= smallest <= largest:
        raise CotrunkError(
            f"Groups of {smallest} to {largest} captions do not exist: use sizes of 2 or more, the smaller first."
        )
    groups: list[tuple[int, ...]] = []
    capped = 0
    for caption, all_near in enumerate(neighbours):
        near = all_near[all_near > caption]  # a clique belongs to its first member
        if len(near) < smallest - 1:
            continue
        rng = np.random.default_rng((seed, caption))
        some = _first(_cliques((caption,), near, neighbours, smallest, largest), ENUMERATED * per_caption + 1)
        if len(some) <= ENUMERATED * per_caption:
            capped += len(some) > per_caption
            chosen = rng.permutation(len(some))[:per_caption]
            groups += [some[i] for i in sorted(chosen)]
        else:
            capped += 1
            groups += _grown(caption, near, neighbours, smallest, largest, per_caption, rng)
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
    """Yield all cliques that extend these members by candidates, which are similar to all members."""
    for i, candidate in enumerate(candidates):
        grown = (*members, int(candidate))
        if len(grown) >= smallest:
            yield grown
        if len(grown) < largest:
            rest = np.intersect1d(candidates[i + 1 :], neighbours[candidate], assume_unique=True)
            yield from _cliques(grown, rest, neighbours, smallest, largest)


def _first(cliques: Iterator[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    """Return the first `count` cliques."""
    return [clique for clique, _ in zip(cliques, range(count), strict=False)]


def _grown(
    caption: int,
    near: NDArray[np.int32],
    neighbours: Sequence[NDArray[np.int32]],
    smallest: int,
    largest: int,
    count: int,
    rng: np.random.Generator,
) -> list[tuple[int, ...]]:
    """Return up to `count` different cliques that random growth finds."""
    found: dict[tuple[int, ...], None] = {}
    for _ in range(4 * count):  # some tries find the same clique again
        size, members, candidates = int(rng.integers(smallest, largest + 1)), [caption], near
        while len(members) < size and len(candidates):
            member = int(rng.choice(candidates))
            members.append(member)
            candidates = np.intersect1d(candidates, neighbours[member], assume_unique=True)
        if len(members) >= smallest:
            found[tuple(sorted(members))] = None
        if len(found) == count:
            break
    return list(found)
