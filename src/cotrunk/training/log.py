"""The log of a training: one line per step, and its curves."""

import functools
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_lines, write_bytes, writing
from .loss import Terms

TERMS = ("total", "shared", "target", "branch")  # of the loss, as they are logged


@dataclass(frozen=True)
class Step:
    """What one optimiser step did, for those who watch."""

    number: int  # from 1
    of: int
    terms: Terms  # means over the passes of the step, in all processes
    gradient: float


def write_step(path: Path, step: Step) -> None:
    """One line per step; lines from beyond the checkpoint that a killed run went back to are written again.

    A gradient that overflowed, as some do in fp16, is null: JSON has no infinity.
    """
    terms = {name: round(float(getattr(step.terms, name)), 6) for name in TERMS}
    gradient = round(step.gradient, 6) if math.isfinite(step.gradient) else None
    line = json.dumps({"step": step.number, **terms, "gradient": gradient}, allow_nan=False) + "\n"
    with writing(path), path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # torn by a power cut
                file.write(b"\n")
        file.write(line.encode())


def read_losses(path: Path) -> Iterator[dict[str, float]]:
    """The log of a training, step by step, the latest line of each. Lines that `write_step` did not write are passed
    over, as those that are torn."""
    latest = {line["step"]: line for line in read_lines(path) if _is_step(line)}
    yield from (latest[step] for step in sorted(latest))


def _is_step(line: Any) -> bool:
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return False
    values = [line.get(name) for name in TERMS]
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def plot_losses(log: Path, path: Path) -> None:
    """The terms of the loss over the steps, smoothed."""
    from ..plotting import new_figure

    lines = list(read_losses(log))
    figure = new_figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    width = max(1, len(lines) // 50)
    for name in TERMS:
        values = np.array([line[name] for line in lines])
        if values.any():
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            axis.plot([line["step"] for line in lines][width - 1 :], smooth, label=name)
    axis.set_xlabel("optimiser steps")
    axis.set_ylabel(f"loss, mean of {width} steps" if width > 1 else "loss")
    axis.grid(alpha=0.25)
    if lines:
        axis.legend()
    write_bytes(path, functools.partial(figure.savefig, format="png", dpi=110))
