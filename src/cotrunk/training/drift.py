"""Warn if the trunk of a fine-tune drifts away from its groups."""

import itertools
import warnings
from pathlib import Path
from statistics import median

from .log import read_losses
from .loss import Loss

# steps that are averaged at both ends of the log
WINDOW = 20
# A healthy trunk keeps its error within a small factor. On mini-dit, a trunk that was lost reached 1,000 times its
# first error (recipes/sage-mini).
DRIFT = 10.0


def warn_of_drift(loss: Loss, log: Path) -> None:
    """Warn if the trunk's error for the mean latents of a group has grown out of proportion since training began.

    This can happen only if nothing holds the trunk in place: lambda_1 = 0, and the trained model is its own teacher.
    The error has no weight there, but it is logged.

    Args:
        loss: the objective.
        log: the file of `log.write_step`.
    """
    if loss.objective != "sage" or loss.shared_weight or loss.teacher != "self":
        return
    errors = [line["shared"] for line in read_losses(log)]
    if len(errors) < 2 * WINDOW:
        return
    first, last = median(itertools.islice(errors, WINDOW)), median(errors[-WINDOW:])
    if last > DRIFT * first:
        warnings.warn(
            f'The trunk drifts away: its error for the mean of a group ("shared" in losses.jsonl) has grown more than '
            f"{DRIFT:g} times since the first steps, because nothing holds it in place. Use teacher 'pre-trained' "
            "(--teacher pre-trained), or a shared weight above 0 (--shared-weight).",
            stacklevel=3,
        )
