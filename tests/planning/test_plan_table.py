"""Plans as Parquet files: what is read equals what was written, and damaged files are refused in one sentence."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotrunk import Branch, CotrunkError, Plan, Sharing
from cotrunk.planning import plan_table
from cotrunk.planning.plan import DEPTH, Findings
from cotrunk.planning.plan_table import Planned, check_can_save, read_table, write_table
from cotrunk.planning.replayed import Replayed
from cotrunk.planning.tree import flat_tree, leaf
from cotrunk.planning.trunk_recipe import TrunkRecipe

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

INNER = Branch((0, 2), 2, 3, 0.7, (leaf(0, 3, 10), leaf(2, 3, 10)))
DEEP = Branch((0, 2, 3), 0, 2, 0.6, (INNER, leaf(3, 2, 10)))
FINDINGS = Findings(truncated=((1, "the end"),), alike=((0, 1),), fallback="A sentence.")
PLAN = Plan(("a", "b\n"), (1, 2, 1, 1), (DEEP, leaf(1, 0, 10)), 10, 10, 2, 2, False, Sharing.published(), 0.6, FINDINGS)


def save(plan: Plan, path: Path) -> None:
    write_table(path, [Planned(plan, [plan.prompt_of(image) for image in range(len(plan))])])


def load(path: Path) -> Plan:
    [found] = read_table(path)
    assert list(found.rows) == [found.plan.prompt_of(image) for image in range(len(found.plan))]
    return found.plan


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_table, "ROWS", 3)  # several blocks, groups across their ends


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    images=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
def test_flat_plans_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], images: int, order: random.Random
) -> None:
    numbers, trees = list(range(sum(sizes))), list[Branch]()
    order.shuffle(numbers)
    for size in sizes:
        group = [numbers.pop() for _ in range(size)]
        for copy in range(images):
            own = [prompt * images + copy for prompt in group]
            trees += flat_tree(own, order.randrange(4), 10, order.random())
    count = sum(sizes)
    sharing = Sharing(noise="own", trunk_guidance=0.0)
    seeds = tuple(order.randrange(2**48) for _ in range(count * images))
    trees.sort(key=lambda tree: tree.images)
    plan = Plan(tuple(f"prompt {i}" for i in range(count)), seeds, tuple(trees), 10, 10, 2, images, False, sharing, 0.5)
    path = tmp_path_factory.getbasetemp() / "plan.parquet"
    save(plan, path)
    assert load(path) == plan


def test_deep_trees_and_findings(tmp_path: Path) -> None:
    path = tmp_path / "PLAN.PARQUET"
    save(PLAN, path)
    assert load(path) == PLAN
    plain = replace(
        PLAN, sharing=None, threshold=None, trees=tuple(leaf(i, 0, 10) for i in range(4)), seeds=(1, 2, 3, 4)
    )
    save(plain, path)
    assert load(path) == plain


def test_trunks_that_are_replayed(tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    deep = Replayed(TrunkRecipe(("a", "c\n"), 1, 2, "float32"), DEEP.images, 2)
    single = Replayed(TrunkRecipe(("d",), 2, 6, "float16"), (1,), 5, is_stored=True)
    for trunks in [(deep, single), (deep,), (single,)]:
        plan = replace(PLAN, trunks=trunks)
        save(plan, path)
        assert load(path) == plan


def test_several_plans_with_retries(tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    one, two = PLAN, Plan(("b",), (9,), (leaf(0, 0, 4),), 4, 4)
    write_table(path, [Planned(one, [0, 0, 2, 2]), Planned(two, [2], [3])])
    assert read_table(path) == [Planned(one, [0, 0, 2, 2]), Planned(two, [2], [3])]


def test_a_plan_that_is_too_deep_is_not_written(tmp_path: Path) -> None:
    tree = leaf(DEPTH + 1, DEPTH + 1, 500)
    for image in reversed(range(DEPTH + 1)):
        images = tuple(range(image, DEPTH + 2))
        tree = Branch(images, image, image + 1, 0.5, (leaf(image, image + 1, 500), tree))
    plan = Plan(("a",) * (DEPTH + 2), (0,) * (DEPTH + 2), (tree,), 500, 500)
    with pytest.raises(CotrunkError, match="more than 200 times in a row cannot be saved"):
        save(plan, tmp_path / "plan.parquet")
    assert not list(tmp_path.iterdir())


def _edited(path: Path, column: str, row: int, value: Any) -> None:
    """Write one other value into a table."""
    table = parquet.read_table(path)
    values = table.column(column).to_pylist()
    values[row] = value
    place = table.schema.get_field_index(column)
    changed = table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type))
    parquet.write_table(changed.replace_schema_metadata(table.schema.metadata), path)


@pytest.mark.parametrize(
    ("column", "row", "value", "says"),
    [
        ("part", 0, 1, "it has no part 1"),
        ("part", 0, None, "it has no part None"),
        ("group", 3, 5, "its group 1 is missing or divided"),
        ("image", 3, 0, "holds image 0 twice"),
        ("image", 3, 7, "do not hold every image once"),
        ("image", 3, -1, "image -1 is missing or out of range"),
        ("seed", 0, None, "a value of image 0 is missing"),
        ("seed", 0, 5, "share a trunk but not a seed"),
        ("prompt", 1, "other", "the images of a prompt have different texts"),
        ("prompt", 1, None, "a value of image 2 is missing"),
        ("similarity", 3, float("nan"), "out of range"),
        ("number", 0, 3, "holds image 0 twice, or without its number"),
        ("tree", 0, "{}", "images: Field required"),
        ("tree", 0, json.dumps(leaf(0, 0, 10).to_json()), "is of other images"),
        ("trunk", 3, "[]", "Input should be an object"),
    ],
)
def test_a_contradictory_table_is_refused(tmp_path: Path, column: str, row: int, value: Any, says: str) -> None:
    path = tmp_path / "plan.parquet"
    save(PLAN, path)
    _edited(path, column, row, value)
    with pytest.raises(CotrunkError, match=rf"is not a usable plan: [^\n]*({says})[^\n]*\. Make a new one\.$"):
        load(path)


def test_what_a_single_image_or_a_deep_tree_does_not_need_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    save(PLAN, path)
    for column in ("stop", "similarity"):
        _edited(path, column, 3, 3)
        assert load(path) == PLAN


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"{}"])
def test_a_file_that_is_not_a_table_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.parquet"
    path.write_bytes(content)
    with pytest.raises(CotrunkError, match="is not a whole Parquet file"):
        load(path)
    with pytest.raises(CotrunkError, match="Cannot read the plan"):
        load(tmp_path / "none.parquet")


def test_other_tables_and_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    parquet.write_table(pa.table({"prompt": ["a"]}), path)
    with pytest.raises(CotrunkError, match="it has other columns"):
        load(path)
    save(PLAN, path)
    table = parquet.read_table(path)
    for metadata in ({}, {b"cotrunk": b"[]"}, {b"cotrunk": json.dumps({"format": 1}).encode()}):
        parquet.write_table(table.replace_schema_metadata(metadata), path)
        with pytest.raises(CotrunkError, match="its format is of another version"):
            load(path)


def test_what_cannot_be_written_is_known_before_planning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_can_save(tmp_path / "plan.parquet")
    with pytest.raises(CotrunkError, match="is a folder: name a file"):
        check_can_save(tmp_path)
    with pytest.raises(CotrunkError, match=r"Cannot write .*none/plan\.json: No such file"):
        check_can_save(tmp_path / "none" / "plan.json")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    check_can_save(tmp_path / "plan.json")
    for use in (check_can_save, lambda path: save(PLAN, path), load):
        with pytest.raises(CotrunkError, match=r"plan.parquet needs pyarrow: pip install 'cotrunk\[parquet\]'"):
            use(tmp_path / "plan.parquet")
