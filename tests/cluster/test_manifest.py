"""The manifest: whole parts are read, damaged ones are not; attempts of a wave outlive the process."""

from pathlib import Path

import pytest
from run_folders import FACTS, batch

from cotrunk.cluster.attempts import Attempts
from cotrunk.cluster.manifest import Finished, parts, read_part, remove_parts, write_part
from cotrunk.runs.journal import line_of
from cotrunk.storage.files import StoredFiles

LINES = (line_of("shared", batch(0, 1), ("a", "b"), lambda image: image + 10),)


@pytest.fixture(params=["folder", "url"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StoredFiles:
    if request.param == "folder":
        return StoredFiles(str(tmp_path / "run"))
    pytest.importorskip("fsspec")
    return StoredFiles(f"memory://{tmp_path.name}")


def test_a_part_is_read_as_it_was_written(store: StoredFiles) -> None:
    assert parts(store) == []
    finished = Finished("wave", 7, 1.5, "machine", FACTS, ("failed/wave-3.json",), LINES)
    write_part(store, finished)
    [name] = parts(store)
    found = read_part(store, name)
    assert found == finished
    assert found is not None
    assert found.lines == LINES
    assert found.lines[0].images == (10, 11)
    remove_parts(store, [name, name])
    assert parts(store) == []
    assert read_part(store, name) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}\n", b'{"wave": 3}', b"\xff\xfe"])
def test_a_damaged_part_is_none(store: StoredFiles, content: bytes) -> None:
    store.put("manifest/wave.jsonl", content)
    assert read_part(store, "manifest/wave.jsonl") is None


def test_temporary_files_are_not_parts(tmp_path: Path) -> None:
    store = StoredFiles(str(tmp_path))
    write_part(store, Finished("wave", 1, 1.0))
    (tmp_path / "manifest/.other.jsonl.7.cotrunk-part").write_text("{}")
    assert parts(store) == ["manifest/wave.jsonl"]


def test_deaths_and_failures_are_counted(store: StoredFiles) -> None:
    attempts = Attempts(store, "wave")
    attempts.begin([1, 2])  # and the process dies
    attempts = Attempts(store, "wave")
    assert attempts.counts == {1: 1, 2: 1}
    assert not attempts.runs_alone(1)
    attempts.begin([1, 2])
    attempts = Attempts(store, "wave")
    assert attempts.runs_alone(2)
    assert not attempts.is_given_up(2)
    attempts.begin([2])
    attempts.failed([2])  # an exception: the process lives on
    attempts = Attempts(store, "wave")
    assert attempts.counts == {1: 2, 2: 3}
    assert attempts.is_given_up(2)
    attempts.forget()
    assert Attempts(store, "wave").counts == {}


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"counts": 3}', b'{"running": 3}', b'{"counts": {"x": 1}}'])
def test_a_damaged_record_of_attempts_counts_nothing(store: StoredFiles, content: bytes) -> None:
    store.put("attempts/wave.json", content)
    assert Attempts(store, "wave").counts == {}
