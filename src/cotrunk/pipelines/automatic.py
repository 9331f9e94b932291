"""What "auto" stands for with a pipeline: whether trunks keep own noise and guidance, and whether images skip.

Each function returns a reason as a clause for a sentence, or None where nothing speaks against it. All of them look at
classes and configs only, so that the decision is made before any denoising. The first two need no denoiser.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import CotrunkError, first_clause
from .class_tables import MORE_GUIDANCE, NOT_SKIPPED, READS_ENCODED
from .compatibility import check_folds, check_pipeline, is_perturbed
from .cost import argument
from .noise_schedule import read_schedule


def why_not_own_noise(pipe: Any) -> str | None:
    """Return why the images of a trunk cannot keep their own noise."""
    kind = type(pipe).__name__
    if kind.startswith(READS_ENCODED):
        return f"{kind} reads input images that are encoded with the noise of each image"
    try:
        read_schedule(pipe.scheduler, ())
    except CotrunkError as error:
        return first_clause(error)
    return None


def why_guided(pipe: Any, arguments: Mapping[str, Any], rows: int) -> str | None:
    """Return why trunks cannot have less guidance than the pipeline.

    Args:
        arguments: of the call.
        rows: of one evaluation of one image, as `guidance_rows` predicts them.
    """
    kind = type(pipe).__name__
    if rows > 2:
        return f"{kind} computes {rows} rows per image"
    if is_perturbed(pipe) and (argument(pipe, arguments, "pag_scale") or 0) > 0:
        return f"{kind} computes a row with perturbed attention"
    return f"{kind} computes more than two rows per image" if kind in MORE_GUIDANCE else None


def why_not_skipped(pipe: Any) -> str | None:
    """Return why no evaluation can be skipped."""
    kind = type(pipe).__name__
    if why := next((why for name, why in NOT_SKIPPED.items() if kind.startswith(name)), None):
        return f"{kind} {why}"
    try:
        check_pipeline(pipe, max_rows=None, skips_rows=True)
        check_folds(pipe)
        read_schedule(pipe.scheduler, ())
    except CotrunkError as error:
        return first_clause(error)
    return None
