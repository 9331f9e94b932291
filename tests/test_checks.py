"""Checks of single values: they return plain Python values, and one sentence says what is wrong."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cotrunk import CotrunkError
from cotrunk.checks import flag, number, one_of, seeds_of, text, whole, wholes, window


@given(value=st.integers(-5, 5), least=st.integers(-3, 3), most=st.none() | st.integers(-3, 3))
def test_whole_numbers_are_those_in_range(value: int, least: int, most: int | None) -> None:
    is_inside = least <= value and (most is None or value <= most)
    for held in (value, np.int64(value), torch.tensor(value)):
        if is_inside:
            assert type(whole("n", held, least, most)) is int
            assert whole("n", held, least, most) == value
        else:
            with pytest.raises(CotrunkError, match=r"^n .* is out of range: use a whole number"):
                whole("n", held, least, most)


@given(value=st.floats(-2, 2), above=st.none() | st.floats(-1, 1), below=st.none() | st.floats(-1, 1))
def test_numbers_are_those_in_range(value: float, above: float | None, below: float | None) -> None:
    is_inside = -1 <= value <= 1 and (above is None or value > above) and (below is None or value < below)
    if is_inside:
        assert number("x", value, -1, 1, above=above, below=below) == value
    else:
        with pytest.raises(CotrunkError, match=r"^x .* is out of range: use "):
            number("x", value, -1, 1, above=above, below=below)


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, 10**400, 1j, [1.0], torch.ones(2)])
def test_what_is_not_a_finite_number_is_reported(value: Any) -> None:
    with pytest.raises(CotrunkError, match="is out of range: use 0 or more") as caught:
        number("x", value)
    assert len(str(caught.value)) < 150
    if not isinstance(value, int) or isinstance(value, bool):
        with pytest.raises(CotrunkError, match="is out of range: use a whole number of 1 or more"):
            whole("n", value)


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (window, (0.5, 0.1), "w .* is out of range: use 0 <= start <= end <= 1"),
        (window, (0.1, 0.5, 0.9), "w .* is not a pair of numbers"),
        (window, (True, 1), "w .* is not a pair of numbers"),
        (window, "01", "w .* is not a pair of numbers"),
        (flag, 0, "w 0 is not a truth value: use True or False"),
        (text, "", "w '' is not a name"),
        (seeds_of, [1, 2.0], "seed 2.0 is out of range"),
        (seeds_of, 2**63, "seed .* is out of range"),
    ],
)
def test_wrong_values_are_reported(check: Any, value: Any, message: str) -> None:
    with pytest.raises(CotrunkError, match=message):
        check(value) if check is seeds_of else check("w", value)


def test_an_unknown_word_is_refused_with_the_known_ones() -> None:
    assert one_of("mode", "flat", ("flat", "tree")) == "flat"
    with pytest.raises(CotrunkError, match="mode 'round' is unknown: use flat, adaptive or tree"):
        one_of("mode", "round", ("flat", "adaptive", "tree"))
    with pytest.raises(CotrunkError, match="mode 3 is unknown: use flat"):
        one_of("mode", 3, ("flat",))


def test_lists_and_arrays_of_whole_numbers() -> None:
    for values in ([2, 4], (2, 4), range(2, 5, 2), np.array([2, 4]), torch.tensor([2, 4])):
        assert wholes("sizes", values, "(2, 4)") == (2, 4)
        assert seeds_of(values) == [2, 4]
    for values in (8, "24", [], np.ones((2, 2))):
        with pytest.raises(CotrunkError, match=r"is not a list of whole numbers: use \(2, 4\), for example"):
            wholes("sizes", values, "(2, 4)")
