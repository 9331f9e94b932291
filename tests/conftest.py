"""Tests run on one thread, because the models are too small for more, and without the progress bars of diffusers. The
tests of the command line share one model and one finished run."""

from collections.abc import Iterator
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from command import PROMPTS, QUICK, Outcome, cotrunk, one_model
from hypothesis import settings
from PIL import Image
from run_folders import ARM, FACTS, JOB, JOB_PLAN, PLAN

from cotrunk.groups.captions import Pair
from cotrunk.runs.folder import RunFolder

torch.set_num_threads(1)
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

settings.register_profile("cotrunk", deadline=None, max_examples=50)  # a busy machine is not a failure
settings.load_profile("cotrunk")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let `cotrunk` use the embedded model that is already loaded, and return a MonkeyPatch for it."""
    one_model(monkeypatch)
    return monkeypatch


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Return the folder of a finished run with its comparison. Tests must not change it."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "prompts.txt").write_text("\n\n".join(PROMPTS) + "\n", encoding="utf-8")
    prompts, out = folder / "prompts.txt", folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        one_model(patch)
        return out, cotrunk("generate", "--prompts", prompts, "--out", out, *QUICK, "--compare", "--seed", 5)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Run a PostgreSQL server, and return the URL of its databases for `databases.new_database`."""
    from databases import server  # packages of an extra

    with server() as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return the folder of a run with a plan and no images yet."""
    folder = RunFolder(tmp_path / "deep" / "run")
    assert folder.make() is False
    assert list(folder.path.iterdir()) == []
    folder.write_report(JOB, FACTS, JOB_PLAN, [ARM], {"load": 1.0})
    PLAN.save(folder.path / "plan.json")
    return folder


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[list[Pair]]:
    """Return four groups of two or three images."""
    folder, draw, made = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for number, size in enumerate((2, 3, 2, 2)):
        made.append([])
        for member in range(size):
            path = folder / f"{number}{member}.png"
            Image.fromarray(draw.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(path)
            made[-1].append(Pair(f"a small picture {number}.{member}", path))
    return made
