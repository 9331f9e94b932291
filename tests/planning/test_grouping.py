"""Groups are cliques for any input; the dense and the sparse path have the same properties."""

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotrunk.errors import CotrunkError
from cotrunk.planning import greedy_cliques, grouping, neighbours
from cotrunk.planning.cosines import unit_rows
from cotrunk.planning.grouping import cosine_similarities, dendrogram, group_prompts, smallest_similarity

PATHS = {"dense": (10**9, 10**9), "sparse": (0, 10**9), "approximate": (0, 0)}


@pytest.fixture(params=PATHS)
def either_path(request):
    """Run a test through the dense path, the sparse path, and the sparse path with an approximate search."""
    with pytest.MonkeyPatch.context() as patch:
        dense, exact = PATHS[request.param]
        patch.setattr(grouping, "DENSE_LIMIT", dense)
        patch.setattr(neighbours, "EXACT_LIMIT", exact)
        patch.setattr(neighbours, "PER_CELL", 4)  # several cells, although tests have few prompts
        patch.setattr(neighbours, "BLOCK", 7)
        yield request.param


@st.composite
def cases(draw):
    """Draw prompts as a few directions with small integer coordinates, so that ties and duplicates are common."""
    d = draw(st.integers(1, 4))
    row = st.lists(st.integers(-2, 3), min_size=d, max_size=d)
    directions = draw(st.lists(row, min_size=1, max_size=12))
    chosen = draw(st.lists(st.integers(0, len(directions) - 1), min_size=1, max_size=24))
    vectors = np.array([directions[i] for i in chosen], np.float32)
    identities = [tuple(directions[i]) for i in chosen]
    keys = draw(st.none() | st.lists(st.sampled_from("ab"), min_size=len(chosen), max_size=len(chosen)))
    threshold = draw(st.sampled_from([-1.0, 0.0, 0.5, 0.707107, 0.9, 1.0]) | st.floats(-1, 1))
    upper = draw(st.none() | st.sampled_from([0.95, 1.0, 1.5]).filter(lambda u: u > threshold))
    max_group = draw(st.none() | st.integers(1, 6))
    order = draw(st.permutations(range(len(chosen))))
    return vectors, threshold, upper, max_group, identities, keys, list(order)


@given(cases())
@settings(max_examples=100, deadline=None)
def check_promises(case):
    vectors, threshold, upper, max_group, identities, keys, order = case
    options = {"upper": upper, "max_group": max_group}
    groups = group_prompts(vectors, threshold, identities=identities, keys=keys, **options)

    # a partition, in the documented order
    assert sorted(i for group in groups for i in group) == list(range(len(vectors)))
    assert groups == sorted(sorted(group) for group in groups)

    cosines = cosine_similarities(vectors)
    for group in groups:
        assert max_group is None or len(group) <= max_group
        assert len(group) == 1 or vectors[group].any(axis=1).all()  # zero vectors are alone
        for i, j in combinations(group, 2):
            assert cosines[i, j] >= threshold
            assert upper is None or cosines[i, j] < upper
            assert identities[i] != identities[j]
            assert keys is None or keys[i] == keys[j]
        assert len(group) == 1 or smallest_similarity(vectors[group]) >= threshold

    # order invariance: duplicates are interchangeable, so compare by what the members are
    def named(groups, names):
        return sorted(sorted(names[i] for i in group) for group in groups)

    names = list(zip(identities, keys or identities, strict=True))
    shuffled = group_prompts(
        vectors[order],
        threshold,
        identities=[identities[i] for i in order],
        keys=None if keys is None else [keys[i] for i in order],
        **options,
    )
    assert named(shuffled, [names[i] for i in order]) == named(groups, names)


@pytest.mark.usefixtures("either_path")
def test_documented_properties():
    check_promises()


