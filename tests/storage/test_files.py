"""Stored files: the same in a folder and at a URL; errors name the place and the remedy."""

import errno
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cotrunk.errors import CotrunkError
from cotrunk.storage.files import StorageError, StoredFiles

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


def test_files_are_listed_with_those_in_folders_below(files: StoredFiles) -> None:
    assert (files.names_below(), files.names_below("a")) == ([], [])
    for name in ("c.txt", "a/d/1.txt", "a/b.txt", "a/.part", "a/.hidden/x", "ab/e.txt"):
        files.put(name, b"")
    assert files.names_below() == ["a/b.txt", "a/d/1.txt", "ab/e.txt", "c.txt"]
    assert files.names_below("a") == ["a/b.txt", "a/d/1.txt"]
    assert files.names_below("a/d") == ["a/d/1.txt"]


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one() -> None:
    """The general `find` of fsspec would leave it out."""
    fsspec = pytest.importorskip("fsspec")
    asyn = pytest.importorskip("fsspec.asyn")

    def listed(path: str) -> list[dict[str, Any]]:
        if path.endswith("closed"):
            raise PermissionError("it is closed")
        if path.endswith("gone"):  # since its own folder was listed
            raise FileNotFoundError(path)
        kinds = {"1.txt": "file", last: "directory", "": "directory"} if path.endswith("top") else {}
        return [{"name": f"{path}/{name}", "type": kind, "size": 0} for name, kind in kinds.items()]

    class Plain(fsspec.AbstractFileSystem):  # type: ignore[misc,name-defined]
        def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
            return listed(path)

    class Async(asyn.AsyncFileSystem):  # type: ignore[misc,name-defined]
        async def _ls(self, path: str, detail: bool = True, **_: Any) -> Any:
            return listed(path)

    files = StoredFiles("memory://top")
    for system in (Plain(), Async()):
        files.system, last = system, "gone"
        assert files.names_below() == ["1.txt"]
        last = "closed"
        with pytest.raises(StorageError, match=r"^Cannot list memory://top: it is closed\."):
            files.names_below()


