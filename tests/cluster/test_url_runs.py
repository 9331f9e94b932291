"""Runs on a cluster that are kept at a URL: after the run, everything that a single machine writes is there."""

import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from command import PROMPTS, assert_refused, cotrunk, read
from inline_cluster import Here, assert_same, downloaded, generate, journal, on_cluster

from cotrunk.cli.cluster_options import conclude_failed
from cotrunk.cluster import run_place
from cotrunk.cluster.painter import is_of_the_run
from cotrunk.cluster.run_place import RunPlace, placed
from cotrunk.errors import CotrunkError
from cotrunk.storage.files import StorageError, StoredFiles

NUMBERS = itertools.count()


@pytest.fixture
def url() -> str:
    pytest.importorskip("fsspec")
    return f"memory://run-{next(NUMBERS)}"


def test_a_run_at_a_url_is_that_of_a_single_machine(here: Here, single: Path, url: str, tmp_path: Path) -> None:
    outcome = on_cluster(url)
    assert outcome.code == 0, outcome.err
    assert f"Open {url}/index.html" in outcome.out
    assert not Path("memory:").exists()
    copy = downloaded(url, tmp_path / "copy")
    assert_same(single, copy)  # no lock, no manifest, no waves are left
    pages = [(folder / "index.html").read_text() for folder in (single, copy)]
    assert pages[1].count("<img ") == pages[0].count("<img ") == len(PROMPTS)
    assert generate(copy, "--resume").code == 0
    assert_refused(on_cluster(url), f"{url} already holds a run")
    waves = len(here.waves)
    assert f"Open {url}/index.html" in on_cluster(f"{url}/", "--resume").out
    assert len(here.waves) == waves
    assert_refused(on_cluster(url, "--resume", "--seed", 7), f"The run in {url} was started with seed 0, not 7")


