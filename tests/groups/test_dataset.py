"""Captioned images are grouped: every source, every damaged image, every file that is written."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from captioned import CAPTIONS, coco, folder_of, write_image
from PIL import Image, UnidentifiedImageError

from cotrunk import CotrunkError
from cotrunk.groups.captions import Pair, read_pairs
from cotrunk.groups.dataset import GroupSettings, build_groups, disjoint, read_groups, read_similarities
from cotrunk.planning.embedding import Encoder


def words(captions: Any) -> np.ndarray:
    """Return vectors in which captions with common words are similar."""
    known = sorted({word for caption in CAPTIONS for word in caption.split()} - {"a"})
    rows = np.array([[float(word in caption.split()) for word in known] for caption in captions], np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


ENCODER = Encoder("words", words)
SETTINGS = GroupSettings(similarity_min=0.4, similarity_max=0.9)


@pytest.mark.parametrize("form", ["jsonl", "csv", "coco"])
def test_sources_give_the_same_pairs(tmp_path: Path, form: str) -> None:
    if form == "coco":
        found = read_pairs(str(coco(tmp_path)), tmp_path / "train")
    else:
        found = read_pairs(str(folder_of(tmp_path, form)))
    assert [pair.caption for pair in found.pairs] == CAPTIONS
    assert all(pair.image.is_file() for pair in found.pairs)
    assert found.unusable == {}


def test_unusable_images_are_reported_and_not_used(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "jsonl", [*CAPTIONS, "", "gone", "broken"])
    (folder / "images/7.png").unlink()
    (folder / "images/8.png").write_bytes(b"no image")
    found = read_pairs(str(folder))
    assert [pair.caption for pair in found.pairs] == CAPTIONS
    assert list(found.unusable.values()) == [
        "it has no caption",
        "there is no such file",
        "it is not a readable image (UnidentifiedImageError)",
    ]


def test_captions_without_images_are_reported_and_counted(tmp_path: Path) -> None:
    file = coco(tmp_path)
    content = json.loads(file.read_text())
    content["images"] = [image for image in content["images"] if image["id"] != 12]
    content["annotations"].append({"id": 999, "image_id": 12, "bbox": [0, 0, 1, 1]})  # boxes without a caption
    file.write_text(json.dumps(content))
    found = read_pairs(str(file), tmp_path / "train")
    assert [pair.caption for pair in found.pairs] == CAPTIONS[:2] + CAPTIONS[3:]
    assert found.unusable == {
        f"{file}, annotation {number}": "its image 12 is not in the list of images" for number in (3, 9)
    }


def test_an_image_with_an_inaccessible_path_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, "jsonl")
    with (folder / "metadata.jsonl").open("a") as file:
        for name in ("x" * 300 + ".png", "closed/1.png"):
            file.write(json.dumps({"file_name": name, "text": "a dog"}) + "\n")
    found_by = Path.stat

    def stat(path: Path, **how: Any) -> Any:
        if path.parent.name == "closed":  # root can read every folder
            raise PermissionError(13, "Permission denied", str(path))
        return found_by(path, **how)

    monkeypatch.setattr(Path, "stat", stat)
    found = read_pairs(str(folder))
    assert [pair.caption for pair in found.pairs] == CAPTIONS
    assert list(found.unusable.values()) == [
        "it is not a readable image (OSError)",
        "it is not a readable image (PermissionError)",
    ]


def test_an_image_is_used_only_with_its_first_caption(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "jsonl")
    with (folder / "metadata.jsonl").open("a") as file:
        for name in ("images/0.png", "images/../images/0.png"):
            file.write(json.dumps({"file_name": name, "text": "some fruit"}) + "\n")
    found = read_pairs(str(folder))
    assert [pair.caption for pair in found.pairs] == CAPTIONS
    assert list(found.unusable) == [
        f"{folder / 'images/0.png'}, caption 2",
        f"{folder / 'images/../images/0.png'}, caption 3",
    ]


def test_disjoint_groups_have_no_image_in_common() -> None:
    groups = [[Pair(f"{word} {name}", Path(name)) for name in "ab"] for word in ("a", "one", "some")]
    assert len(disjoint(groups, 0)) == 1
    assert len(disjoint([*groups, [Pair("a c", Path("c"))]], 0)) == 2


def test_a_set_of_groups(tmp_path: Path) -> None:
    pairs = read_pairs(str(folder_of(tmp_path / "in", "jsonl"))).pairs
    counts: list[tuple[str, int, int]] = []
    out = tmp_path / "set"
    summary = build_groups(pairs, ENCODER, SETTINGS, out, progress=lambda *state: counts.append(state))
    groups, written = read_groups(out)
    members = [sorted(CAPTIONS.index(pair.caption) for pair in group) for group in groups]
    assert sorted(members) == [[0, 1], [0, 1, 2], [0, 2], [1, 2], [3, 4]]
    assert written == json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["sizes"] == {2: 4, 3: 1}
    assert (summary["groups"], summary["images_in_groups"], summary["edges"]) == (5, 5, 4)
    assert all(pair.image.is_file() for group in groups for pair in group)
    table = pq.read_table(out / "groups.parquet")
    assert table["smallest_similarity"].to_pylist() == read_similarities(out) == pytest.approx([0.5] * 5)
    with Image.open(out / "similarities.png") as image:
        assert image.width > 300
    assert [state[1] for state in counts if state[0] == "Grouping captions"][-1] == len(pairs)
    assert {file.name for file in out.iterdir()} == {"groups.parquet", "summary.json", "similarities.png"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.json", "is not a source of captioned images|contains no|There is no file"),
        ("empty", "has no metadata.jsonl or metadata.csv"),
        ("table.json", "is not a COCO file"),
        ("broken.json", "is invalid JSON"),
        ("columns", "needs file_name and one of text, caption, prompt, captions; it has file_name, words"),
        ("lost", r"contains no usable captioned image \(.*there is no such file"),
    ],
)
def test_invalid_sources_are_reported(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text("{")
    for name, entry in (
        ("columns", {"file_name": "1.png", "words": "x"}),
        ("lost", {"file_name": "1.png", "text": "x"}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.jsonl").write_text(json.dumps(entry))
    with pytest.raises(CotrunkError, match=message):
        read_pairs(str(tmp_path / source))


COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "1.png"}],
    "annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}],
}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metadata.csv", "text,file_name\na dog\n", "metadata.csv, entry 1 has no valid file_name"),
        ("metadata.csv", "file_name,text\n1.png,a dog, alone\n", "entry 1 does not fit the columns of the table"),
        ("metadata.csv", 'file_name,text\n1.png,"a dog\n', "is a damaged table"),
        ("metadata.csv", "file_name,text\n1.png,caf\u00e9\n".encode("latin-1"), "metadata.csv is not UTF-8"),
        ("metadata.jsonl", '"a dog"\n', "entry 1 does not fit the columns of the table"),
        ("metadata.jsonl", '{"file_name": 1, "text": "a dog"}\n', "entry 1 has no valid file_name"),
        ("metadata.jsonl", '{"file_name": "1.png", "text": 1}\n', "entry 1: its caption is of type int, not text"),
        ("metadata.jsonl", b'{"file_name": "1.png", "text": "\xe9"}\n', "metadata.jsonl is not UTF-8"),
        ("a.json", COCO | {"annotations": [{"image_id": 1, "caption": "a dog"}]}, "annotation 1 has no valid id"),
        ("a.json", COCO | {"annotations": [{"id": 1, "caption": "a dog"}]}, "annotation 1 has no valid image_id"),
        ("a.json", COCO | {"annotations": ["a dog"]}, "annotation 1 has no valid id"),
        ("a.json", COCO | {"images": [{"id": 1}]}, "image 1 has no valid file_name"),
        ("a.json", COCO | {"images": [{"file_name": "1.png"}]}, "image 1 has no valid id"),
        ("a.json", COCO | {"images": 1}, "is not a COCO file"),
        ("a.json", '{"images": ' + "1" * 5000 + "}", "a.json is invalid JSON (Exceeds the limit"),
        ("a.json", "[" * 100_000, "a.json is JSON nested too deeply: give flat objects"),
        ("metadata.jsonl", '{"id": ' + "1" * 5000 + "}\n", "metadata.jsonl, line 1 is invalid JSON (Exceeds the limit"),
        ("metadata.jsonl", "\n" + "[" * 100_000, "metadata.jsonl, line 2 is JSON nested too deeply"),
        ("a.json", b'{"images": "\xe9"}', "a.json is not UTF-8"),
    ],
)
def test_bad_entries_are_reported(tmp_path: Path, file: str, content: Any, message: str) -> None:
    path = tmp_path / file
    text = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CotrunkError, match=re.escape(message)):
        read_pairs(str(path if file.endswith("a.json") else tmp_path))


class Rows:
    """A hub dataset like that of its library: images are decoded on access."""

    column_names = ("image", "captions")

    def __init__(self, images: list[Any]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if isinstance(self.images[number], Exception):
            raise self.images[number]
        return {"image": self.images[number], "captions": [CAPTIONS[number], "not this one"]}


def test_rows_of_the_hub_without_a_usable_image_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Image.new("L", (8, 8))
    (tmp_path / "cut.png").write_bytes(write_image(tmp_path / "whole.png").read_bytes()[:50])
    cut = Image.open(tmp_path / "cut.png")
    rows = Rows([whole, None, UnidentifiedImageError("no image"), cut, whole])
    library = SimpleNamespace(load_dataset=lambda name, split: rows if (name, split) == ("some/set", "test") else None)
    monkeypatch.setitem(sys.modules, "datasets", library)
    found = read_pairs("some/set:test", export=tmp_path / "images")
    assert [pair.caption for pair in found.pairs] == [CAPTIONS[0], CAPTIONS[4]]
    assert all(Image.open(pair.image).mode == "RGB" for pair in found.pairs)
    assert found.unusable == {
        "some/set:test, row 1": "it has no image",
        "some/set:test, row 2": "it is not a readable image (UnidentifiedImageError)",
        "some/set:test, row 3": "it is not a readable image (OSError)",
    }


NO_TEXT: list[tuple[Any, str]] = [
    (None, "it has no caption"),
    (" ", "it has no caption"),
    (7, "its caption is of type int, not text"),
    (float("nan"), "its caption is of type float, not text"),
    (True, "its caption is of type bool, not text"),
    ({"text": "a dog"}, "its caption is of type dict, not text"),
    ("half a pair: \ud83d", "its caption is invalid Unicode"),
]


@pytest.mark.parametrize(("caption", "why"), NO_TEXT)
def test_an_invalid_coco_caption_does_not_affect_others(tmp_path: Path, caption: Any, why: str) -> None:
    """The image is used with another caption; only an image without another caption is unusable."""
    file = coco(tmp_path)
    content = json.loads(file.read_text())
    content["annotations"].insert(0, {"id": 1, "image_id": 12, "caption": caption})  # before the good ones
    content["annotations"].append({"id": 900, "image_id": 13, "caption": caption})  # and after them
    content["images"].append({"id": 99, "file_name": "0.png"})
    content["annotations"].append({"id": 901, "image_id": 99, "caption": caption})
    file.write_text(json.dumps(content))
    found = read_pairs(str(file), tmp_path / "train")
    assert [pair.caption for pair in found.pairs] == CAPTIONS
    count = len(content["annotations"])
    assert found.unusable == {f"{file}, annotation {n}": why for n in (1, count - 1, count)} | {
        str(tmp_path / "train" / "0.png"): "it has no caption"
    }


@pytest.mark.parametrize(("caption", "why"), NO_TEXT)
def test_an_invalid_table_caption_does_not_affect_others(tmp_path: Path, caption: Any, why: str) -> None:
    folder = folder_of(tmp_path, "jsonl")
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    entries = [*map(json.loads, lines)]
    entries[1]["text"] = [caption, entries[1]["text"]]  # one of several
    entries[2] |= {"text": caption, "caption": entries[2]["text"]}  # under another name
    entries.insert(0, {"file_name": "images/0.png", "text": caption})  # on another line
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)))
    found = read_pairs(str(folder))
    assert [pair.caption for pair in found.pairs] == CAPTIONS
    where = f"{folder / 'metadata.jsonl'}, entry"
    assert found.unusable == {f"{where} 1": why, f"{where} 3, caption 1": why, f"{where} 4": why}


def test_a_csv_row_without_caption_does_not_affect_others(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "csv")
    with (folder / "metadata.csv").open("a") as file:
        file.write("images/0.png,\nimages/1.png\n")
    found = read_pairs(str(folder))
    assert [pair.caption for pair in found.pairs] == CAPTIONS
    assert list(found.unusable.values()) == ["it has no caption"] * 2


def hub(monkeypatch: pytest.MonkeyPatch, rows: Any) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda name, split: rows))


@pytest.mark.parametrize(("caption", "why"), NO_TEXT)
def test_an_invalid_hub_caption_does_not_affect_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caption: Any, why: str
) -> None:
    class Some(Rows):
        def __getitem__(self, number: int) -> dict[str, Any]:
            row = super().__getitem__(number)
            return row | {"captions": {0: caption, 1: [caption, *row["captions"]]}.get(number, row["captions"])}

    hub(monkeypatch, Some([Image.new("RGB", (8, 8))] * 3))
    found = read_pairs("some/set", export=tmp_path)
    assert [pair.caption for pair in found.pairs] == CAPTIONS[1:3]
    assert found.unusable == {"some/set, row 0": why, "some/set, row 1, caption 1": why}


def test_hub_images_are_read_like_files_and_written_again_if_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(monkeypatch, Rows([Image.new("RGBA", (8, 8), (0, 0, 0, 0))]))
    for content in (None, b"", b"no image"):
        (pair,) = read_pairs("some/set", export=tmp_path).pairs
        with Image.open(pair.image) as image:
            assert image.getpixel((0, 0)) == (255, 255, 255)
        if content is not None:
            pair.image.write_bytes(content)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"similarity_min": 0.9}, "similarity_min 0.9 and similarity_max 0.9 are not a range"),
        ({"min_group": 1}, "min_group 1 is out of range: use a whole number of 2 or more"),
        ({"min_group": 4, "max_group": 3}, "max_group 3 is out of range: use a whole number of 4 or more"),
        ({"per_caption": 0}, "per_caption 0 is out of range: use a whole number of 1 or more"),
        ({"max_groups": 0}, "max_groups 0 is out of range"),
        ({"max_groups": -1}, "max_groups -1 is out of range"),
        ({"seed": -1}, "seed -1 is out of range"),
    ],
)
def test_settings_out_of_range_are_reported(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(CotrunkError, match=message):
        GroupSettings(**changed)


def test_captions_without_similarities_are_reported(tmp_path: Path) -> None:
    pairs = [Pair(caption, tmp_path) for caption in ("a grey owl", "a violin")]
    with pytest.raises(CotrunkError, match=r"No two of the 2 captions have a similarity between 0.4 and 0.9 for words"):
        build_groups(pairs, ENCODER, SETTINGS, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_folder_without_a_set_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CotrunkError, match="is not a set of groups: make one with cotrunk dataset"):
        read_groups(tmp_path)


def test_missing_pyarrow_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(CotrunkError, match=r"need pyarrow: pip install .cotrunk\[train\]"):
        read_groups(tmp_path)
