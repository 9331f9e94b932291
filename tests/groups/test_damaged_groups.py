"""Damaged sets of groups are named."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import spoils
from PIL import Image

from cotrunk import CotrunkError
from cotrunk.groups.captions import Pair
from cotrunk.groups.dataset import read_groups, read_similarities

WHOLE = {"captions": [["a dog", "a cat"]], "images": [["1.png", "2.png"]], "smallest_similarity": [0.7]}


@pytest.mark.parametrize(
    ("changed", "summary"),
    [
        ({}, "["),
        ({}, "7"),
        ({}, "[" * 100_000),
        ({}, None),
        ({"captions": [["a dog", None]]}, "{}"),
        ({"captions": [["a dog"]]}, "{}"),
        ({"captions": [None]}, "{}"),
        ({"captions": ["a dog"]}, "{}"),
        ({"captions": [[]], "images": [[]]}, "{}"),
        ({"images": [[1, 2]]}, "{}"),
        ({"images": [[["1.png"], ["2.png"]]]}, "{}"),
        ({"captions": pa.array([], pa.list_(pa.string())), "images": pa.array([], pa.list_(pa.string()))}, "{}"),
    ],
)
def test_a_damaged_set_of_groups_is_reported(tmp_path: Path, changed: dict[str, Any], summary: str | None) -> None:
    columns = {**WHOLE, **changed}
    if not len(columns["captions"]):
        columns["smallest_similarity"] = pa.array([], pa.float64())
    table = pa.table(columns)
    if summary is not None:
        table = table.replace_schema_metadata({"cotrunk": summary})
    pq.write_table(table, tmp_path / "groups.parquet")
    with pytest.raises(CotrunkError, match="make one with cotrunk dataset"):
        read_groups(tmp_path)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.7"])
def test_a_set_of_groups_without_its_similarities_is_reported(tmp_path: Path, value: Any) -> None:
    table = pa.table({**WHOLE, "smallest_similarity": [value]}).replace_schema_metadata({"cotrunk": "{}"})
    pq.write_table(table, tmp_path / "groups.parquet")
    with pytest.raises(CotrunkError, match="make one with cotrunk dataset"):
        read_similarities(tmp_path)


def test_a_truncated_set_of_groups_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "groups.parquet"
    pq.write_table(pa.table(WHOLE).replace_schema_metadata({"cotrunk": "{}"}), path)
    assert read_groups(tmp_path)[0] == [[Pair("a dog", Path("1.png")), Pair("a cat", Path("2.png"))]]
    for _ in spoils(path):
        with pytest.raises(CotrunkError, match="is not a set of groups: make one with cotrunk dataset"):
            read_groups(tmp_path)


def test_an_image_with_an_invalid_file_name_is_not_used(tmp_path: Path) -> None:
    from cotrunk.groups.images import unreadable

    assert unreadable(tmp_path / "a\0b.png")
    assert unreadable(tmp_path)
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    assert unreadable(tmp_path / "a.png") is None
