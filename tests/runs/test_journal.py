"""The journal of a run and its images: which batches count as finished."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from run_folders import ARM, FACTS, JOB, PLAN, batch, write

from cotrunk.errors import CotrunkError
from cotrunk.execution import Batch
from cotrunk.planning.plan import Cost
from cotrunk.runs import journal
from cotrunk.runs.folder import RunFolder


def test_the_journal_adds_up(folder: RunFolder) -> None:
    assert folder.progress(ARM).images == set()
    write(folder, batch(0, 1), batch(2, failed=(2,), rows=6))
    done = folder.progress(ARM)
    assert (done.images, done.failed, done.cost) == ({0, 1, 2}, {2}, Cost(16, 18))
    assert done.seconds == {"embed": 2.0, "denoise": 4.0, "decode": 6.0}
    assert not (folder.path / "images/00002.png").exists()
    assert folder.progress(ARM.compared("independent", PLAN)).images == set()


@pytest.mark.parametrize("tail", [b'\n{"arm": "shared", "im', b"\n\xff\xfe", b"\n\0\0\0\0", b"\n"])
def test_a_torn_line_is_ignored_and_the_next_one_counts(folder: RunFolder, tail: bytes) -> None:
    write(folder, batch(0, 1))
    with (folder.path / "journal.jsonl").open("ab") as journal:
        journal.write(tail)
    assert folder.progress(ARM).images == {0, 1}
    write(folder, batch(2, rows=6))
    assert folder.progress(ARM).cost == Cost(16, 18)


def test_a_batch_without_its_images_is_not_finished(folder: RunFolder) -> None:
    write(folder, batch(0, 1), batch(2, rows=6))
    (folder.path / "images/00001.png").unlink()
    assert folder.progress(ARM).images == {2}
    write(folder, batch(0, 1))
    assert folder.progress(ARM).images == {0, 1, 2}
    assert folder.progress(ARM).cost == Cost(16, 18)


def test_a_batch_that_was_split_and_then_finished_counts_once(folder: RunFolder) -> None:
    """Running out of memory splits a batch. If the run is killed after its first half, --resume runs it as a whole."""
    write(folder, batch(0, 1), batch(0, 1, 2, rows=16))
    assert folder.progress(ARM).cost == Cost(16, 18)


def test_image_files_hold_prompt_seed_group_and_rows(folder: RunFolder) -> None:
    write(folder, batch(0, 1), batch(2))
    with Image.open(folder.path / "images/00000.png") as opened:
        opened.load()
        assert opened.text["prompt"] == "a [red] äpple"
        assert (opened.text["seed"], opened.text["group"], opened.text["rows"]) == ("7", "0", "5")
    with Image.open(folder.path / "images/00002.png") as opened:
        assert opened.text["group"] == "1"


DAMAGES = {
    "zeros in the middle": lambda content: content[:60] + bytes(20) + content[80:],
    "cut": lambda content: content[:-5],
    "empty": lambda content: b"",
    "text that ends like a PNG": lambda content: b"not an image" * 20 + content[-12:],
    "another image": lambda content: another(),
    "one bit": lambda content: content[:70] + bytes([content[70] ^ 1]) + content[71:],
}


def another() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (0, 99, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_image_is_made_again(folder: RunFolder, damage: str) -> None:
    write(folder, batch(0, 1), batch(2, rows=6))
    assert RunFolder(folder.path).progress(ARM).images == {0, 1, 2}
    path = folder.files.path(ARM, 1)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert folder.progress(ARM).images == RunFolder(folder.path).progress(ARM).images == {2}
    write(folder, batch(0, 1))
    assert folder.progress(ARM).images == {0, 1, 2}
    assert folder.progress(ARM).cost == Cost(16, 18)


def test_an_image_that_is_a_folder_or_a_pipe_is_not_read(folder: RunFolder) -> None:
    write(folder, batch(0, 1))
    folder.files.path(ARM, 1).unlink()
    folder.files.path(ARM, 1).mkdir()
    assert folder.progress(ARM).images == set()
    folder.files.path(ARM, 1).rmdir()
    os.mkfifo(folder.files.path(ARM, 1))
    assert folder.progress(ARM).images == set()


def test_a_process_reads_an_image_once(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    read, read_bytes = list[str](), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    write(folder, batch(0, 1), batch(2, rows=6))
    for _ in range(3):
        assert folder.progress(ARM).images == {0, 1, 2}
    assert read == []  # it was written by this one
    later = RunFolder(folder.path)
    for _ in range(3):
        assert later.progress(ARM).images == {0, 1, 2}
    assert sorted(read) == ["00000.png", "00001.png", "00002.png"]


@pytest.mark.parametrize("line", ["1", "[]", "{}", "null", '"x"', '{"arm": "shared"}', "[" * 100_000, "NaN", "\x85"])
def test_a_line_that_is_not_an_entry_is_ignored(folder: RunFolder, line: str) -> None:
    write(folder, batch(0, 1), batch(2, rows=6))
    with (folder.path / "journal.jsonl").open("a", encoding="utf-8") as journal:
        journal.write("\n" + line)
    assert folder.progress(ARM).images == {0, 1, 2}


def test_a_pipeline_without_images_is_reported(folder: RunFolder) -> None:
    frames = Batch((0,), SimpleNamespace(frames=[]), (), (), Cost(1, 1), {}, ("C",), (1.0,), {})
    with pytest.raises(CotrunkError, match=r"without images: use cotrunk\.generate"):
        folder.write_batch(ARM, frames, JOB, FACTS)


def test_a_line_is_parsed_once(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, lines_of = list[bytes](), journal.lines_of
    monkeypatch.setattr(journal, "lines_of", lambda content: parsed.append(content) or lines_of(content))
    write(folder, batch(0, 1))
    for images in ({0, 1}, {0, 1}):
        assert folder.progress(ARM).images == images
    write(folder, batch(2, rows=6))
    for _ in range(2):
        assert folder.progress(ARM).cost == Cost(16, 18)
    assert sum(b'"images": [0, 1]' in content for content in parsed) == 3  # twice as the last line of the file


def test_a_journal_that_was_changed_is_read_again(folder: RunFolder) -> None:
    write(folder, batch(0, 1), batch(2, rows=6))
    assert folder.progress(ARM).images == {0, 1, 2}
    file = folder.path / "journal.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"images": [0, 1]', b'"images": [0, 9]'))
    assert folder.progress(ARM).images == {2}
    file.unlink()
    assert folder.progress(ARM).images == set()


def test_parts_of_the_journal_are_read_too(folder: RunFolder) -> None:
    write(folder, batch(0, 1))
    (folder.path / "manifest").mkdir()
    (folder.path / "journal.jsonl").rename(folder.path / "manifest/b.jsonl")
    assert folder.progress(ARM).images == {0, 1}
    write(folder, batch(2, rows=6))
    assert folder.progress(ARM).images == {0, 1, 2}
    (folder.path / "manifest/a.jsonl").write_bytes((folder.path / "journal.jsonl").read_bytes())
    assert folder.progress(ARM).cost == Cost(16, 18)  # each batch counts once
