"""Runs of the driver without Ray: painters work in this process, one wave per look at the pass."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import PROMPTS, QUICK, ROUNDING, Outcome, assert_refused, cotrunk, one_model, pixels, read
from pyarrow import parquet

from cotrunk.cluster import run as cluster_run
from cotrunk.cluster.driver import Driver
from cotrunk.cluster.painter import Painter
from cotrunk.cluster.setup import Setup
from cotrunk.cluster.store import Store
from cotrunk.errors import CotrunkError
from cotrunk.execution import Batch, Run
from cotrunk.runs.folder import RunFolder
from cotrunk.runs.job import Job

Before = Callable[[int], None]


@dataclass
class Here:
    """A cluster in this process. A pass is an instance of `InlinePass`."""

    before: Before = lambda number: None  # called before each wave, with its number since the beginning
    waves: list[str] = field(default_factory=list)  # ids of the waves that were begun
    passes: int = 0
    paints: int = 1  # how often each wave is painted

    def driver(self, job: Job, folder: RunFolder, lock: Any, cluster: Any, on_event: Any, begin: float) -> Driver:
        setup = cluster_run.setup_of(job, str(folder.path))
        return Driver(job, folder, lock, setup, "cpu", self.start, on_event, begin, cluster.wave, poll=0)

    def start(self, files: Sequence[Path], setup: Setup) -> "InlinePass":
        self.passes += 1
        return InlinePass(self, files, Painter(setup))


class InlinePass:
    def __init__(self, here: Here, files: Sequence[Path], painter: Painter) -> None:
        self.here, self.painter = here, painter
        waves = [row for path in files for row in parquet.read_table(path).to_pylist()]
        self.rows = [row for row in waves for _ in range(here.paints)]

    def ended(self) -> str | None:
        if not self.rows:
            return ""
        row = self.rows.pop(0)
        self.here.waves.append(row["id"])
        try:
            self.here.before(len(self.here.waves))
            done = self.painter({name: [value] for name, value in row.items()})
        except RuntimeError as error:  # the machine is lost
            return f"{error}"
        assert done["error"] == [""]
        return None

    def stop(self) -> None:
        pass


@pytest.fixture
def here(model: pytest.MonkeyPatch) -> Iterator[Here]:
    """Return a cluster that `cotrunk generate --ray local` uses instead of Ray."""
    folder, threads = Path.cwd(), torch.get_num_threads()
    found = Here()
    model.setattr(cluster_run, "connected", lambda cluster: nullcontext())
    model.setattr(cluster_run, "on_ray", found.driver)
    yield found
    assert Path.cwd() == folder
    torch.set_num_threads(threads)


def generate(out: Path, *options: object, prompts: Sequence[str] = PROMPTS) -> Outcome:
    return cotrunk("generate", *prompts, *QUICK, "--out", out, *options)


def on_cluster(out: Path, *options: object, prompts: Sequence[str] = PROMPTS) -> Outcome:
    return generate(out, "--ray", "local", "--wave", 3, *options, prompts=prompts)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the run of a single machine, with plan.json for the others."""
    folder = tmp_path_factory.mktemp("single") / "run"
    with pytest.MonkeyPatch.context() as patch:
        one_model(patch)
        assert generate(folder).code == 0
    return folder


def assert_same(one: Path, other: Path, *, missing: Sequence[int] = ()) -> None:
    """Check that two runs hold the same images and, but for times, the same report."""
    for i in range(len(PROMPTS)):
        if i not in missing:
            mine, others = (pixels(folder / f"images/{i:05}.png").astype(int) for folder in (one, other))
            assert np.abs(mine - others).max() <= ROUNDING
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    assert without_times(read(one)) == without_times(read(other))


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name != "seconds"}


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines() if line]


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
        remove = Store.remove
        patch.setattr(
            Store, "remove", lambda self, name: (kept.append((name, self.get(name) or b"")), remove(self, name))
        )
        assert on_cluster(out).code == 0
    for name, content in kept:
        if name.startswith("manifest/") and content:
            Store(str(out)).put(name, content)
    before = journal(out)
    if not joined:
        (out / "journal.jsonl").unlink()
    report = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**report, "status": "running"}))
    assert on_cluster(out, "--resume").code == 0
    assert len(here.waves) == 2
    assert sorted(map(str, journal(out))) == sorted(map(str, before))


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

    def die(self: Painter, batch: Any) -> Any:
        nonlocal deaths
        try:
            return call(self, batch)
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
    assert outcome.err.endswith("error: The model is damaged: download it again.\n")


def test_a_painter_returns_errors_of_the_input(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    painter = Painter(Setup(Job(("a cat",), model=str(tmp_path / "none")), str(tmp_path), str(tmp_path)))
    done = painter({"id": ["wave"], "rows": [3], "recipe": ["{}"]})
    assert done["id"] == ["wave"]
    assert "none" in done["error"][0]


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_blames_no_group(here: Here, tmp_path: Path) -> None:
    put = Store.put

    def full(self: Store, name: str, content: bytes) -> None:
        if name.startswith("images/"):
            raise CotrunkError("Cannot write it: No space left on device.") from OSError(28, "No space left on device")
        put(self, name, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "put", full)
        patch.setattr(InlinePass, "ended", lambda self: _raising(self))
        outcome = on_cluster(tmp_path / "run")
    assert outcome.code == 2
    assert outcome.err.endswith("error: Cannot write it: No space left on device.\n")
    assert not (tmp_path / "run/failed").exists()


def _raising(self: InlinePass) -> str | None:
    row = self.rows.pop(0)
    [error] = self.painter({name: [value] for name, value in row.items()})["error"]
    if error:
        raise CotrunkError(error)
    return None


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
    assert_refused(
        on_cluster(out, "--painters", "x"), "--painters 'x' is not a number: use N, or MIN-MAX such as 2-16."
    )
    assert_refused(on_cluster(out, "--painters", "3-2"), "3 painters are more than 2")
    assert_refused(on_cluster(out, "--painters", "0"), "painters 0 is out of range")
    assert_refused(
        on_cluster(out, "--gpus", "1.5"), "1.5 GPUs per painter: use a whole number, or a fraction of one GPU."
    )
    assert_refused(generate(out, "--ray", "local", "--wave", 0), "images per wave 0 is out of range")
    assert not out.exists()
