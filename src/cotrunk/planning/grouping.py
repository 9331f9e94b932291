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

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform

from ..errors import CotrunkError

DENSE_LIMIT = 4096  # prompts; for more, all cosines (8 bytes per pair) and their O(n^2) linkage cost too much
NEIGHBOURS = 32  # candidates per prompt in the sparse path; several times the usual group size
_GRID = 1_000_000  # cosines are compared as integers, after multiplication by this
_APART = 3.0 * _GRID  # for pairs that must not share; real distances are at most 2

Unit = NDArray[np.float32]


def group_prompts(
    vectors: NDArray[np.floating],
    threshold: float,
    *,
    upper: float | None = None,
    max_group: int | None = 5,
    identities: Sequence[Hashable] | None = None,
    keys: Sequence[Hashable] | None = None,
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

    Returns:
        Groups of ascending indices, sorted by their first member; every index is in exactly one.

    Raises:
        CotrunkError: wrong shapes or limits, or more than `DENSE_LIMIT` prompts without faiss.
    """
    if vectors.ndim != 2:
        raise CotrunkError(f"Vectors have shape {vectors.shape}: give one row per prompt.")
    for name, labels in (("identities", identities), ("keys", keys)):
        if labels is not None and len(labels) != len(vectors):
            raise CotrunkError(f"There are {len(vectors)} vectors and {len(labels)} {name}: give one per vector.")
    if not -1 <= threshold <= 1:
        raise CotrunkError(f"The similarity threshold is {threshold}: give a cosine between -1 and 1.")
    if upper is not None and not upper > threshold:
        raise CotrunkError(f"The upper similarity {upper} is not above the threshold {threshold}: raise it.")
    if max_group is not None and max_group < 1:
        raise CotrunkError(f"The largest group is {max_group}: give at least 1, or None for any size.")

    unit = unit_rows(vectors)
    low = _grid_ceil(threshold)
    high = 2 * _GRID if upper is None else _grid_ceil(upper)
    limit = len(unit) if max_group is None else max_group

    groups: list[list[int]] = []
    for order, codes in _canonical_parts(unit, identities, keys):
        usable = unit[order].any(axis=1)
        groups += [[int(i)] for i in order[~usable]]
        order, codes = order[usable], codes[usable]
        check_size(len(order))
        split = _dense if len(order) <= DENSE_LIMIT else _sparse
        groups += [sorted(int(order[i]) for i in group) for group in split(unit[order], codes, low, high, limit)]
    return sorted(groups)


def cosine_similarities(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the cosines of all pairs of rows, (n, d) -> (n, n), rounded as `group_prompts` compares them."""
    return _grid_cosines(unit_rows(vectors)) / _GRID


def similarities_between(vectors: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return cosines between rows, (n, d), (m, d) -> (n, m), rounded as `group_prompts` compares them."""
    return _grid_cosines(unit_rows(vectors), unit_rows(others)) / _GRID


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
    for a, b, height, _ in _complete_linkage(_GRID - _grid_cosines(unit[order])):
        first, second = sorted((node[int(a)], node[int(b)]))
        merges.append((first, second, (_GRID - height) / _GRID))
    return merges


def unit_rows(vectors: NDArray[np.floating]) -> Unit:
    """Return rows of unit length, float32; a row that is zero or holds a value that is not finite becomes zero."""
    unit = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), 4096):  # in blocks: float64 copies of 100,000 rows are large
        block = np.asarray(vectors[start : start + 4096], np.float64)
        block = np.where(np.isfinite(block).all(axis=1, keepdims=True), block, 0.0)
        length = np.linalg.norm(block, axis=1, keepdims=True)
        unit[start : start + 4096] = np.divide(block, length, out=np.zeros_like(block), where=length > 0)
    return unit + np.float32(0)  # turns -0.0 into 0.0: equal rows have equal bytes


def _grid_cosines(unit: Unit, other: Unit | None = None) -> NDArray[np.float64]:
    """Return cosines times 1e6 as whole numbers: (n, d), (m, d) -> (n, m)."""
    right = unit if other is None else other
    return np.rint((unit.astype(np.float64) @ right.astype(np.float64).T).clip(-1, 1) * _GRID)


def _grid_ceil(cosine: float) -> int:
    """Return the smallest k with k / 1e6 >= cosine, compared as floats: in floats, 0.29 * 1e6 is above 290000."""
    k = math.ceil(cosine * _GRID)
    while (k - 1) / _GRID >= cosine:
        k -= 1
    while k / _GRID < cosine:
        k += 1
    return k


def check_size(prompts: int) -> None:
    """Raise `CotrunkError` if this number of prompts cannot be grouped here. Call it before embedding them."""
    if prompts > DENSE_LIMIT and importlib.util.find_spec("faiss") is None:
        raise CotrunkError(f"More than {DENSE_LIMIT} prompts need faiss: pip install 'cotrunk[large]'.")


def _canonical_parts(
    unit: Unit, identities: Sequence[Hashable] | None, keys: Sequence[Hashable] | None
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return, per key, its indices in an order that does not depend on the input order, and a code per identity."""
    rows = [row.tobytes() for row in unit]
    names: Sequence[Hashable] = rows if identities is None else identities
    texts = [repr(name) for name in names] if identities is not None else [""] * len(rows)
    parts: dict[Hashable, list[int]] = {}
    for i in sorted(range(len(rows)), key=lambda i: (texts[i], rows[i], i)):
        parts.setdefault(None if keys is None else keys[i], []).append(i)
    result = []
    for part in parts.values():
        code: dict[Hashable, int] = {}
        codes = [code.setdefault(names[i], len(code)) for i in part]
        result.append((np.array(part, np.intp), np.array(codes, np.intp)))
    return result


def _complete_linkage(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    np.fill_diagonal(distances, 0)
    return linkage(squareform(distances, checks=False), "complete")


def _dense(unit: Unit, codes: NDArray[np.intp], low: int, high: int, limit: int) -> list[list[int]]:
    """Group by complete linkage, cut at the threshold; divide cliques that are too large along their dendrogram."""
    n = len(unit)
    if n < 2:
        return [[i] for i in range(n)]
    cosines = _grid_cosines(unit)
    distances = _GRID - cosines
    distances[(cosines >= high) | (codes[:, None] == codes[None, :])] = _APART
    merges = _complete_linkage(distances)
    labels = fcluster(merges, _GRID - low + 0.5, "distance")
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
    occurrences, then over the second ones, and so on.
    """
    # in canonical order, equal rows with equal identity are adjacent
    is_new = np.ones(len(unit), bool)
    is_new[1:] = (codes[1:] != codes[:-1]) | (unit[1:] != unit[:-1]).any(axis=1)
    first = np.flatnonzero(is_new)
    count = np.diff(np.append(first, len(unit)))
    groups: list[list[int]] = []
    layer = np.arange(len(first))
    partition: list[list[int]] = []
    for occurrence in range(int(count.max())):
        kept = layer[count[layer] > occurrence]
        if occurrence == 0 or len(kept) < len(layer):
            layer = kept
            partition = _greedy_cliques(unit[first[layer]], codes[first[layer]], low, high, limit)
        groups += [[int(first[layer[i]]) + occurrence for i in clique] for clique in partition]
    return groups


def _greedy_cliques(unit: Unit, codes: NDArray[np.intp], low: int, high: int, limit: int) -> list[list[int]]:
    """Merge along candidate edges, most similar first, wherever the union is still a clique of at most `limit`."""
    members = [[i] for i in range(len(unit))]  # of the cluster that i leads; empty once it has been merged into another
    leader = list(range(len(unit)))
    refused: dict[int, set[int]] = {}  # pairs of leaders whose clusters cannot merge, even after they grow
    active = np.arange(len(unit))
    while len(active) > 1:
        pairs, saturated = _candidate_pairs(unit, codes, active, low, high)
        merged = False
        for i, j in pairs.tolist():
            a, b = leader[i], leader[j]
            if a == b or len(members[a]) + len(members[b]) > limit or b in refused.get(a, ()):
                continue
            if len(members[a]) + len(members[b]) > 2:  # for two single prompts their edge is enough
                cosines = _grid_cosines(unit[members[a]], unit[members[b]])
                same = codes[members[a]][:, None] == codes[members[b]][None, :]
                if cosines.min() < low or cosines.max() >= high or same.any():
                    refused.setdefault(a, set()).add(b)
                    refused.setdefault(b, set()).add(a)
                    continue
            a, b = sorted((a, b), key=lambda c: (-len(members[c]), c))
            for member in members[b]:
                leader[member] = a
            members[a] += members[b]
            members[b] = []
            for other in refused.pop(b, ()):
                refused[other].discard(b)
                refused[other].add(a)
                refused.setdefault(a, set()).add(other)
            merged = True
        # A prompt that has seen all its qualifying neighbours is finished. The others search again among
        # themselves, if their cluster has room.
        active = saturated[[len(members[leader[i]]) < limit for i in saturated]] if merged else saturated[:0]
    return [clique for clique in members if clique]


def _candidate_pairs(
    unit: Unit, codes: NDArray[np.intp], active: NDArray[np.intp], low: int, high: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the qualifying pairs (e, 2) among neighbours of the active rows, and the rows that may have more."""
    import faiss

    rows = unit[active]
    # with an upper limit, neighbours that are too similar come first: search further
    k = min(len(active), 1 + NEIGHBOURS * (4 if high <= _GRID else 1))
    similar, neighbour = faiss.knn(rows, rows, k, metric=faiss.METRIC_INNER_PRODUCT)
    saturated = active[similar[:, -1] * _GRID >= low - 1] if k < len(active) else active[:0]

    near = similar * _GRID >= low - 1  # a preliminary selection in float32; the exact one is below
    left, right = active[np.nonzero(near)[0]], active[neighbour[near]]
    left, right = np.minimum(left, right), np.maximum(left, right)
    # each pair once (the search finds it from both ends), in canonical order, without pairs of one prompt
    pair = np.unique((left * len(unit) + right)[codes[left] != codes[right]])
    left, right = pair // len(unit), pair % len(unit)

    cosines = np.empty(len(pair))
    for start in range(0, len(pair), 16_384):
        some = slice(start, start + 16_384)
        product = np.einsum("ed,ed->e", unit[left[some]], unit[right[some]], dtype=np.float64)
        cosines[some] = np.rint(product.clip(-1, 1) * _GRID)
    keep = (cosines >= low) & (cosines < high)
    left, right, cosines = left[keep], right[keep], cosines[keep]
    order = np.argsort(-cosines, kind="stable")
    return np.stack([left[order], right[order]], axis=1), saturated