def test_the_empty_objects_that_stand_for_folders_are_not_files(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    files = StoredFiles("memory://top")
    monkeypatch.setattr(files.system, "find", lambda path: [path, f"{path}/", f"{path}/a/", f"{path}/a/1.txt"])
    assert files.names_below() == ["a/1.txt"]


def test_only_asynchronous_systems_take_several_threads(tmp_path: Path) -> None:
    asyn = pytest.importorskip("fsspec.asyn")
    files = StoredFiles("memory://top")
    assert not files.takes_threads
    files.system = asyn.AsyncFileSystem()
    assert files.takes_threads
    assert not StoredFiles(str(tmp_path)).takes_threads


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
    with pytest.raises(StorageError, match=rf"^Cannot list file in {tmp_path}: Not a directory\. Check"):
        files.names_below("file")
    pytest.importorskip("fsspec")
    with pytest.raises(CotrunkError, match=r"^nothing://x cannot be used: .* or name a folder with --images\.$"):
        StoredFiles("nothing://x", "--images")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no connection.\nmore")

    files = StoredFiles("memory://bucket")
    for name in ("pipe_file", "cat_file", "ls", "find", "rm_file"):
        monkeypatch.setattr(files.system, name, fail)
    works = {"write": lambda: files.put("a", b""), "read": lambda: files.get("a"), "remove": lambda: files.remove("a")}
    for verb, what in works.items():
        with pytest.raises(StorageError, match=rf"^Cannot {verb} a in memory://bucket: no connection\. Check that"):
            what()
    for listed in (files.names, files.names_below):
        with pytest.raises(StorageError, match=r"^Cannot list memory://bucket: no connection\."):
            listed()


SLOW_DOWN = OSError(errno.EBUSY, "Please reduce your request rate.")


def failing(patch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception, times: int) -> list[int]:
    """Let a function fail some times. Return a list with an entry per call."""
    work, calls = getattr(owner, name), list[int]()

    def fail(*arguments: Any, **how: Any) -> Any:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error
        return work(*arguments, **how)

    patch.setattr(owner, name, fail)
    return calls


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the pauses that are made, which take no time."""
    found = list[float]()
    monkeypatch.setattr("cotrunk.storage.files.time.sleep", found.append)
    return found


WORKS: dict[str, Callable[[StoredFiles], Any]] = {
    "pipe_file": lambda files: files.put("a/b", b"two"),
    "cat_file": lambda files: files.get("a/b"),
    "ls": lambda files: files.names("a"),
    "find": lambda files: files.names_below("a"),
    "rm_file": lambda files: files.remove("a/b"),
}


@pytest.mark.parametrize("name", WORKS)
def test_what_fails_for_a_moment_is_tried_again(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, slept: list[float]
) -> None:
    pytest.importorskip("fsspec")
    files, same = (StoredFiles(f"memory://storage-{next(NUMBERS)}") for _ in range(2))
    for each in (files, same):
        each.put("a/b", b"one")
    expected = WORKS[name](same)
    calls = failing(monkeypatch, files.system, name, SLOW_DOWN, times=3)
    assert WORKS[name](files) == expected
    assert (len(calls), slept) == (4, [1.0, 4.0, 16.0])
    assert [said.partition(" in ")[2] for said in caplog.messages] == [
        f"{files.place}: Please reduce your request rate; trying again in {pause} s" for pause in (1, 4, 16)
    ]
    assert (files.get("a/b"), files.names("a")) == (same.get("a/b"), same.names("a"))


def test_what_fails_again_and_again_is_an_error(monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> None:
    pytest.importorskip("fsspec")
    files = StoredFiles("memory://bucket", pauses=(2.0,))
    calls = failing(monkeypatch, files.system, "pipe_file", SLOW_DOWN, times=9)
    with pytest.raises(StorageError, match=r"^Cannot write a in memory://bucket: Please reduce your request rate"):
        files.put("a", b"")
    assert (len(calls), slept) == (2, [2.0])


def test_what_does_not_pass_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> None:
    pytest.importorskip("fsspec")
    files = StoredFiles("memory://bucket")
    calls = failing(monkeypatch, files.system, "cat_file", PermissionError("Access Denied"), times=9)
    with pytest.raises(StorageError, match=r"^Cannot read a in memory://bucket: Access Denied\."):
        files.get("a")
    assert (len(calls), slept) == (1, [])


def test_in_a_folder_it_is_tried_again_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, slept: list[float]
) -> None:
    """It may be a mounted bucket, or on a network file system."""
    files = StoredFiles(str(tmp_path))
    stale = OSError(errno.ESTALE, "Stale file handle")
    calls = failing(monkeypatch, Path, "replace", stale, times=1)
    files.put("a", b"one")
    assert (files.get("a"), len(calls), slept) == (b"one", 2, [1.0])
    assert caplog.messages == [f"Cannot write a in {tmp_path}: Stale file handle; trying again in 1 s"]
    failing(monkeypatch, Path, "replace", OSError(errno.ENOSPC, "No space left on device"), times=1)
    with pytest.raises(CotrunkError, match=r"a: No space left on device\. Free some space or choose another path\.$"):
        files.put("a", b"two")
    assert slept == [1.0]


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


class Buckets:
    """A file system with buckets. Like that of S3, it can make a bucket together with a folder."""

    def __init__(self) -> None:
        self.buckets, self.contents = {"mine"}, dict[str, bytes]()

    def pipe_file(self, path: str, content: bytes) -> None:
        self.mkdir(path, create_parents=False)
        self.contents[path] = content

    def mkdir(self, path: str, create_parents: bool = True) -> None:
        bucket = path.partition("/")[0]
        if bucket not in self.buckets:
            if not create_parents:
                raise FileNotFoundError("The specified bucket does not exist")
            self.buckets.add(bucket)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.mkdir(path)


def test_a_bucket_is_never_made() -> None:
    pytest.importorskip("fsspec")
    files, buckets = StoredFiles("memory://storage"), Buckets()
    files.system = buckets
    for root in ("mien/run", "mien"):
        files.root = root
        for write in (files.make, lambda: files.put("run.json", b"")):
            with pytest.raises(StorageError, match=r"^Cannot write \S+ in memory://storage: The specified bucket"):
                write()
    assert buckets.buckets == {"mine"}
    files.root = "mine/run"
    files.put("a/b", b"one")
    assert buckets.contents == {"mine/run/a/b": b"one"}


def test_folders_are_made_where_paths_begin_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    files, made = StoredFiles("memory://storage"), list[str]()

    def pipe(path: str, content: bytes) -> None:
        if "server/run/a" not in made:
            raise FileNotFoundError(path)

    monkeypatch.setattr(files.system, "pipe_file", pipe)
    monkeypatch.setattr(files.system, "mkdir", lambda path, create_parents: made.append(path))
    files.root = "server/run"
    files.put("a/b", b"one")
    assert made == ["server/run", "server/run/a"]


def test_a_place_is_written_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    files = StoredFiles(f"memory://storage-{next(NUMBERS)}", "--images")
    files.make()
    assert files.system.find(files.root) == []

    def refuse(path: str, content: bytes) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(files.system, "pipe_file", refuse)
    with pytest.raises(
        StorageError, match=r"Access Denied\. Check the credentials and .* another place with --images\.$"
    ):
        files.make()


def test_what_a_library_says_is_quoted_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    files = StoredFiles("memory://run")
    files.place = "sftp://user:p%40ss@host/run"

    def fail(*_: Any) -> None:
        raise ValueError("Parameter validation failed:\nNo host user:p%40ss@host takes p@ss")

    monkeypatch.setattr(files.system, "cat_file", fail)
    said = "Cannot read a in sftp://host/run: Parameter validation failed: No host host takes ***."
    with pytest.raises(StorageError) as caught:
        files.get("a")
    assert f"{caught.value}".startswith(said)


def test_urls_that_name_no_bucket_or_hold_a_password_in_its_name() -> None:
    pytest.importorskip("fsspec")
    for place in ("memory://", "memory:///"):
        with pytest.raises(CotrunkError, match=rf"^{place} names no bucket: write memory://BUCKET/FOLDER with --out"):
            StoredFiles(place)
    with pytest.raises(CotrunkError, match=r"^memory://bucket/run is given with a user and .* out of --images"):
        StoredFiles("memory://KEY:SEC/RET@bucket/run", "--images")


def test_a_third_slash_does_not_become_a_part_of_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    assert StoredFiles("memory:///bucket/run").root == "/bucket/run"
    monkeypatch.setattr(StoredFiles("memory://x").system, "split_path", None, raising=False)  # as object stores have it
    assert StoredFiles("memory:///bucket/run").root == "bucket/run"


def test_a_long_error_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    files = StoredFiles("memory://run")
    failing(monkeypatch, files.system, "cat_file", ValueError("x" * 1000), times=1)
    with pytest.raises(StorageError, match=r"^Cannot read a in memory://run: x{200}\. Check that it can be reached"):
        files.get("a")
