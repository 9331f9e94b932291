"""Tests run on one thread (the models are too small for more) and without the progress talk of diffusers. The command
line's tests have one model and one finished run in common."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from command import PROMPTS, QUICK, Outcome, cotrunk, one_model
from hypothesis import settings
from PIL import Image

from cotrunk.groups.captions import Pair

torch.set_num_threads(1)
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

settings.register_profile("cotrunk", deadline=None)  # a busy machine is no failure
settings.load_profile("cotrunk")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """`cotrunk` takes the embedded model that is loaded already; what to patch it with."""
    one_model(monkeypatch)
    return monkeypatch


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A finished run with its comparison, not to be changed."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "prompts.txt").write_text("\n\n".join(PROMPTS) + "\n", encoding="utf-8")
    prompts, out = folder / "prompts.txt", folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        one_model(patch)
        return out, cotrunk("generate", "--prompts", prompts, "--out", out, *QUICK, "--compare", "--seed", 5)


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[list[Pair]]:
    """Four groups of two or three images."""
    folder, draw, made = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for number, size in enumerate((2, 3, 2, 2)):
        made.append([])
        for member in range(size):
            path = folder / f"{number}{member}.png"
            Image.fromarray(draw.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(path)
            made[-1].append(Pair(f"a small picture {number}.{member}", path))
    return made
