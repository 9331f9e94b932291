"""Group similar prompts by their unit vectors: a partition into cliques of the similarity graph.

SAGE (arXiv 2509.15865, section 2.2) shares denoising steps inside groups in which *every* pair of prompts is similar.
Up to `DENSE_LIMIT` prompts, complete linkage gives the partition; beyond it, a greedy pass over nearest neighbours.
Exact minimum clique covers would save about one percentage point more, which is not worth a solver.

Cosines are computed in float64 between float32 unit rows and rounded to six decimals (`cosine_similarities`). All
comparisons use these rounded values, so that floating-point rounding never decides which prompts share.
"""

import importlib.util
import math
from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform

from ..errors import CotrunkError
from .cosines import GRID, Unit, grid_cosines, unit_rows
from .greedy_cliques import greedy_cliques

DENSE_LIMIT = 4096  # prompts; for more, all cosines (8 bytes per pair) and their O(n^2) linkage cost too much
_APART = 3.0 * GRID  # for pairs that must not share; real distances are at most 2


def group_prompts(
    vectors: NDArray[np.floating],
    threshold: float,
    *,
    upper: float | None = None,
    max_group: int | None = 5,
    identities: Sequence[Hashable] | None = None,
    keys: Sequence[Hashable] | None = None,
    ranks: Sequence[int] | None = None,
) -> list[list[int]]:
    """Partition prompts into groups in which every pair has threshold <= cosine (< upper).

    The order of the prompts does not matter: permuted input gives the same groups, permuted. A prompt whose vector is
    zero or not finite is a group of its own.

    Args:
        vectors: (n, d), one row per prompt; rows need not have unit length.
        threshold: smallest cosine inside a group, in [-1, 1]. It belongs to the encoder: see
            `threshold.auto_threshold`.
        upper: pairs with this cosine or more do not share either (the paper's range is tau_min to tau_max); None for no
            limit.
        max_group: largest group; None for any size. Large groups save more, but blur more; the paper uses 2 to 5.
        identities: (n,) prompts with equal identity never share a group, so that duplicates give different images. None
            to use the vectors themselves. Ties are resolved in the order of the `repr` of the identities.
        keys: (n,) prompts with different keys (negative prompt, control image, size) never share a group.
        ranks: (n,) which of several prompts with equal identity and equal vector comes first; None for the given order.

    Returns:
        Groups of ascending indices, sorted by their first member; every index is in exactly one.

    Raises:
        CotrunkError: wrong shapes or limits, or more than `DENSE_LIMIT` prompts without faiss.
    """
    if vectors.ndim != 2:
        raise CotrunkError(f"Vectors have shape {vectors.shape}: give one row per prompt.")
    for name, labels in (("identities", identities), ("keys", keys), ("ranks", ranks)):
        if labels is not None and len(labels) != len(vectors):
            raise CotrunkError(f"There are {len(vectors)} vectors and {len(labels)} {name}: give one per vector.")
    if not -1 <= threshold <= 1:
        raise CotrunkError(f"The similarity threshold is {threshold}: give a cosine between -1 and 1.")
    if upper is not None and not upper > threshold:
        raise CotrunkError(f"The upper similarity {upper} is not above the threshold {threshold}: raise it.")
    if max_group is not None and max_group < 1:
        raise CotrunkError(f"The largest group is {max_group}: give at least 1, or None for any size.")

    low = _grid_ceil(threshold)
    high = 2 * GRID if upper is None else _grid_ceil(upper)
    limit = len(vectors) if max_group is None else max_group

    groups: list[list[int]] = []
    for order, codes in _canonical_parts(vectors, identities, keys, ranks):
        unit = unit_rows(vectors, order)
        usable = unit.any(axis=1)
        if not usable.all():  # otherwise it would be a second copy of what may be a gigabyte
            groups += [[int(i)] for i in order[~usable]]
            order, codes, unit = order[usable], codes[usable], unit[usable]
        check_size(len(order))
        split = _dense if len(order) <= DENSE_LIMIT else _sparse
        groups += [sorted(int(order[i]) for i in group) for group in split(unit, codes, low, high, limit)]
    return sorted(groups)


