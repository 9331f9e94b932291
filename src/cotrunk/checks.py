"""Numbers that users give: whole ones, however they are held (int, numpy, torch), in their range."""

import operator
from collections.abc import Sequence
from typing import Any

from .errors import CotrunkError

LARGEST_SEED = 2**63 - 1


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return a whole number of Python's from one of Python, numpy or torch.

    Raises:
        CotrunkError: not a whole number, or one out of range; the message begins with `name`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        use = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise CotrunkError(f"{name} {value!r} is out of range: use a whole number {use}.")
    return number


def seeds_of(seed: Any) -> int | list[int]:
    """Return one seed, or a list with one per prompt, from whatever holds them: a list, a range, an array.

    Raises:
        CotrunkError: neither a whole number from 0 to 2**63 - 1 nor several of them.
    """
    several = isinstance(seed, Sequence) and not isinstance(seed, str | bytes)
    if several or getattr(seed, "ndim", 0) == 1:  # an array or a tensor of one dimension
        return [whole("seed", each, 0, LARGEST_SEED) for each in seed]
    return whole("seed", seed, 0, LARGEST_SEED)
