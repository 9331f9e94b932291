"""Equivalence must be shown, and the predicted number of prompts is about right."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cotrunk import CotrunkError
from cotrunk.tuning.equivalence import (
    MOST_PROMPTS,
    POWER,
    Estimate,
    are_below,
    distance_excess,
    estimate,
    prompts_to_decide,
    spread,
)

MARGIN = 0.3  # for losses with a standard deviation of 1


def shown(loss: float, prompts: int, confidence: float, draws: int = 1000, seed: int = 0) -> float:
    """Return how often a true loss is shown to be below the margin."""
    values = np.random.default_rng(seed).normal(loss, 1, (draws, prompts))
    return float(np.mean([estimate(own).interval(confidence).high <= MARGIN for own in values]))


@pytest.mark.parametrize("prompts", [4, 12, 100])
def test_a_loss_equal_to_the_margin_is_rarely_called_equivalent(prompts: int) -> None:
    assert 0.012 < shown(MARGIN, prompts, 0.95) < 0.038  # one side of 5 %


def test_equivalence_is_shown_with_many_prompts_but_not_with_few() -> None:
    assert shown(0.0, 8, 0.95) < 0.15
    assert shown(0.0, 400, 0.95) > 0.99


@pytest.mark.parametrize("confidence", [0.95, 1 - 0.05 / 28])
@pytest.mark.parametrize("loss", [-0.1, 0.1])
def test_the_predicted_number_of_prompts_decides_with_the_stated_power(confidence: float, loss: float) -> None:
    count = Estimate(loss, 1 / 40**0.5, 39, 40).prompts_to_decide(MARGIN, confidence)
    assert shown(loss, count, confidence) == pytest.approx(POWER, abs=0.025)
    # a loss as far above the margin is shown to be worse
    above = Estimate(2 * MARGIN - loss, 1 / 40**0.5, 39, 40)
    assert above.prompts_to_decide(MARGIN, confidence) == count


def test_a_pilot_of_few_prompts_predicts_about_the_right_number() -> None:
    draw = np.random.default_rng(0)
    right = Estimate(0.0, 1 / 40**0.5, 39, 40).prompts_to_decide(MARGIN)
    asked = [estimate(draw.normal(0, 1, 40)).prompts_to_decide(MARGIN) for _ in range(200)]
    assert np.median(asked) == pytest.approx(right, rel=0.2)


def test_a_loss_at_the_margin_is_not_decided_by_any_number_of_prompts() -> None:
    assert Estimate(MARGIN, 0.1, 11, 12).prompts_to_decide(MARGIN) == MOST_PROMPTS
    assert Estimate(0.0, 0.0, 11, 12).prompts_to_decide(MARGIN) == 3  # no error at all


@settings(max_examples=40)
@given(st.floats(-1, 1), st.floats(1e-3, 1), st.integers(3, 500), st.floats(0.9, 0.999))
def test_less_spread_and_a_wider_margin_need_fewer_prompts(
    loss: float, error: float, prompts: int, confidence: float
) -> None:
    count = Estimate(loss, error, prompts - 1, prompts).prompts_to_decide(1.5, confidence)
    assert 3 <= count <= MOST_PROMPTS
    assert Estimate(loss, error / 2, prompts - 1, prompts).prompts_to_decide(1.5, confidence) <= count
    assert Estimate(loss, error, prompts - 1, prompts).prompts_to_decide(2.0, confidence) <= count


def test_all_losses_must_be_shown_below_their_margins_and_one_above_is_enough() -> None:
    small, large, unknown = (Estimate(value, error, 99, 100) for value, error in ((0, 0.01), (1, 0.01), (0, 1)))
    margins = (0.3, 0.3)
    assert are_below((small, small), margins, 0.95) is True
    assert are_below((small, large), margins, 0.95) is False
    assert are_below((unknown, large), margins, 0.95) is False
    assert are_below((small, unknown), margins, 0.95) is None
    assert prompts_to_decide((small, unknown), margins, 0.95) == unknown.prompts_to_decide(0.3, 0.95)
    assert prompts_to_decide((unknown, large), margins, 0.95) == large.prompts_to_decide(0.3, 0.95)


def test_equal_values_of_a_group_count_as_one() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=30)
    alone = estimate(values)
    assert alone.error == pytest.approx(values.std(ddof=1) / 30**0.5)
    groups = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(30)]
    together = estimate(np.repeat(values, 3), groups)
    assert (together.value, together.error, together.freedom) == pytest.approx((alone.value, alone.error, 29))
    assert estimate(np.repeat(values, 3)).error < 0.6 * alone.error  # as it would seem without groups
    assert estimate(values, [[i] for i in range(30)]) == alone
    with pytest.raises(CotrunkError, match="1 independent groups of prompts are too few"):
        estimate(values, [list(range(30))])


def images(prompts: int, seed: int, moved: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features of a setting, and of the reference from the same and from other noise."""
    draw = torch.Generator().manual_seed(seed)
    prompt, noise, other, own = (torch.randn(prompts, 16, generator=draw) for _ in range(4))
    prompt *= 1.4
    return prompt + 0.9 * noise + 0.19**0.5 * own + moved, prompt + noise, prompt + other


@pytest.mark.parametrize("prompts", [8, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("moved", [0.0, 0.3])
def test_the_distance_excess_and_its_error_are_unbiased(prompts: int, moved: float) -> None:
    large = float(distance_excess(*images(3000, 1, moved)).mean())
    found = [estimate(distance_excess(*images(prompts, seed, moved))) for seed in range(300)]
    values, errors = (np.array([getattr(one, name) for one in found]) for name in ("value", "error"))
    assert values.mean() == pytest.approx(large, abs=4 * values.std() / 300**0.5)
    # without an excess, the jackknife overestimates the error by up to a half
    assert 0.85 < errors.mean() / values.std() < (1.25 if moved else 1.7)
    assert (large > 0.05) == bool(moved)


def test_the_distance_excess_is_a_difference_of_two_distances() -> None:
    mine, same, other = (torch.nn.functional.normalize(x.double(), dim=1) for x in images(5, 0, 0.3))

    def discrepancy(left: torch.Tensor, right: torch.Tensor) -> float:
        kernel = lambda a, b: float((a @ b + 1) ** 3)  # noqa: E731
        pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
        each = [kernel(left[i], left[j]) + kernel(right[i], right[j]) - 2 * kernel(left[i], right[j]) for i, j in pairs]
        return float(np.mean(each))

    expected = discrepancy(mine, other) - discrepancy(same, other)
    assert distance_excess(mine, same, other).mean() == pytest.approx(expected)
    assert distance_excess(same, same, other) == pytest.approx(0)
    apart = np.mean([8 - float((one @ two + 1) ** 3) for one, two in zip(same, other, strict=True)])
    assert spread(same, other) == pytest.approx(apart)
    with pytest.raises(CotrunkError, match="2 prompts are too few"):
        distance_excess(mine[:2], same[:2], other[:2])
