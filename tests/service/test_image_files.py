"""Files of images: whole or not at all, at any URL, and only under names of images."""

import itertools
import os
import time
from pathlib import Path

import pytest

from cotrunk.errors import CotrunkError
from cotrunk.service.images import ImageFiles

NAME = "img_" + "0" * 24
NUMBERS = itertools.count()


@pytest.fixture(params=["folder", "file://", "memory://"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> ImageFiles:
    places = {
        "folder": str(tmp_path / "a" / "b"),
        "file://": f"file://{tmp_path}/a",
        "memory://": f"memory://{next(NUMBERS)}",
    }
    return ImageFiles(places[request.param])


def test_a_file_is_written_replaced_read_and_removed(files: ImageFiles) -> None:
    for name in (f"{NAME}.png", f"{NAME}.partial-0.png"):
        assert files.read(name) is None
        files.write(name, b"one")
        files.write(name, b"two")
        assert files.read(name) == b"two"
    other = f"img_{'1' * 24}.png"
    files.write(other, b"three")
    files.remove([NAME, "img_" + "2" * 24])
    assert files.read(f"{NAME}.png") is files.read(f"{NAME}.partial-0.png") is None
    assert files.read(other) == b"three"
    assert files.names() == [other]
    files.remove_file(other)
    files.remove_file(other)
    assert files.names() == []


OTHER_NAMES = ["", "x.png", "../x.png", f"../{NAME}.png", f"{NAME}.png/../../x", f"{NAME}./x", f"{NAME}.png\n"]


@pytest.mark.parametrize("name", [*OTHER_NAMES, "/etc/passwd", "\x00"])
def test_other_names_are_neither_read_nor_written(files: ImageFiles, name: str) -> None:
    assert files.read(name) is None
    with pytest.raises(ValueError, match="not the name"):
        files.write(name, b"")
    files.remove([name])


def test_a_failed_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ImageFiles(str(tmp_path))
    files.write(f"{NAME}.png", b"old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CotrunkError, match="No space left"):
        files.write(f"{NAME}.png", b"new")
    assert files.read(f"{NAME}.png") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.png"]


def test_a_place_that_cannot_be_used_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CotrunkError, match=r"Cannot write to .*--images"):
        ImageFiles(str(tmp_path / "file" / "images"))
    with pytest.raises(CotrunkError, match=r"nothing://x cannot be used.*--images"):
        ImageFiles("nothing://x")


def test_temporary_files_of_killed_processes_are_removed_when_they_are_old(tmp_path: Path) -> None:
    files, name = ImageFiles(str(tmp_path)), f"img_{'0' * 24}.png"
    files.write(name, b"whole")
    old, new = (tmp_path / f".{name}.{number}.cotrunk-part" for number in (1, 2))
    for part, age in ((old, 7200), (new, 60)):
        part.write_bytes(b"half")
        os.utime(part, (time.time() - age,) * 2)
    files.remove_parts(time.time() - 3600)
    assert {path.name for path in tmp_path.iterdir()} == {name, new.name}
    ImageFiles("memory://parts").remove_parts(time.time())
