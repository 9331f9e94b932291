"""The clique rule over time: every prompt is similar to every member, and faiss finds what the matrix finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trunk_caches import cosine, directions

from cotrunk.trunks import nearest
from cotrunk.trunks.nearest import Nearest


def entries(*angles: tuple[float, ...]) -> Nearest:
    found = Nearest()
    found.update({number: directions(*each) for number, each in enumerate(angles)}, [])
    return found


def test_every_member_must_be_near() -> None:
    table = entries((0, 40), (0, 10))
    assert table.best(directions(5), cosine(10)) == (1, pytest.approx(cosine(5), abs=1e-6))
    assert entries((0, 40)).best(directions(5), cosine(10)) is None  # 35 degrees from the second member


def test_every_prompt_must_be_near() -> None:
    table = entries((0, 10))
    assert table.best(directions(5, 8), cosine(10)) is not None
    assert table.best(directions(5, 21), cosine(10)) is None


def test_the_nearest_is_chosen_and_the_oldest_among_equals() -> None:
    assert entries((9,), (4,), (4,), (8,)).best(directions(5), cosine(10))[0] == 1


def test_a_limit_from_above_and_entries_that_do_not_count() -> None:
    table = entries((0,), (3,))
    assert table.best(directions(0), cosine(10))[0] == 0
    assert table.best(directions(0), cosine(10), below=1.0)[0] == 1
    assert table.best(directions(0), cosine(10), without=[0])[0] == 1
    assert table.best(directions(0), cosine(10), below=1.0, without=[1]) is None


def test_removed_entries_are_not_found() -> None:
    table = entries((0,), (3,))
    assert table.best(directions(0), 0.9)[0] == 0
    table.update({}, [0])
    assert table.best(directions(0), 0.9)[0] == 1
    assert len(table) == 1


def test_vectors_that_are_zero_or_of_another_width_are_similar_to_nothing() -> None:
    table = Nearest()
    table.update({0: np.zeros((1, 2), np.float32), 1: np.ones((1, 3), np.float32)}, [])
    assert table.best(directions(0), -1.0) is None
    assert table.best(np.zeros((1, 2), np.float32), -1.0) is None
    assert table.best(np.ones((1, 3), np.float32), -1.0)[0] == 1
    assert Nearest().best(directions(0), -1.0) is None


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 3), st.floats(-1, 1), st.booleans())
def test_the_result_is_that_of_the_definition(
    seed: int, count: int, prompts: int, threshold: float, is_large: bool
) -> None:
    rng = np.random.default_rng(seed)
    table = Nearest()
    own = {n: rng.normal(size=(rng.integers(1, 4), 4)).astype(np.float32) for n in range(count)}
    asked = rng.normal(size=(prompts, 4)).astype(np.float32)
    limit = int(rng.integers(count)) if is_large else count
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "MATRIX_LIMIT", limit)
        for part in np.array_split(np.arange(count), rng.integers(1, 4)):  # some come later, and some are removed
            table.update({int(n): own[int(n)] for n in part}, [])
            table.best(asked, threshold)
        if count > 1 and seed % 2:
            table.update({}, [0])
            del own[0]
        found = table.best(asked, threshold)
    smallest = {n: float(nearest.similarities_between(vectors, asked).min()) for n, vectors in own.items()}
    best = max(smallest, key=lambda n: (smallest[n], -n))
    assert found == ((best, smallest[best]) if smallest[best] >= threshold else None)


def test_many_entries_are_in_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MATRIX_LIMIT", 1)
    table = entries((0,), (3,))
    assert table.best(directions(1), 0.9)[0] == 0
    assert table._narrowing is not None
    assert not isinstance(table._narrowing[2], np.ndarray)
    monkeypatch.setattr(nearest.importlib.util, "find_spec", lambda name: None)  # not installed
    table.update({}, [])
    assert table.best(directions(1), 0.9)[0] == 0
