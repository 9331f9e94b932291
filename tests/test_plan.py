"""The plan as data: waves, cost, its file."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotrunk import Branch, CotrunkError, Plan
from cotrunk.plan import leaf
from cotrunk.waves import partition

PAIR = Branch((0, 2), 0, 3, 0.7, (leaf(0, 3, 10), leaf(2, 3, 10)))
PLAN = Plan(("a", "b", "c"), (1, 2, 1), (PAIR, leaf(1, 0, 10)), steps=10, timesteps=10)


def test_cost_counts_a_trunk_once() -> None:
    assert PLAN.cost.used == 2 * (3 + 7 + 7 + 10)
    assert PLAN.cost.independent == 2 * 30
    assert PLAN.cost.saving == pytest.approx(0.1)
    assert PLAN.image_rows() == [2 * (1.5 + 7), 2 * 10, 2 * (1.5 + 7)]


def test_partition_is_the_tree_at_every_timestep() -> None:
    sources = partition(PLAN.trees, 10)  # images 0, 2, 1 in the order of the wave
    assert sources[0] == sources[2] == (0, 0, 2)
    assert sources[3] == sources[9] == (0, 1, 2)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12), limit=st.integers(1, 8))
def test_waves_keep_groups_whole_and_bounded(sizes: list[int], limit: int) -> None:
    trees, first = [], 0
    for size in sizes:
        images = tuple(range(first, first + size))
        children = tuple(leaf(i, 2, 4) for i in images)
        trees.append(Branch(images, 0, 2, 0.5, children) if size > 1 else leaf(first, 0, 4))
        first += size
    plan = Plan(("p",) * first, (0,) * first, tuple(trees), 4, 4)
    waves = list(plan.waves(limit))
    assert [tree for wave in waves for tree in wave] == trees
    assert all(len(wave) == 1 or sum(len(t.images) for t in wave) <= limit for wave in waves)


def test_independent_keeps_the_noise() -> None:
    independent = PLAN.independent(steps=8, timesteps=8)
    independent.check()
    assert independent.seeds == PLAN.seeds
    assert independent.cost.used == independent.cost.independent == 2 * 24


def test_round_trip(tmp_path: Path) -> None:
    for path in (tmp_path / "plan.json", str(tmp_path / "text.json")):
        PLAN.save(path)
        assert Plan.load(path) == PLAN
    with pytest.raises(CotrunkError, match="is a folder: name a file"):
        PLAN.save(tmp_path)


def _edit(data: dict[str, Any], *path: Any, value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("format",), 99, "another version"),
        (("seeds",), [1, 2, 3], "share a trunk but not a seed"),
        (("seeds",), [1, 2], "2 seeds for 3 prompts"),
        (("trees",), [], "do not hold every image once"),
        (("trees", 0, "children", 0, "stop"), 9, "ends before the last timestep"),
        (("trees", 0, "children", 0, "start"), 4, "do not follow each other"),
        (("trees", 0, "images"), [0, 5], "do not hold every image once"),
    ],
)
def test_a_contradictory_plan_is_refused(path: tuple[Any, ...], value: Any, says: str, tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    _edit(data, *path, value=value)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(CotrunkError, match=says):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\0\0", '{"format": 1}'])
def test_a_file_that_is_no_plan_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(CotrunkError, match="plan"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(CotrunkError, match="Cannot read"):
        Plan.load(tmp_path / "none.json")
