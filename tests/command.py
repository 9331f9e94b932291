"""The command line in this process, on one embedded model that is loaded once."""

import contextlib
import functools
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cotrunk import mini
from cotrunk.cli import app as cli
from cotrunk.mini import load as load_mini
from cotrunk.pipelines import loading
from cotrunk.planning import request
from cotrunk.planning.embedding import Encoder
from cotrunk.planning.threshold import auto_threshold

PROMPTS = ["a red apple", "a green apple", "a yellow apple", "a tiger", "a sleeping tiger", "a violin"]
QUICK = ("--steps", "3", "--share", "0.4", "--guidance", "3")  # groups (0 1 2) (3 4) (5), a trunk of one step
_THRESHOLDS: dict[str, float] = {}
ROUNDING = 2  # levels of 255 by which an image may differ when its batch is another


@functools.cache
def pipeline() -> Any:
    pipe = load_mini()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def _own_scheduler() -> Any:
    return pipeline().scheduler


def _measured_once(encoder: Encoder) -> float:
    """Return `auto_threshold`, computed once per encoder, because it embeds 48 prompts."""
    if encoder.name not in _THRESHOLDS:
        _THRESHOLDS[encoder.name] = auto_threshold(encoder)
    return _THRESHOLDS[encoder.name]


def one_model(patch: pytest.MonkeyPatch) -> None:
    """Let the command line use the loaded model with its own scheduler, and measure its text encoder once."""

    def load(dtype: Any) -> Any:
        pipe, own = pipeline(), _own_scheduler()
        pipe.scheduler = type(own).from_config(own.config)
        return pipe

    patch.setattr(mini, "load", load)
    patch.setattr(request, "auto_threshold", _measured_once)


def no_model(patch: pytest.MonkeyPatch) -> None:
    """Fail if a model is loaded."""

    def load(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a model was loaded")

    patch.setattr(loading, "load_pipeline", load)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def cotrunk(*arguments: object) -> Outcome:
    """Run `cotrunk ARGUMENTS` and return its exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["cotrunk", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
    return Outcome(code, out.getvalue(), err.getvalue())


def assert_refused(outcome: Outcome, *said: str) -> None:
    """Check that the exit code is 2 and standard error is one sentence that contains these texts."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    for text in said:
        assert text in outcome.err


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def read(folder: Path) -> dict[str, Any]:
    """Read the run.json of a run."""
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))
