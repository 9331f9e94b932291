"""Warming up and compiling happen before denoising is timed."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from command import PROMPTS, QUICK, cotrunk

from cotrunk.execution import Run


@pytest.mark.parametrize(
    ("options", "said", "interval"),
    [
        (("--compile",), "Compiling", (0.0, 0.5)),
        (("--compile", "--noise", "common"), "Compiling", None),
        (("--compile", "--guidance-interval", 0.1, 0.9), "Compiling", (0.0, 0.5)),
        (("--compare", "--noise", "common"), "Warming up", None),
    ],
)
def test_nothing_is_compiled_while_denoising_is_timed(
    model: pytest.MonkeyPatch, tmp_path: Path, options: tuple[object, ...], said: str, interval: Any
) -> None:
    """A compiled denoiser treats many rows and one row as two shapes. An image without guidance has one row."""
    runs, stati, original = list[Run](), list[str](), Run.batches
    model.setattr(Run, "batches", lambda self, **more: runs.append(self) or original(self, **more))
    model.setattr("cotrunk.pipelines.loading._check_compiler", lambda device: None)
    model.setattr(torch.nn.Module, "compile", lambda self, **how: None)
    model.setattr("cotrunk.cli.progress.err.status", lambda text: stati.append(text) or contextlib.nullcontext())
    outcome = cotrunk("generate", *PROMPTS[:3], "--out", tmp_path / "run", *QUICK, *options)
    assert outcome.code == 0, outcome.err
    assert [len(run.plan) for run in runs][:3] == [3, 1, 3]
    assert [run.settings.guidance_interval for run in runs[:2]] == [interval, interval]
    assert said in stati


def test_a_run_without_compiling_or_comparing_is_not_warmed_up(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model.setattr("cotrunk.runs.part_run.warm_up", lambda *_, **__: pytest.fail("warmed up"))
    assert cotrunk("generate", *PROMPTS[:2], "--out", tmp_path / "run", *QUICK).code == 0


def test_compiling_is_done_before_denoising_is_timed(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    began, batches = list[int](), Run.batches
    model.setattr("cotrunk.pipelines.loading._check_compiler", lambda device: None)
    model.setattr(torch.nn.Module, "compile", lambda self, **how: None)
    model.setattr("cotrunk.runs.part_run.warm_up", lambda pipe, texts, *_, **__: began.append(len(texts)))
    model.setattr(Run, "batches", lambda run, **given: began.append(0) or batches(run, **given))
    outcome = cotrunk("generate", *PROMPTS[:2], "--out", tmp_path / "run", *QUICK, "--compile")
    assert outcome.code == 0, outcome.err
    assert began == [2, 1, 0]  # many rows and one row, which may be another shape; then the run that is timed


def test_warming_up_compiles_the_shapes_of_the_run(model: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts, batches = list[int](), Run.batches
    model.setattr("cotrunk.pipelines.loading._check_compiler", lambda device: None)
    model.setattr(torch.nn.Module, "compile", lambda self, **how: None)
    model.setattr(Run, "batches", lambda run, **given: counts.append(len(run.plan)) or batches(run, **given))
    several = ("--images-per-prompt", 3, *QUICK, "--compile")
    outcome = cotrunk("generate", *PROMPTS[:2], "--out", tmp_path / "run", *several)
    assert outcome.code == 0, outcome.err
    assert counts == [6, 1, 6]