def clustered(n, d=32, spread=0.5, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, n // 6), d))
    vectors = centres[rng.integers(len(centres), size=n)] + spread * rng.standard_normal((n, d))
    return vectors.astype(np.float32)


@pytest.mark.usefixtures("either_path")
def test_permutation_permutes_groups_of_distinct_prompts():
    vectors = clustered(600)
    groups = group_prompts(vectors, 0.6)
    order = np.random.default_rng(1).permutation(len(vectors))
    shuffled = group_prompts(vectors[order], 0.6)
    assert sorted(sorted(int(order[i]) for i in group) for group in shuffled) == groups


@pytest.mark.usefixtures("either_path")
def test_clusters_far_apart_are_found_exactly():
    centres = np.eye(8, dtype=np.float32)
    vectors = np.repeat(centres, 4, axis=0) + 0.02 * clustered(32, d=8)
    expected = [list(range(i, i + 4)) for i in range(0, 32, 4)]
    assert group_prompts(vectors, 0.5, max_group=None) == expected
    assert group_prompts(vectors, 0.5, max_group=4) == expected
    # a clique of four above the size limit becomes two groups, not more
    halves = group_prompts(vectors, 0.5, max_group=3)
    assert len(halves) == 16
    assert all(i // 4 == half[0] // 4 for half in halves for i in half)
    assert len(group_prompts(vectors, 0.5, max_group=1)) == 32


@pytest.mark.usefixtures("either_path")
def test_unrelated_prompts_stay_alone():
    assert group_prompts(np.eye(5, dtype=np.float32), 0.1) == [[0], [1], [2], [3], [4]]


@pytest.mark.usefixtures("either_path")
def test_duplicates_never_share_a_group():
    vectors = np.array([[1, 0]] * 4 + [[0.9, 0.1]] * 3 + [[0, 1]], np.float32)
    groups = group_prompts(vectors, 0.5, identities=["a"] * 4 + ["b"] * 3 + ["c"])
    assert sorted(map(len, groups)) == [1, 1, 2, 2, 2]
    # the vectors themselves are the default identities
    assert sorted(map(len, group_prompts(vectors, 0.5))) == [1, 1, 2, 2, 2]


@pytest.mark.usefixtures("either_path")
def test_equal_identities_with_other_vectors_stay_apart():
    vectors = np.array([[1, 0], [0.99, 0.1], [0.99, 0.05]], np.float32)
    groups = group_prompts(vectors, 0.5, identities=["a", "a", "b"])
    assert sorted(map(len, groups)) == [1, 2]
    assert [0, 1] not in groups


@pytest.mark.usefixtures("either_path")
def test_minus_zero_is_zero():
    assert group_prompts(np.array([[0.0, 1.0], [-0.0, 1.0]], np.float32), 0.5) == [[0], [1]]


def test_many_duplicates_do_not_crowd_out_the_neighbours(monkeypatch):
    monkeypatch.setattr(grouping, "DENSE_LIMIT", 0)
    # 100 copies each: the nearest 32 of every prompt are its own copies
    vectors = np.repeat(np.array([[1, 0, 0], [0.9, 0.3, 0], [0.9, 0, 0.3]], np.float32), 100, axis=0)
    groups = group_prompts(vectors, 0.7)
    assert len(groups) == 100
    assert {len(group) for group in groups} == {3}


def test_sparse_searches_again_where_neighbours_ran_out(monkeypatch):
    monkeypatch.setattr(grouping, "DENSE_LIMIT", 0)
    monkeypatch.setattr(greedy_cliques, "NEIGHBOURS", 4)
    rng = np.random.default_rng(0)
    vectors = (np.ones(16) + 0.05 * rng.standard_normal((400, 16))).astype(np.float32)  # all alike
    assert len(group_prompts(vectors, 0.9)) <= 84  # 80 is optimal; a single round leaves far more


@pytest.mark.parametrize(("worth", "rounds"), [(0.0, 4), (0.7, 2), (1.0, 1)])
def test_among_many_prompts_rounds_that_finish_few_are_the_last(monkeypatch, worth, rounds):
    monkeypatch.setattr(grouping, "DENSE_LIMIT", 0)
    monkeypatch.setattr(greedy_cliques, "NEIGHBOURS", 4)
    monkeypatch.setattr(greedy_cliques, "EXACT_LIMIT", 0)
    monkeypatch.setattr(greedy_cliques, "WORTH", worth)
    search, searched = greedy_cliques.neighbours, []
    monkeypatch.setattr(greedy_cliques, "neighbours", lambda *given: searched.append(1) or search(*given))
    rng = np.random.default_rng(0)
    vectors = (np.ones(16) + 0.05 * rng.standard_normal((400, 16))).astype(np.float32)
    groups = group_prompts(vectors, 0.9)
    assert sorted(chain.from_iterable(groups)) == [*range(400)]
    assert len(searched) == rounds


def test_sparse_saves_as_much_as_dense(monkeypatch):
    vectors = clustered(1500, spread=0.6)
    dense = group_prompts(vectors, 0.6)
    monkeypatch.setattr(grouping, "DENSE_LIMIT", 0)
    sparse = group_prompts(vectors, 0.6)
    assert 3 * len(dense) < 2 * len(vectors)  # otherwise the comparison would prove nothing
    assert len(sparse) <= 1.03 * len(dense)


def test_the_approximate_search_loses_little_of_the_saving(monkeypatch):
    monkeypatch.setattr(grouping, "DENSE_LIMIT", 0)
    vectors = clustered(3000, spread=0.6)
    exact = group_prompts(vectors, 0.6)
    monkeypatch.setattr(neighbours, "EXACT_LIMIT", 0)
    monkeypatch.setattr(neighbours, "PROBES", 3)  # of 11 cells
    approximate = group_prompts(vectors, 0.6)
    assert approximate != exact  # otherwise the search was exact
    assert len(approximate) <= 1.03 * len(exact)


def test_the_approximate_search_finds_a_vector_itself_and_pads_what_it_does_not_find(monkeypatch):
    monkeypatch.setattr(neighbours, "EXACT_LIMIT", 0)
    monkeypatch.setattr(neighbours, "PER_CELL", 2)
    monkeypatch.setattr(neighbours, "PROBES", 1)
    rows = unit_rows(np.random.default_rng(0).standard_normal((40, 8)))
    [(start, cosines, found)] = neighbours.neighbours(rows, 30)
    assert start == 0
    assert (found[:, 0] == np.arange(40)).all()
    assert ((found == -1) == np.isneginf(cosines)).all()
    assert (found == -1).any()
    assert (cosines[:, 1:] <= cosines[:, :-1]).all()


def smallest_cover(related):
    """Return the smallest number of cliques that partition the vertices, by trying all partitions."""

    def cover(rest):
        if not rest:
            return 0
        first, others = rest[0], rest[1:]
        fewest = len(rest)
        for size in range(len(others) + 1):
            for group in combinations(others, size):
                if all(related[i, j] for i, j in combinations((first, *group), 2)):
                    fewest = min(fewest, 1 + cover([i for i in others if i not in group]))
        return fewest

    return cover(list(range(len(related))))


@pytest.mark.usefixtures("either_path")
def test_close_to_the_smallest_partition():
    found = smallest = 0
    for seed in range(30):
        vectors = np.random.default_rng(seed).standard_normal((7, 3)).astype(np.float32)
        related = cosine_similarities(vectors) >= 0.4
        groups = len(group_prompts(vectors, 0.4, max_group=None))
        best = smallest_cover(related)
        assert groups >= best
        found, smallest = found + groups, smallest + best
    assert found <= 1.1 * smallest


@pytest.mark.usefixtures("either_path")
def test_bad_rows_are_alone():
    vectors = np.ones((5, 3), np.float32)
    vectors[1] = np.nan
    vectors[2] = 0
    vectors[3, 0] = np.inf
    assert group_prompts(vectors, -1.0, identities="abcde") == [[0, 4], [1], [2], [3]]
    assert smallest_similarity(vectors[[0, 1]]) == 0


@pytest.mark.usefixtures("either_path")
def test_upper_keeps_near_copies_apart():
    vectors = np.array([[1, 0], [0.999, 0.02], [0.8, 0.6]], np.float32)
    assert group_prompts(vectors, 0.6) == [[0, 1, 2]]
    assert sorted(map(len, group_prompts(vectors, 0.6, upper=0.95))) == [1, 2]


@pytest.mark.usefixtures("either_path")
def test_empty_and_single():
    assert group_prompts(np.zeros((0, 4), np.float32), 0.5) == []
    assert group_prompts(np.ones((1, 4), np.float32), 0.5) == [[0]]


@pytest.mark.usefixtures("either_path")
def test_a_pair_exactly_at_the_threshold_shares():
    vectors = np.array([[1, 0], [0.6, 0.8]], np.float32)
    assert group_prompts(vectors, 0.6) == [[0, 1]]
    assert group_prompts(vectors, 0.600001) == [[0], [1]]
    assert group_prompts(vectors, 0.5, upper=0.6) == [[0], [1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": 0.5, "upper": 0.5}, "upper similarity"),
        ({"threshold": 0.5, "max_group": 0}, "largest group"),
        ({"threshold": 0.5, "identities": ["a"]}, "1 identities"),
        ({"threshold": 0.5, "keys": ["a"]}, "1 keys"),
        ({"threshold": 0.5, "vectors": np.ones(3)}, "shape"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(CotrunkError, match=message):
        group_prompts(**{"vectors": np.ones((3, 2)), **arguments})


def test_without_faiss(monkeypatch):
    monkeypatch.setattr(grouping, "DENSE_LIMIT", 2)
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    for ask in (lambda: group_prompts(np.eye(3), 0.5), lambda: grouping.check_size(3)):
        with pytest.raises(CotrunkError, match=r"cotrunk\[large\]"):
            ask()
    grouping.check_size(2)


@given(st.integers(0, 10**6), st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_dendrogram(seed, n):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, 4)).astype(np.float32)
    merges = dendrogram(vectors)
    cosines = cosine_similarities(vectors)
    leaves = {i: {i} for i in range(n)}
    for i, (a, b, similarity) in enumerate(merges):
        assert a < b
        leaves[n + i] = leaves.pop(a) | leaves.pop(b)  # KeyError if a node is merged twice
        assert similarity == min(cosines[pair] for pair in combinations(leaves[n + i], 2))
    assert list(leaves.values()) == [set(range(n))]
    assert merges[-1][2] == smallest_similarity(vectors)
    similarities = [similarity for _, _, similarity in merges]
    assert similarities == sorted(similarities, reverse=True)

    # any order of the rows gives the same nested sets
    order = rng.permutation(n)

    def nested(merges, names):
        sets = [frozenset([int(names[i])]) for i in range(n)]
        for a, b, _ in merges:
            sets.append(sets[a] | sets[b])
        return set(sets)

    assert nested(dendrogram(vectors[order]), order) == nested(merges, range(n))


def test_dendrogram_of_one_and_of_equal_rows():
    assert dendrogram(np.ones((1, 3))) == []
    assert smallest_similarity(np.ones((1, 3))) == 1
    assert [similarity for *_, similarity in dendrogram(np.ones((3, 3)))] == [1, 1]
