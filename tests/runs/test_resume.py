"""Runs that were stopped: killed, interrupted, resumed, or resumed with other settings."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import PROMPTS, QUICK, ROUNDING, Outcome, assert_refused, cotrunk, no_model, pixels, read

from cotrunk.planning.plan import Plan
from cotrunk.runs.folder import RunFolder
from cotrunk.settings import Batching


@pytest.fixture
def batches_of_3(model: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    model.setattr(Batching.__init__, "__defaults__", (3, None, None))
    return model


KILLED = """
import os, signal
from cotrunk import settings
from cotrunk.cli import app
from cotrunk.runs import folder
settings.Batching.__init__.__defaults__ = (3, None, None)
write = folder.RunFolder.write_batch
def write_and_die(self, *args):
    write(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)
folder.RunFolder.write_batch = write_and_die
app.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_kill_and_resume(batches_of_3: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cotrunk("generate", *PROMPTS, "--out", whole, *QUICK).code == 0
    arguments = ["generate", *PROMPTS, "--out", str(cut), *QUICK]
    # one thread, as in this process: another number of threads rounds sums differently
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    first = sorted((cut / "images").iterdir())
    assert [path.name for path in first] == ["00000.png", "00001.png", "00002.png"]
    assert read(cut)["status"] == "running"
    with (cut / "journal.jsonl").open("a") as journal:
        journal.write('\n{"arm": "shared", "images": [3, 4')  # torn
    (cut / "images/.00003.png.77.cotrunk-part").write_bytes(b"half")
    before = [path.stat().st_mtime_ns for path in first]

    outcome = cotrunk(*arguments, "--resume")

    assert outcome.code == 0, outcome.err
    assert [path.stat().st_mtime_ns for path in first] == before
    assert (cut / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()
    assert sorted(path.name for path in (cut / "images").iterdir()) == [f"{i:05d}.png" for i in range(6)]
    for path in sorted((whole / "images").iterdir()):
        difference = pixels(path).astype(int) - pixels(cut / "images" / path.name)
        assert np.abs(difference).max() <= ROUNDING, path.name
    resumed, straight = read(cut), read(whole)
    changing = {"seconds"}
    assert {k: v for k, v in resumed.items() if k not in changing} == {
        k: v for k, v in straight.items() if k not in changing
    }
    seconds = resumed["seconds"]
    assert seconds["total"] >= seconds["denoise"] + seconds["decode"]


def test_interrupt_and_resume(batches_of_3: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out, write = tmp_path / "run", RunFolder.write_batch

    def write_and_interrupt(self: RunFolder, *args: Any) -> None:
        write(self, *args)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for background jobs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "write_batch", write_and_interrupt)
        outcome = cotrunk("generate", *PROMPTS, "--out", out, *QUICK)
    signal.signal(signal.SIGINT, before)
    assert outcome.code == 130
    assert "Stopped: 3 of 6 images are finished. Continue with --resume." in outcome.err
    assert "Traceback" not in outcome.err
    for image in range(3):
        assert pixels(out / f"images/{image:05d}.png").shape == (128, 128, 3)
    assert cotrunk("generate", *PROMPTS, "--out", out, *QUICK, "--resume").code == 0
    assert read(out)["status"] == "done"
    assert len(list((out / "images").iterdir())) == 6


def test_stopped_before_there_is_a_plan(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(self: Plan, path: Path) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    arguments = ("generate", *PROMPTS[:2], "--out", out, "--steps", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "save", stop)
        assert cotrunk(*arguments).code == 130
    assert not (out / "plan.json").exists()
    assert cotrunk(*arguments, "--resume").code == 0
    assert read(out)["status"] == "done"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "4"], "steps 3, not 4"),
        (["--share", "0.5"], "share 0.4, not 0.5"),
        (["--seed", "6"], "seed 5, not 6"),
        (["--scheduler", "euler"], "scheduler None, not 'euler'"),
    ],
)
def test_resume_with_other_settings(
    run: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    no_model(monkeypatch)
    folder, _ = run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    given = dict(zip(QUICK[::2], QUICK[1::2], strict=True)) | {"--seed": "5"} | dict([options])
    settings = [part for option in given.items() for part in option]
    outcome = cotrunk("generate", *PROMPTS, "--out", folder, "--compare", *settings, "--resume")
    assert_refused(outcome, said, "same settings")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path != folder} == {
        path: time for path, time in before.items() if path != folder
    }


def test_resume_with_other_prompts(run: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    no_model(monkeypatch)
    outcome = cotrunk("generate", "a dog", "--out", run[0], *QUICK, "--compare", "--seed", 5, "--resume")
    assert_refused(outcome, "other prompts")


def test_resume_of_a_finished_run(run: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    no_model(monkeypatch)
    folder, _ = run
    (folder / "index.html").unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    outcome = cotrunk("generate", *PROMPTS, "--out", folder, *QUICK, "--compare", "--seed", 5, "--resume")
    assert outcome.code == 0, outcome.err
    assert "finished: there is nothing to resume" in outcome.out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (folder / "index.html").exists()
