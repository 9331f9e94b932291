"""Stop a training run whose loss, gradient or weights are no longer finite."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..errors import CotrunkError
from .log import TERMS, Step
from .settings import TrainSettings

SMALLEST_SCALE = 1e-4  # of the loss in fp16, as in fairseq: below it, a gradient overflows at any scale


class DivergenceError(CotrunkError):
    """A loss, gradient or weight is not finite, so that training cannot continue. The message says what was kept."""


def are_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether every number is finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def check_finite(step: Step, scaler: Any, last_checkpoint: int, settings: TrainSettings, out: Path) -> None:
    """Check that the loss and the gradient of a step are finite.

    In fp16 some gradients overflow. `accelerate` then skips the optimiser step and halves the scale of the loss, until
    gradients fit again. Where a tiny scale does not help either, the gradient itself is not finite.

    Args:
        scaler: the gradient scaler of `accelerate`; None without fp16.
        last_checkpoint: the step of the last checkpoint; 0 if there is none.

    Raises:
        DivergenceError: the loss or the gradient is not finite.
    """
    if not are_finite(getattr(step.terms, name) for name in TERMS):
        what = "loss"
    elif not math.isfinite(step.gradient) and (scaler is None or scaler.get_scale() < SMALLEST_SCALE):
        what = "gradient"
    else:
        return
    raise divergence(f"the {what} of step {step.number} is", last_checkpoint, settings, out, step.number == 1)


def divergence(
    what: str, last_checkpoint: int, settings: TrainSettings, out: Path, is_first_step: bool = False
) -> DivergenceError:
    """Return the error for something that is not finite, with the remedy.

    Args:
        what: the subject and its verb, such as "the loss of step 4 is".
        is_first_step: whether nothing was trained before.
    """
    if is_first_step:
        remedy = "before anything was learnt: use another --dtype or --mixed-precision, or another model"
    elif not last_checkpoint:
        remedy = f"and there is no checkpoint yet: start again with a --learning-rate below {settings.learning_rate:g}"
    else:
        remedy = (
            f"and the checkpoint of step {last_checkpoint} is kept in {out}: --steps {last_checkpoint} makes a LoRA "
            f"of it; to train again, choose another --out and a --learning-rate below {settings.learning_rate:g}"
        )
    return DivergenceError(f"Training diverged: {what} not finite, {remedy}.")