@pytest.mark.parametrize("is_killed", [True, False])
def test_another_machine_resumes_a_run_at_a_url(
    here: Here, single: Path, url: str, tmp_path: Path, is_killed: bool
) -> None:
    def stop(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    here.before = stop
    with pytest.MonkeyPatch.context() as patch:
        if is_killed:  # the driver can do nothing after its first copy
            keep, calls = RunPlace.keep, itertools.count()
            patch.setattr(RunPlace, "keep", lambda self, **how: keep(self, **how) if not next(calls) else False)
        assert on_cluster(url).code == 130
    files = StoredFiles(url)
    if is_killed:
        assert (len(files.names("manifest")), files.get("journal.jsonl")) == (1, None)
    assert read(downloaded(url, tmp_path / "half"))["status"] == "running"
    here.before = lambda number: None
    first = list(here.waves)
    outcome = on_cluster(url, "--resume")
    assert outcome.code == 0, outcome.err
    assert here.waves[2:] == [first[1]]  # the wave that was finished is not painted again
    copy = downloaded(url, tmp_path / "copy")
    assert_same(single, copy)
    assert sorted(image for line in journal(copy) for image in line["images"]) == [*range(6)]


def test_a_part_of_a_killed_driver_does_not_speak_for_an_image_that_was_removed(here: Here, url: str) -> None:
    def stop(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    here.before, files, keep, calls = stop, StoredFiles(url), RunPlace.keep, itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunPlace, "keep", lambda self, **how: keep(self, **how) if not next(calls) else False)
        assert on_cluster(url).code == 130
    files.remove(files.names("images")[0])
    here.before = lambda number: None
    outcome = on_cluster(url, "--resume")
    assert outcome.code == 0, outcome.err
    assert len(files.names("images")) == len(PROMPTS)


def test_neither_does_a_part_that_is_joined_after_the_images_were_listed(
    here: Here, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_place, "OFTEN", 0.0)
    monkeypatch.setattr(run_place, "PART", 0.0)
    kept, remove, files = dict[str, bytes](), StoredFiles.remove, StoredFiles(url)

    def keep(self: StoredFiles, name: str) -> None:
        kept[name] = self.get(name) or b""
        remove(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredFiles, "remove", keep)
        assert on_cluster(url).code == 0
    lines = [line for line in (files.get("journal.jsonl") or b"").splitlines() if line]
    part = next(name for name in kept if name.startswith("manifest/") and lines[-1] in kept[name].splitlines())
    files.put("journal.jsonl", b"\n".join(line for line in lines if line not in kept[part].splitlines()))
    files.put(part, kept[part])
    files.put("run.json", (files.get("run.json") or b"").replace(b'"status": "done"', b'"status": "running"'))
    image = json.loads(lines[-1])["images"][0]
    files.remove(f"images/{image:05}.png")
    waves = len(here.waves)
    outcome = on_cluster(url, "--resume")
    assert outcome.code == 0, outcome.err
    assert files.get(f"images/{image:05}.png") is not None
    assert len(here.waves) == waves + 1


def test_images_in_folders_of_their_own_are_listed_together(
    here: Here, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each of a million images could take a request."""
    asked, system = list[str](), StoredFiles(url).system
    for name in ("ls", "find"):
        work = getattr(system, name)
        monkeypatch.setattr(
            system, name, lambda path, *args, work=work, **how: (asked.append(path), work(path, *args, **how))[1]
        )
    outcome = on_cluster(url, "--name", "{prompt}/{copy}")
    assert outcome.code == 0, outcome.err
    below = [path for path in asked if "/images" in path]
    assert len(below) == 2  # of the driver, and of the page
    assert not any("/images/" in path for path in asked)


def test_parts_stay_until_a_copy_of_the_journal_holds_their_lines(
    here: Here, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[tuple[int, int]]()
    files = StoredFiles(url)

    def look(number: int) -> None:
        lines = (files.get("journal.jsonl") or b"").count(b"shared")
        seen.append((lines, len(files.names("manifest"))))

    here.before = look
    assert on_cluster(url).code == 0
    assert seen == [(0, 0), (0, 1)]
    monkeypatch.setattr(run_place, "OFTEN", 0.0)
    monkeypatch.setattr(run_place, "PART", 0.0)
    seen.clear()
    files = StoredFiles(url + "-often")
    assert on_cluster(url + "-often").code == 0
    assert seen == [(0, 0), (1, 0)]


def test_an_image_that_was_removed_from_a_url_is_made_again(here: Here, url: str) -> None:
    assert on_cluster(url).code == 0
    files, waves = StoredFiles(url), len(here.waves)
    files.remove("images/00003.png")
    assert on_cluster(url, "--resume").code == 0
    assert files.get("images/00003.png") is not None
    assert len(here.waves) == waves + 1


def test_of_two_commands_at_one_url_the_first_one_stops(here: Here, url: str) -> None:
    files = StoredFiles(url)

    def take_over(number: int) -> None:
        files.put(".cotrunk.lock", b"another")

    here.before = take_over
    outcome = on_cluster(url)
    assert outcome.code == 2
    assert f"Another cotrunk has taken over the run in {url}, so this one stops" in outcome.err
    assert files.get(".cotrunk.lock") == b"another"


def test_a_command_that_is_refused_does_not_stop_the_one_that_runs(here: Here, url: str) -> None:
    refused = list[int]()

    def again(number: int) -> None:
        if not refused:
            refused.append(0)
            refused[0] = on_cluster(url).code

    here.before = again
    outcome = on_cluster(url)
    assert (refused, outcome.code) == ([2], 0), outcome.err


def test_what_another_command_wrote_is_kept_by_one_that_was_taken_over(
    here: Here, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy of the journal that is due is not made any more."""
    monkeypatch.setattr(run_place, "OFTEN", 0.0)
    monkeypatch.setattr(run_place, "PART", 0.0)
    files = StoredFiles(url)

    def take_over(number: int) -> None:
        files.put(".cotrunk.lock", b"another")
        files.put("journal.jsonl", b"of another\n")

    here.before = take_over
    assert on_cluster(url).code == 2
    assert files.get("journal.jsonl") == b"of another\n"
    with placed(f"{url}-other") as place, place.held():
        place.take()
        StoredFiles(f"{url}-other").put(".cotrunk.lock", b"another")
        with pytest.raises(CotrunkError, match="Another cotrunk has taken over"):
            place.keep(at_once=True)


def test_a_wave_is_finished_when_its_images_are_written(
    here: Here, single: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several threads write them, while the next ones are generated."""
    put, written, threads = StoredFiles.put, list[str](), set[str]()

    def slow(self: StoredFiles, name: str, content: bytes) -> None:
        folder = name.partition("/")[0]
        if folder == "images":
            threads.add(threading.current_thread().name)
            time.sleep(0.05)
        put(self, name, content)
        written.append(folder)

    monkeypatch.setattr(StoredFiles, "takes_threads", True)
    monkeypatch.setattr(StoredFiles, "put", slow)
    assert on_cluster(url).code == 0
    assert [name for name in written if name in {"images", "manifest"}] == [*["images"] * 3, "manifest"] * 2
    assert "MainThread" not in threads
    assert_same(single, downloaded(url, tmp_path / "copy"))


def test_an_image_that_cannot_be_written_by_a_thread_ends_the_run(
    here: Here, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = StoredFiles.put

    def refuse(self: StoredFiles, name: str, content: bytes) -> None:
        if name == "images/00005.png":
            raise StorageError("Cannot write it: name another place.")
        put(self, name, content)

    monkeypatch.setattr(StoredFiles, "takes_threads", True)
    monkeypatch.setattr(StoredFiles, "put", refuse)
    outcome = on_cluster(url)
    assert (outcome.code, outcome.err.splitlines()[-1]) == (
        2,
        "error: Cannot write it: name another place. Then continue with --resume.",
    )
    assert StoredFiles(url).names("failed") == []


def test_a_storage_that_fails_ends_the_run_and_blames_no_group() -> None:
    assert is_of_the_run(StorageError("Cannot write it."), is_prepared=True)
    assert not is_of_the_run(CotrunkError("The image is too large."), is_prepared=True)


def test_a_url_without_a_cluster_is_refused(tmp_path: Path) -> None:
    said = "is a URL, to which only a run with --ray can write: name a folder."
    assert_refused(cotrunk("generate", "a cat", "--out", "s3://bucket/run"), f"--out 's3://bucket/run' {said}")
    assert not Path("s3:").exists()


def test_messages_name_a_run_without_the_password_of_its_url(
    here: Here, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    StoredFiles(f"{url}/run").put("run.json", b"{}")
    with placed(f"{url}/run") as place:
        place.files.place = "sftp://user:secret@host/run"
        assert place.folder.name == "sftp://host/run"
    with pytest.raises(typer.Exit):
        conclude_failed(("failed/a.json",), "sftp://user:secret@host/run")
    assert "the tracebacks are in sftp://host/run: failed/a.json." in capsys.readouterr().err


def test_a_url_of_an_unknown_kind_is_refused() -> None:
    pytest.importorskip("fsspec")
    with (
        pytest.raises(CotrunkError, match=r"nothing://bucket cannot be used: .* name a folder with --out"),
        placed("nothing://bucket"),
    ):
        pass


def test_nothing_is_left_at_a_url_after_bad_input(here: Here, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cotrunk.cluster import run

    def refuse(*_: Any) -> None:
        raise CotrunkError("No machine has room.")

    monkeypatch.setattr(run, "on_ray", refuse)
    assert on_cluster(url).code == 2
    files = StoredFiles(url)
    assert not files.system.exists(files.root) or files.system.find(files.root) == []
