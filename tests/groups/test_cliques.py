"""Groups of training captions: cliques of the similarity graph, all of them or a bounded sample."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotrunk import CotrunkError
from cotrunk.groups.cliques import sample_cliques, similarity_graph


def vectors(count: int, seed: int = 0, spread: float = 0.6) -> np.ndarray:
    """Unit vectors around a few centres."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((max(1, count // 6), 8))
    found = centres[draw.integers(len(centres), size=count)] + spread * draw.standard_normal((count, 8))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def every_clique(rows: np.ndarray, low: float, high: float, largest: int) -> set[tuple[int, ...]]:
    cosines = rows.astype(np.float32) @ rows.astype(np.float32).T
    edge = (cosines > low) & (cosines < high)
    sizes = range(2, largest + 1)
    subsets = itertools.chain.from_iterable(itertools.combinations(range(len(rows)), size) for size in sizes)
    return {subset for subset in subsets if all(edge[i, j] for i, j in itertools.combinations(subset, 2))}


@settings(max_examples=30)
@given(count=st.integers(0, 14), seed=st.integers(0, 99), low=st.floats(-0.5, 0.8), width=st.floats(0.1, 0.6))
def test_without_limits_all_cliques_are_found(count: int, seed: int, low: float, width: float) -> None:
    rows, high = vectors(count, seed), min(1.0, low + width)
    graph = similarity_graph(rows, low, high)
    found = sample_cliques(graph.neighbours, largest=4, per_caption=10_000)
    assert set(found.groups) == every_clique(rows, low, high, 4)
    assert len(set(found.groups)) == len(found.groups)
    assert (found.capped, found.cut, graph.dropped) == (0, 0, 0)
    assert graph.edges == sum(len(group) == 2 for group in found.groups)


@settings(max_examples=20)
@given(seed=st.integers(0, 99), per_caption=st.integers(1, 5), most=st.integers(1, 20))
def test_with_limits_at_most_the_wanted_cliques_are_found(seed: int, per_caption: int, most: int) -> None:
    rows = vectors(80, seed)
    graph = similarity_graph(rows, 0.3, 0.95, most=most)
    found = sample_cliques(graph.neighbours, per_caption=per_caption, seed=seed)
    cosines = rows.astype(np.float32) @ rows.astype(np.float32).T
    for group in found.groups:
        assert 2 <= len(group) <= 5
        assert list(group) == sorted(set(group))
        assert all(0.3 < cosines[i, j] < 0.95 for i, j in itertools.combinations(group, 2))
    first = [group[0] for group in found.groups]
    assert max((first.count(caption) for caption in set(first)), default=0) <= per_caption
    assert len(set(found.groups)) == len(found.groups)
    assert found == sample_cliques(graph.neighbours, per_caption=per_caption, seed=seed)


def test_dropped_edges_and_groups_are_counted() -> None:
    rows = vectors(60, spread=0.2)
    everything = similarity_graph(rows, 0.2, 1.0)
    few = similarity_graph(rows, 0.2, 1.0, most=2)
    assert few.edges == everything.edges
    assert few.dropped == everything.edges - sum(map(len, few.neighbours)) // 2 > 0
    found = sample_cliques(everything.neighbours, per_caption=3, in_all=20)
    assert len(found.groups) == 20
    assert found.cut > 0
    assert found.capped > 0


def test_groups_of_all_sizes_are_sampled_from_many() -> None:
    clique = [np.delete(np.arange(40, dtype=np.int32), i) for i in range(40)]  # all captions are similar to each other
    sizes = {len(group) for group in sample_cliques(clique, per_caption=4).groups}
    assert sizes == {2, 3, 4, 5}


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.6), (0.5, 0.5), (-2, 0.5), (0.5, 3)])
def test_an_invalid_range_is_reported(low: float, high: float) -> None:
    with pytest.raises(CotrunkError, match="are not a range: give two cosines"):
        similarity_graph(vectors(4), low, high)


@pytest.mark.parametrize(("smallest", "largest"), [(1, 5), (4, 3)])
def test_invalid_group_sizes_are_reported(smallest: int, largest: int) -> None:
    with pytest.raises(CotrunkError, match="captions do not exist"):
        sample_cliques([], smallest=smallest, largest=largest)
