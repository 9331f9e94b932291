"""Stored files: the same in a folder and at a URL; errors name the place and the remedy."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from cotrunk.errors import CotrunkError
from cotrunk.storage.files import StorageError, StoredFiles, is_url, shown_place

NUMBERS = itertools.count()


@pytest.fixture(params=["folder", "file", "memory", "dir"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> StoredFiles:
    if request.param != "folder":
        pytest.importorskip("fsspec")
    places = {
        "folder": f"{tmp_path}/run",
        "file": f"file://{tmp_path}/run",
        "memory": f"memory://storage-{next(NUMBERS)}",
        "dir": f"dir::memory://storage-{next(NUMBERS)}",
    }
    return StoredFiles(places[request.param])


def test_a_file_is_written_replaced_read_and_removed(files: StoredFiles) -> None:
    assert (files.get("a/b.txt"), files.names("a"), files.names()) == (None, [], [])
    files.make()
    files.put("a/b.txt", b"one")
    files.put("a/b.txt", b"two")
    files.put("c.txt", b"three")
    files.put("a/.hidden", b"four")
    assert files.get("a/b.txt") == b"two"
    assert files.names("a") == ["a/b.txt"]
    assert files.names() == ["a", "c.txt"]
    for _ in range(2):
        files.remove("a/b.txt")
    assert (files.get("a/b.txt"), files.names("a")) == (None, [])


def test_a_url_of_this_machine_is_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    files = StoredFiles(f"file://{tmp_path}/run")
    assert files.folder == tmp_path / "run"
    files.put("x", b"y")  # by renaming: fsspec itself would write it in place, into a folder that exists
    assert (tmp_path / "run/x").read_bytes() == b"y"


def test_errors_name_the_file_the_place_and_the_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CotrunkError, match=r"Cannot write to .*file/below: Not a directory. Choose another --images"):
        StoredFiles(str(tmp_path / "file/below"), "--images").make()
    files = StoredFiles(str(tmp_path))
    for work, verb in ((files.get, "read"), (files.remove, "remove")):
        with pytest.raises(StorageError, match=rf"^Cannot {verb} folder in {tmp_path}: .*another place with --out\.$"):
            work("folder")
    with pytest.raises(StorageError, match=rf"^Cannot list file in {tmp_path}: Not a directory\. Check"):
        files.names("file")
    pytest.importorskip("fsspec")
    with pytest.raises(CotrunkError, match=r"^nothing://x cannot be used: .* or name a folder with --images\.$"):
        StoredFiles("nothing://x", "--images")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no credentials.\nmore")

    files = StoredFiles("memory://bucket")
    for name in ("pipe_file", "cat_file", "ls", "rm_file"):
        monkeypatch.setattr(files.system, name, fail)
    works = {"write": lambda: files.put("a", b""), "read": lambda: files.get("a"), "remove": lambda: files.remove("a")}
    for verb, what in works.items():
        with pytest.raises(StorageError, match=rf"^Cannot {verb} a in memory://bucket: no credentials\. Check that"):
            what()
    with pytest.raises(StorageError, match=r"^Cannot list memory://bucket: no credentials\."):
        files.names()


def test_a_write_that_finds_no_place_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Object stores say so of a bucket that does not exist; others need folders to be made first."""
    pytest.importorskip("fsspec")
    files, made = StoredFiles(f"memory://storage-{next(NUMBERS)}"), list[str]()
    write = files.system.pipe_file

    def pipe(path: str, content: bytes) -> None:
        if not made:
            raise FileNotFoundError("The specified bucket does not exist")
        write(path, content)

    monkeypatch.setattr(files.system, "pipe_file", pipe)
    monkeypatch.setattr(files.system, "makedirs", lambda path, exist_ok: None)
    with pytest.raises(StorageError, match=r"^Cannot write a/b in memory://.*: The specified bucket does not exist\."):
        files.put("a/b", b"one")
    monkeypatch.setattr(files.system, "makedirs", lambda path, exist_ok: made.append(path))
    files.put("a/b", b"one")
    assert files.get("a/b") == b"one"
    assert made == [f"{files.root}/a"]


def test_a_folder_is_removed_without_reading_wildcards_in_the_name_of_the_run() -> None:
    pytest.importorskip("fsspec")
    number = next(NUMBERS)
    own, other = (StoredFiles(f"memory://storage-{number}/run{end}") for end in ("?", "1"))
    for files in (own, other):
        files.put("manifest/a/b", b"x")
    own.remove_folder("manifest")
    assert (own.get("manifest/a/b"), other.get("manifest/a/b")) == (None, b"x")


@pytest.mark.parametrize(
    ("place", "is_one"),
    [
        ("s3://b/run", True),
        ("simplecache::s3://b", True),
        ("C://runs", False),
        ("/a/b", False),
        ("dir::file:///a", True),
    ],
)
def test_urls_are_told_from_paths(place: str, is_one: bool) -> None:
    assert is_url(place) == is_one


def test_passwords_in_urls_are_not_shown() -> None:
    assert shown_place("sftp://user:secret@host/a@b") == "sftp://host/a@b"
    assert shown_place("s3://bucket/a@b") == "s3://bucket/a@b"
    with pytest.raises(CotrunkError, match=r"^nothing://host cannot be used"):
        StoredFiles("nothing://user:secret@host")
