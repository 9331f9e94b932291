"""The number of steps and the guidance scale that a pipeline has by itself.

They are the defaults in the signature of its call: 28 steps and 3.5 for Flux, 20 and 4.5 for PixArt. A pipeline whose
class does not suit its model states other ones, as the embedded models do, whose classes are made for larger models.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import CotrunkError

# An attribute of a pipeline object: names of arguments of its call -> what suits its model. A direct call of the
# pipeline does not know them, and no file keeps them.
STATED = "cotrunk_defaults"


def own_default(pipe: Any, name: str) -> Any:
    """Return the default of an argument of the pipeline's call; None if it has no such argument or no default."""
    stated: Mapping[str, Any] = getattr(pipe, STATED, {})
    if name in stated:
        return stated[name]
    parameter = inspect.signature(type(pipe).__call__).parameters.get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def own_steps(pipe: Any) -> int:
    """Return the number of inference steps that the pipeline takes by itself.

    Raises:
        CotrunkError: it has no such number.
    """
    steps = own_default(pipe, "num_inference_steps")
    if not isinstance(steps, int):
        raise CotrunkError(
            f"{type(pipe).__name__} has no number of steps of its own: say how many (--steps, num_inference_steps)."
        )
    return steps


def own_guidance(pipe: Any) -> float | None:
    """Return the guidance scale that the pipeline has by itself; None if it takes none, or has guidance of its own."""
    scale = own_default(pipe, "guidance_scale")
    return None if scale is None else float(scale)