def cosine_similarities(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the cosines of all pairs of rows, (n, d) -> (n, n), rounded as `group_prompts` compares them."""
    return grid_cosines(unit_rows(vectors)) / GRID


def similarities_between(vectors: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return cosines between rows, (n, d), (m, d) -> (n, m), rounded as `group_prompts` compares them."""
    return grid_cosines(unit_rows(vectors), unit_rows(others)) / GRID


def smallest_similarity(vectors: NDArray[np.floating]) -> float:
    """Return the smallest cosine between two rows of one group's vectors (n, d); 1.0 for a single row."""
    if len(vectors) < 2:
        return 1.0
    return float(cosine_similarities(vectors)[np.triu_indices(len(vectors), 1)].min())


def dendrogram(vectors: NDArray[np.floating]) -> list[tuple[int, int, float]]:
    """Return the complete-linkage merges of one group, for sharing on several levels.

    Args:
        vectors: (n, d) of the group's members.

    Returns:
        n - 1 merges (a, b, similarity) with a < b, most similar first. Leaves are numbered 0..n-1 as given
        and the i-th merge makes node n+i (scipy's numbering); similarity is the smallest cosine within the
        new node, so every level consists of cliques. Except for exact ties, the tree does not depend on the order of
        the rows.
    """
    n = len(vectors)
    if n < 2:
        return []
    unit = unit_rows(vectors)
    order = np.array(sorted(range(n), key=lambda i: (unit[i].tobytes(), i)))
    node = [int(i) for i in order] + list(range(n, 2 * n - 1))  # canonical numbering -> the caller's
    merges = []
    for a, b, height, _ in _complete_linkage(GRID - grid_cosines(unit[order])):
        first, second = sorted((node[int(a)], node[int(b)]))
        merges.append((first, second, (GRID - height) / GRID))
    return merges


def _grid_ceil(cosine: float) -> int:
    """Return the smallest k with k / 1e6 >= cosine, compared as floats: in floats, 0.29 * 1e6 is above 290000."""
    k = math.ceil(cosine * GRID)
    while (k - 1) / GRID >= cosine:
        k -= 1
    while k / GRID < cosine:
        k += 1
    return k


def check_size(prompts: int) -> None:
    """Raise `CotrunkError` if this number of prompts cannot be grouped here. Call it before embedding them."""
    if prompts > DENSE_LIMIT and importlib.util.find_spec("faiss") is None:
        raise CotrunkError(f"More than {DENSE_LIMIT} prompts need faiss: pip install 'cotrunk[large]'.")


def _canonical_parts(
    vectors: NDArray[np.floating],
    identities: Sequence[Hashable] | None,
    keys: Sequence[Hashable] | None,
    ranks: Sequence[int] | None,
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return, per key, its indices in an order that does not depend on the input order, and a code per identity."""
    rows = _Rows(vectors)
    names: Sequence[Hashable] = rows if identities is None else identities
    texts = [""] * len(rows) if identities is None else [repr(name) for name in names]
    order = sorted(range(len(rows)), key=texts.__getitem__)
    parts: dict[Hashable, list[int]] = {}
    for _, equal in groupby(order, texts.__getitem__):
        some = list(equal)
        if len(some) > 1:
            some.sort(key=lambda i: (rows[i], i if ranks is None else ranks[i]))
        for i in some:
            parts.setdefault(None if keys is None else keys[i], []).append(i)
    result = []
    for part in parts.values():
        code: dict[Hashable, int] = {}
        codes = [code.setdefault(names[i], len(code)) for i in part]
        result.append((np.array(part, np.intp), np.array(codes, np.intp)))
    return result


class _Rows(Sequence[bytes]):
    """The bytes of unit rows, each made when it is read: those of a million rows would fill gigabytes."""

    def __init__(self, vectors: NDArray[np.floating]) -> None:
        self._vectors = vectors

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, row: Any) -> Any:
        return unit_rows(self._vectors[row : row + 1]).tobytes()


def _complete_linkage(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    np.fill_diagonal(distances, 0)
    return linkage(squareform(distances, checks=False), "complete")


def _dense(unit: Unit, codes: NDArray[np.intp], low: int, high: int, limit: int) -> list[list[int]]:
    """Group by complete linkage, cut at the threshold; divide cliques that are too large along their dendrogram."""
    n = len(unit)
    if n < 2:
        return [[i] for i in range(n)]
    cosines = grid_cosines(unit)
    distances = GRID - cosines
    distances[(cosines >= high) | (codes[:, None] == codes[None, :])] = _APART
    merges = _complete_linkage(distances)
    labels = fcluster(merges, GRID - low + 0.5, "distance")
    clusters: dict[int, list[int]] = {}
    for leaf in leaves_list(merges):
        clusters.setdefault(int(labels[leaf]), []).append(int(leaf))
    groups = []
    for cluster in clusters.values():
        pieces = math.ceil(len(cluster) / limit)
        groups += [piece.tolist() for piece in np.array_split(cluster, pieces)]
    return groups


def _sparse(unit: Unit, codes: NDArray[np.intp], low: int, high: int, limit: int) -> list[list[int]]:
    """Group greedily into cliques over nearest neighbours, with memory nearly linear in the prompts.

    Exact duplicates would fill each other's neighbour lists, so the search runs over distinct prompts: over their first
    occurrences, then over the second ones, and so on. The rows are overwritten: a copy would take gigabytes.
    """
    # in canonical order, equal rows with equal identity are adjacent
    is_new = np.ones(len(unit), bool)
    alike = 1 + np.flatnonzero(codes[1:] == codes[:-1])
    is_new[alike] = (unit[alike] != unit[alike - 1]).any(axis=1)
    first = np.flatnonzero(is_new)
    count = np.diff(np.append(first, len(unit)))
    distinct, codes = _moved_up(unit, first), codes[first]
    groups: list[list[int]] = []
    layer = np.arange(len(first))
    partition: list[list[int]] = []
    for occurrence in range(int(count.max())):
        kept = layer[count[layer] > occurrence]
        if occurrence == 0 or len(kept) < len(layer):
            layer = kept
            own = distinct if len(layer) == len(distinct) else distinct[layer]
            partition = greedy_cliques(own, codes[layer], low, high, limit)
        groups += [[int(first[layer[i]]) + occurrence for i in clique] for clique in partition]
    return groups


def _moved_up(rows: Unit, wanted: NDArray[np.intp]) -> Unit:
    """Return the wanted rows, whose numbers ascend, in the memory of the first ones."""
    for start in range(0, len(wanted), 4096):
        some = wanted[start : start + 4096]
        rows[start : start + len(some)] = rows[some]
    return rows[: len(wanted)]
