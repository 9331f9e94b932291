"""Checks of values that users give. Each returns a plain Python value, or raises one clear sentence."""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Real
from typing import Any

from .errors import CotrunkError

LARGEST_SEED = 2**63 - 1
LONGEST_SHOWN = 80  # characters of a wrong value that a message quotes


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return a Python int from a whole number of Python, numpy or torch.

    Raises:
        CotrunkError: the value is not a whole number, or is out of range; the message begins with `name`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        use = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise CotrunkError(f"{name} {shown(value)} is out of range: use a whole number {use}.")
    return number


def wholes(name: str, values: Any, example: str) -> tuple[int, ...]:
    """Return whole numbers of 1 or more from a list, a range or an array of them.

    Raises:
        CotrunkError: the value is not a list, is empty, or holds other values.
    """
    if not _is_list(values) or len(values) == 0:
        raise CotrunkError(f"{name} {shown(values)} is not a list of whole numbers: use {example}, for example.")
    return tuple(whole(name, value) for value in values)


def seeds_of(seed: Any) -> int | list[int]:
    """Return one seed, or a list with one per prompt from a list, a range or an array.

    Raises:
        CotrunkError: a seed is not a whole number from 0 to 2**63 - 1.
    """
    if _is_list(seed):
        return [whole("seed", each, 0, LARGEST_SEED) for each in seed]
    return whole("seed", seed, 0, LARGEST_SEED)


def number(
    name: str,
    value: Any,
    least: float = 0,
    most: float = math.inf,
    *,
    above: float | None = None,
    below: float | None = None,
    remark: str = "",
) -> float:
    """Return a finite Python float from a real number of Python or numpy.

    Args:
        least, most: the range, ends included.
        above, below: ends of the range that are excluded.
        remark: added to the range in the message.

    Raises:
        CotrunkError: the value is not a finite number, or is out of range.
    """
    found = _real(value)  # NaN compares false
    is_beyond = (above is not None and found <= above) or (below is not None and found >= below)
    if least <= found <= most and math.isfinite(found) and not is_beyond:
        return found
    start = f"{least:g} or more" if above is None else f"more than {above:g}"
    end = f"less than {below:g}" if below is not None else f"at most {most:g}" if most < math.inf else ""
    raise CotrunkError(f"{name} {shown(value)} is out of range: use {', '.join(filter(None, (start, end)))}{remark}.")


def window(name: str, value: Any) -> tuple[float, float]:
    """Return the start and the end of a part of a run, as fractions of its steps.

    Raises:
        CotrunkError: the value is not a pair of numbers with 0 <= start <= end <= 1.
    """
    ends = [_real(end) for end in value] if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(ends) != 2 or any(map(math.isnan, ends)):
        raise CotrunkError(f"{name} {shown(value)} is not a pair of numbers: use (0.1, 0.8), for example.")
    if not 0 <= ends[0] <= ends[1] <= 1:
        raise CotrunkError(f"{name} {shown(value)} is out of range: use 0 <= start <= end <= 1.")
    return ends[0], ends[1]


def one_of(name: str, value: Any, known: Sequence[str]) -> str:
    """Return the value if it is one of the known words.

    Raises:
        CotrunkError: the value is another word, or not a word.
    """
    if not isinstance(value, str) or value not in known:
        first, last = ", ".join(known[:-1]), known[-1]
        raise CotrunkError(f"{name} {shown(value)} is unknown: use {f'{first} or {last}' if first else last}.")
    return value


def flag(name: str, value: Any) -> bool:
    """Return the value if it is True or False.

    Raises:
        CotrunkError: another value.
    """
    if not isinstance(value, bool):
        raise CotrunkError(f"{name} {shown(value)} is not a truth value: use True or False.")
    return value


def text(name: str, value: Any) -> str:
    """Return the value if it is a text that is not empty.

    Raises:
        CotrunkError: another value, or an empty text.
    """
    if not isinstance(value, str) or not value:
        raise CotrunkError(f"{name} {shown(value)} is not a name: use a text that is not empty.")
    return value


def entries_of(name: str, data: Any, kind: type) -> dict[str, Any]:
    """Return the entries of a JSON object whose keys are fields of a dataclass.

    Raises:
        CotrunkError: it is not an object, or has an unknown key.
    """
    known = [each.name for each in fields(kind)]
    if not isinstance(data, Mapping):
        raise CotrunkError(f"{name} is a {type(data).__name__}: give an object with {', '.join(known)}.")
    if unknown := [key for key in data if key not in known]:
        raise CotrunkError(f"{name} has the unknown key {shown(unknown[0])}: use {', '.join(known)}.")
    return dict(data)


def shown(value: Any) -> str:
    """Return the value as messages quote it: its repr, cut if it is long."""
    found = repr(value)
    return found if len(found) <= LONGEST_SHOWN else f"{found[: LONGEST_SHOWN - 3]}..."


def _is_list(value: Any) -> bool:
    """Return whether the value is a list or an array of one dimension, of numpy or torch."""
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return is_sequence or getattr(value, "ndim", 0) == 1


def _real(value: Any) -> float:
    """Return a real number of Python or numpy as a float; NaN for anything else."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an int beyond every float
        return math.inf
