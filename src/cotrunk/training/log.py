"""The log of a training run, with one line per step, and its loss curves."""

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

TERMS = ("total", "shared", "target", "branch")  # names of the logged terms of the loss


@dataclass(frozen=True)
class Step:
    """What one optimiser step did, for callbacks and the log.

    Attributes:
        number: from 1.
        of: number of steps of the run.
        terms: means over the passes of the step, over all processes.
        gradient: the norm of the gradient before clipping.
    """

    number: int
    of: int
    terms: Terms
    gradient: float


def write_step(path: Path, step: Step) -> None:
    """Append one line to the log.

    After a kill, the steps since the last checkpoint run again, so their lines appear twice. A gradient that overflowed
    in fp16 is written as null, because JSON has no infinity.
    """
    terms = {name: round(float(getattr(step.terms, name)), 6) for name in TERMS}
    gradient = round(step.gradient, 6) if math.isfinite(step.gradient) else None
    line = json.dumps({"step": step.number, **terms, "gradient": gradient}, allow_nan=False) + "\n"
    with writing(path), path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a line that a power cut left incomplete
                file.write(b"\n")
        file.write(line.encode())


def read_losses(path: Path) -> Iterator[dict[str, float]]:
    """Yield the logged losses in the order of steps, with the latest line of each.

    Incomplete lines, and lines that `write_step` did not write, are ignored.
    """
    latest = {line["step"]: line for line in read_lines(path) if _is_step(line)}
    yield from (latest[step] for step in sorted(latest))


def _is_step(line: Any) -> bool:
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return False
    values = [line.get(name) for name in TERMS]
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def plot_losses(log: Path, path: Path) -> None:
    """Plot the smoothed terms of the loss over the steps."""
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
