"""A cluster in this process, for tests of the driver of a run."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import PROMPTS, QUICK, ROUNDING, Outcome, cotrunk, one_model, pixels, read
from pyarrow import parquet

from cotrunk.cluster import run as cluster_run
from cotrunk.cluster.driver import Driver
from cotrunk.cluster.painter import Painter
from cotrunk.cluster.run_place import RunPlace
from cotrunk.cluster.setup import Setup
from cotrunk.errors import CotrunkError
from cotrunk.runs.job import Job
from cotrunk.storage.files import StoredFiles

Before = Callable[[int], None]


@dataclass
class Here:
    """A cluster in this process. A pass is an instance of `InlinePass`."""

    before: Before = lambda number: None  # called before each wave, with its number since the beginning
    waves: list[str] = field(default_factory=list)  # ids of the waves that were begun
    passes: int = 0
    paints: int = 1  # how often each wave is painted

    def driver(self, job: Job, place: RunPlace, cluster: Any, on_event: Any, begin: float) -> Driver:
        setup = cluster_run.setup_of(job, place.files.place)
        return Driver(job, place, setup, "cpu", self.start, on_event, begin, cluster.wave or 6, poll=0)

    def start(self, files: Sequence[str], setup: Setup) -> "InlinePass":
        self.passes += 1
        return InlinePass(self, files, Painter(setup))


class InlinePass:
    def __init__(self, here: Here, files: Sequence[str], painter: Painter) -> None:
        self.here, self.painter = here, painter
        system = painter.store.system
        waves = [row for path in files for row in parquet.read_table(path, filesystem=system).to_pylist()]
        self.rows = [row for row in waves for _ in range(here.paints)]

    def ended(self) -> str | None:
        if not self.rows:
            return ""
        row = self.rows.pop(0)
        self.here.waves.append(row["id"])
        try:
            self.here.before(len(self.here.waves))
            error = self.painter(row)
        except RuntimeError as lost:  # the machine
            return f"{lost}"
        if error:
            raise CotrunkError(error)
        return None

    def stop(self) -> None:
        pass


def with_cluster(model: pytest.MonkeyPatch) -> Iterator[Here]:
    """Yield a cluster that `cotrunk generate --ray local` uses instead of Ray."""
    folder, threads = Path.cwd(), torch.get_num_threads()
    found = Here()
    model.setattr(cluster_run, "connected", lambda cluster: nullcontext())
    model.setattr(cluster_run, "on_ray", found.driver)
    yield found
    assert Path.cwd() == folder
    torch.set_num_threads(threads)


def generate(out: str | Path, *options: object, prompts: Sequence[str] = PROMPTS) -> Outcome:
    return cotrunk("generate", *prompts, *QUICK, "--out", out, *options)


def on_cluster(out: str | Path, *options: object, prompts: Sequence[str] = PROMPTS) -> Outcome:
    return generate(out, "--ray", "local", "--wave", 3, *options, prompts=prompts)


def single_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the run of a single machine, with plan.json for the others."""
    folder = tmp_path_factory.mktemp("single") / "run"
    with pytest.MonkeyPatch.context() as patch:
        one_model(patch)
        assert generate(folder).code == 0
    return folder


def downloaded(url: str, folder: Path) -> Path:
    """Copy everything at a URL to a folder."""
    files = StoredFiles(url)
    for path in files.system.find(files.root):
        name = path.removeprefix(files.root).lstrip("/")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files.system.cat_file(path))
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
