"""One command at a time writes to a folder."""

import errno
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from captioned import folder_of
from command import assert_refused, cotrunk, no_model

from cotrunk import lock
from cotrunk.errors import CotrunkError
from cotrunk.lock import NAME, locked
from cotrunk.runs.folder import RunFolder

HELD = "Another cotrunk is writing to"
HOLDER = """
import sys, pathlib
from cotrunk.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_command_is_refused_and_no_lock_file_remains(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with locked(folder) as held:
        held.check()
        with (
            pytest.raises(CotrunkError, match=f"{HELD} .*run: wait until it is done, or choose another --out"),
            locked(folder),
        ):
            pass
        held.check()  # the refused command changed nothing
    assert list(folder.iterdir()) == []
    with locked(folder), locked(tmp_path / "deep"):  # a folder inside another has its own lock
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(CotrunkError, match=HELD), locked(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    assert (tmp_path / NAME).exists()
    assert RunFolder(tmp_path).make() is False  # the lock is not a run
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def _claim(folder: Path, barrier: "multiprocessing.synchronize.Barrier", won: "multiprocessing.Queue[bool]") -> None:
    for turn in range(20):
        barrier.wait()
        try:
            with locked(folder / f"{turn}" / "run"):
                won.put(True)
                barrier.wait()
        except CotrunkError:
            barrier.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_of_three_simultaneous_commands_one_gets_a_new_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, won = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_claim, args=(tmp_path, barrier, won)) for _ in range(3)]
    for process in processes:
        process.start()
    assert sum(won.get(timeout=60) for _ in range(20)) == 20
    for process in processes:
        process.join()
    assert won.empty()


def test_a_lock_file_that_was_removed_meanwhile_is_locked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_it, seen = lock._lock, list[int]()

    def lock_late(descriptor: int) -> None:
        if not seen:
            (tmp_path / NAME).unlink()  # as if the holder finished between our opening and locking of the file
        seen.append(descriptor)
        lock_it(descriptor)

    monkeypatch.setattr(lock, "_lock", lock_late)
    with locked(tmp_path) as held:
        held.check()
        assert len(seen) == 2
        with pytest.raises(CotrunkError, match=HELD), locked(tmp_path):
            pass


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_removed_is_noticed(again: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder) as held:
        shutil.rmtree(folder)
        if again:
            with locked(folder) as other:  # of another run
                with pytest.raises(CotrunkError, match="was removed"):
                    held.check()
                other.check()
        with pytest.raises(CotrunkError, match=r"run or its \.cotrunk\.lock was removed"):
            held.check()


def test_a_file_system_without_locks_gives_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", refuse)
    outcome = cotrunk("dataset", tmp_path, "--out", tmp_path / "set")
    assert "set is on a file system without locks: let no other command write to it" in outcome.err
    with locked(tmp_path / "set") as held:
        assert not held.is_kept


def test_a_folder_that_cannot_be_created_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file/run", tmp_path / ("x" * 300)):
        with pytest.raises(CotrunkError, match="Cannot write"), locked(folder):
            pass
    (tmp_path / "odd" / NAME).mkdir(parents=True)
    with pytest.raises(CotrunkError, match="Cannot write"), locked(tmp_path / "odd"):
        pass


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    similar = ("--similarity-min", 0.3, "--similarity-max", 0.99)
    outcome = cotrunk("dataset", folder_of(folder / "in", "jsonl"), "--out", folder / "set", *similar)
    assert outcome.code == 0, outcome.err
    assert not (folder / "set" / NAME).exists()
    return folder / "set"


PROMPTS = ("a cat", "a dog", "a cow", "a hen")


@pytest.mark.parametrize("command", ["generate", "resume", "tune", "dataset", "train", "evaluate"])
def test_every_command_that_writes_a_folder_keeps_others_out(
    command: str, groups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_model(monkeypatch)
    monkeypatch.setattr("cotrunk.groups.captions.read_pairs", lambda *_: pytest.fail("read"))
    given = {
        "generate": ("generate", *PROMPTS),
        "resume": ("generate", *PROMPTS, "--resume"),
        "tune": ("tune", *PROMPTS),
        "dataset": ("dataset", tmp_path),
        "train": ("train", groups),
        "evaluate": ("evaluate", groups),
    }[command]
    with locked(tmp_path / "run") as held:
        outcome = cotrunk(*given, "--out", tmp_path / "run")
        assert outcome.code == 2
        assert outcome.err.splitlines()[-1].startswith(f"error: {HELD}")
        held.check()
        assert [path.name for path in (tmp_path / "run").iterdir()] == [NAME]


def test_only_the_first_process_of_a_training_locks_the_folder(
    groups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cotrunk.pipelines.loading.load_pipeline", lambda *_, **__: pytest.fail("on"))
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path), pytest.raises(pytest.fail.Exception, match="on"):
        cotrunk("train", groups, "--out", tmp_path)
    monkeypatch.setenv("RANK", "0")
    with locked(tmp_path):
        assert_refused(cotrunk("train", groups, "--out", tmp_path), HELD)


def test_temporary_files_of_a_killed_command_are_removed_and_other_files_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = [tmp_path / name for name in (".run.json.7.cotrunk-part", "images/.00003.png.7.cotrunk-part")]
    others = [tmp_path / name for name in (".download.77.part", "mine/.x.7.cotrunk-part", "images/mine.part")]
    for path in (*halves, *others):
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    (tmp_path / "run.json").write_text("{")
    no_model(monkeypatch)
    cotrunk("generate", "a cat", "--out", tmp_path, "--resume")
    assert [path.exists() for path in (*halves, *others)] == [False, False, True, True, True]
