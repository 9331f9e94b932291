"""Runs of the driver without Ray: painters work in this process, one wave per look at the pass."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import PROMPTS, QUICK, assert_refused, cotrunk, pixels, read
from inline_cluster import Here, assert_same, generate, journal, on_cluster

from cotrunk.cluster.painter import Painter
from cotrunk.cluster.setup import Setup
from cotrunk.errors import CotrunkError
from cotrunk.execution import Batch, Run
from cotrunk.runs.job import Job
from cotrunk.storage.files import StoredFiles


def test_a_run_on_a_cluster_is_that_of_a_single_machine(here: Here, single: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = on_cluster(out)
    assert outcome.code == 0, outcome.err
    assert "6 images for" in outcome.out
    assert (len(here.waves), here.passes) == (2, 1)
    assert_same(single, out)
    assert (out / "plan.json").read_bytes() == (single / "plan.json").read_bytes()
    made = sorted(image for line in journal(out) for image in line["images"])
    assert made == [*range(6)]
    again = cotrunk("redo", out / "images/00001.png", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert (pixels(tmp_path / "again/00001.png") == pixels(out / "images/00001.png")).all()
    finished = on_cluster(out, "--resume")
    assert finished.code == 0, finished.err
    assert len(here.waves) == 2
    assert generate(out, "--resume").code == 0  # also without a cluster
    assert_refused(on_cluster(out), "already holds a run")


def test_a_lost_machine_costs_another_pass(here: Here, single: Path, tmp_path: Path) -> None:
    def lose(number: int) -> None:
        if number == 1:
            raise RuntimeError("the machine is gone")

    here.before = lose
    assert on_cluster(tmp_path / "run").code == 0
    assert here.passes == 2
    assert here.waves[0] == here.waves[1]
    assert len(here.waves) == 3
    assert_same(single, tmp_path / "run")


def test_a_run_whose_driver_was_killed_is_resumed(here: Here, single: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def kill(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    here.before = kill
    outcome = on_cluster(out)
    assert outcome.code == 130
    assert "of 6 images are finished" in outcome.err
    assert read(out)["status"] == "running"
    here.before = lambda number: None
    first = list(here.waves)
    assert on_cluster(out, "--resume").code == 0
    assert here.waves[2:] == [first[1]]  # the wave that was finished is not painted again
    assert_same(single, out)


@pytest.mark.parametrize("joined", [True, False])
def test_a_driver_that_was_killed_while_it_joined_a_part(here: Here, tmp_path: Path, joined: bool) -> None:
    out = tmp_path / "run"
    kept = list[tuple[str, bytes]]()
    with pytest.MonkeyPatch.context() as patch:
        remove = StoredFiles.remove
        patch.setattr(
            StoredFiles, "remove", lambda self, name: (kept.append((name, self.get(name) or b"")), remove(self, name))
        )
        assert on_cluster(out).code == 0
    for name, content in kept:
        if name.startswith("manifest/") and content:
            StoredFiles(str(out)).put(name, content)
    before = journal(out)
    if not joined:
        (out / "journal.jsonl").unlink()
    report = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**report, "status": "running"}))
    assert on_cluster(out, "--resume").code == 0
    assert len(here.waves) == 2
    assert sorted(map(str, journal(out))) == sorted(map(str, before))


def test_images_without_a_valid_line_are_joined_again_with_the_digests_that_they_had(
    here: Here, tmp_path: Path
) -> None:
    """After files were lost, two lines may know the digests of images of which only the smaller one is valid."""
    out = tmp_path / "run"
    assert on_cluster(out).code == 0
    lines = journal(out)
    one = next(line for line in lines if set(line["images"]) == {3, 4, 5})
    own = one["images"].index(3)
    small = {**one, **{name: [one[name][own]] for name in ("images", "image_rows", "steps", "digests")}}
    one["digests"][own] = "0" * 32
    lines.append(small)
    (out / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**report, "status": "running"}))
    outcome = on_cluster(out, "--resume")
    assert outcome.code == 0, outcome.err
    assert len(here.waves) == 3
    assert journal(out)[-1]["images"] == [3, 4, 5]
    assert journal(out)[-1]["digests"] == [small["digests"][0], *one["digests"][1:]]


@pytest.mark.slow
def test_a_wave_that_is_painted_twice_counts_once(here: Here, tmp_path: Path) -> None:
    here.paints = 2
    assert on_cluster(tmp_path / "run").code == 0
    assert len(here.waves) == 3  # the pass ends as soon as all waves are there
    assert sorted(image for line in journal(tmp_path / "run") for image in line["images"]) == [*range(6)]


@pytest.mark.slow
def test_a_cluster_finishes_the_run_of_a_single_machine_and_more_prompts(
    here: Here, single: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert generate(out, prompts=PROMPTS[:5]).code == 0
    (out / "images/00003.png").unlink()
    outcome = on_cluster(out, "--resume")
    assert outcome.code == 0, outcome.err
    assert len(here.waves) == 2  # of the group whose image was lost, and of the new prompt
    for i in range(6):
        assert (out / f"images/{i:05}.png").exists()
    assert read(out)["status"] == "done"


def breaking(monkeypatch: pytest.MonkeyPatch, error: type[BaseException], *, times: int, image: int = 3) -> list[int]:
    """Let each batch with an image fail some times. Return the sizes of the batches that were begun."""
    call, sizes = Run._call, list[int]()

    def failing(self: Run, trees: Any, on_step: Any) -> Batch:
        prompts = [self.plan.prompts[self.plan.prompt_of(i)] for tree in trees for i in tree.images]
        sizes.append(len(prompts))
        nonlocal times
        if PROMPTS[image] in prompts and times:
            times -= 1
            raise error("this group is poison")
        return call(self, trees, on_step)

    monkeypatch.setattr(Run, "_call", failing)
    return sizes


def test_a_poison_group_fails_alone(here: Here, single: Path, tmp_path: Path, model: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        sizes = breaking(patch, RuntimeError, times=9)
        outcome = generate(out, "--ray", "local", "--wave", 6)
    assert outcome.code == 3
    assert sizes == [6, 3, 2, 2, 1]  # together; then (0 1 2), twice the poison, and (5)
    [record] = (out / "failed").iterdir()
    assert (
        f"1 group failed three times, the others are done; the tracebacks are in {out}: failed/{record.name}"
        in outcome.err
    )
    data = json.loads(record.read_text())
    assert (data["images"], data["prompts"]) == ([3, 4], PROMPTS[3:5])
    assert data["error"] == "RuntimeError: this group is poison"
    assert "Traceback" in data["traceback"]
    assert sorted(path.name for path in (out / "images").iterdir()) == [f"{i:05}.png" for i in (0, 1, 2, 5)]
    assert not (out / "attempts").exists()
    report = read(out)
    assert (report["status"], [image["failed"] for image in report["images"]]) == (
        "failed images",
        [False] * 3 + [True] * 2 + [False],
    )
    error = "RuntimeError: this group is poison"
    group = report["images"][3]["group"]
    assert report["failures"] == [{"group": group, "images": [3, 4], "error": error, "file": f"failed/{record.name}"}]
    page = (out / "index.html").read_text()
    assert "2 images failed and are marked below." in page
    assert f'<a href="failed/{record.name}">group {group}</a>: {error}. The same command with --resume tries' in page
    resumed = on_cluster(out, "--resume")
    assert resumed.code == 0, resumed.err
    assert not any((out / "failed").iterdir())
    (out / "failed").rmdir()
    assert_same(single, out)


@pytest.mark.slow
def test_an_error_that_passes_costs_nothing(here: Here, single: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        breaking(patch, torch.OutOfMemoryError, times=1)
        assert on_cluster(tmp_path / "run").code == 0
    assert_same(single, tmp_path / "run")


@pytest.mark.slow
def test_a_group_whose_process_died_three_times_is_given_up(here: Here, tmp_path: Path) -> None:
    out = tmp_path / "run"
    deaths = 0

    class DeathError(BaseException):
        pass

    def die(self: Painter, wave: Any) -> str:
        nonlocal deaths
        try:
            return call(self, wave)
        except DeathError:
            deaths += 1
            raise RuntimeError("the process died") from None

    call = Painter.__call__
    with pytest.MonkeyPatch.context() as patch:
        sizes = breaking(patch, DeathError, times=9)
        patch.setattr(Painter, "__call__", die)
        outcome = generate(out, "--ray", "local", "--wave", 6)
    assert outcome.code == 3, outcome.err
    assert deaths == 3
    assert sizes == [6, 6, 3, 2, 3, 1]  # twice together, then each alone
    [record] = (out / "failed").iterdir()
    assert "ended without an exception" in json.loads(record.read_text())["traceback"]
    assert len([*(out / "images").iterdir()]) == 4


def test_an_error_of_the_input_ends_the_run(here: Here, tmp_path: Path) -> None:
    def refuse(number: int) -> None:
        raise CotrunkError("The model is damaged: download it again.")

    here.before = refuse
    outcome = on_cluster(tmp_path / "run")
    assert outcome.code == 2
    assert outcome.err.endswith("error: The model is damaged: download it again. Then continue with --resume.\n")


def test_a_painter_returns_errors_of_the_input(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    painter = Painter(Setup(Job(("a cat",), model=str(tmp_path / "none")), str(tmp_path), str(tmp_path)))
    assert "none" in painter({"id": "wave", "rows": 3, "recipe": "{}"})


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_blames_no_group(here: Here, tmp_path: Path) -> None:
    put = StoredFiles.put

    def full(self: StoredFiles, name: str, content: bytes) -> None:
        if name.startswith("images/"):
            raise CotrunkError("Cannot write it: No space left on device.") from OSError(28, "No space left on device")
        put(self, name, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredFiles, "put", full)
        outcome = on_cluster(tmp_path / "run")
    assert outcome.code == 2
    assert outcome.err.endswith("error: Cannot write it: No space left on device. Then continue with --resume.\n")
    assert not (tmp_path / "run/failed").exists()


@pytest.mark.slow
def test_records_of_layouts_are_written(here: Here, tmp_path: Path) -> None:
    suite = tmp_path / "suite.jsonl"
    suite.write_text("".join(json.dumps({"tag": "one", "prompt": prompt}) + "\n" for prompt in PROMPTS[:1]))
    for out, options in ((tmp_path / "one", ()), (tmp_path / "many", ("--ray", "local"))):
        outcome = cotrunk("generate", "--prompts", suite, *QUICK, "--layout", "geneval", "--out", out, *options)
        assert outcome.code == 0, outcome.err
    names = [
        sorted(str(path.relative_to(out)) for path in out.rglob("*")) for out in (tmp_path / "one", tmp_path / "many")
    ]
    assert names[0] == names[1]


def test_options_that_contradict_a_cluster(here: Here, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert_refused(on_cluster(out, "--compare"), "--compare is for a single machine, and --ray for a cluster")
    assert_refused(on_cluster(out, "--shard", "1/2"), "--shard is for a single machine")
    assert_refused(on_cluster(out, "--trunks", tmp_path / "trunks"), "--trunks is for a single machine")
    assert_refused(generate(out, "--wave", 3), "--wave is for a run on a cluster: add --ray ADDRESS, or leave it out.")
    assert_refused(generate(out, "--painters", 3), "--painters is for a run on a cluster")
    wrong = on_cluster(out, "--painters", "x")
    assert wrong.code == 2
    assert "Invalid value for '--painters'" in wrong.err
    assert_refused(on_cluster(out, "--painters", "0"), "painters 0 is out of range")
    assert_refused(
        on_cluster(out, "--gpus", "1.5"), "1.5 GPUs per painter: use a whole number, or a fraction of one GPU."
    )
    assert_refused(generate(out, "--ray", "local", "--wave", 0), "images per wave 0 is out of range")
    assert not out.exists()
