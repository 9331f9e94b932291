"""The gaps that are laid out over a run before it begins."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotrunk.pipelines.noise_schedule import NoiseSchedule
from cotrunk.skipping.fitted import FittedPredictions, Support
from cotrunk.skipping.moments import Moments
from cotrunk.skipping.step_choice import EARLY_WEIGHT, LEVELS, LONGEST, SLOTS, Gaps


def flow(steps: int) -> NoiseSchedule:
    sigmas = [1 - step / steps for step in range(steps)]
    timesteps = tuple(1000 * sigma for sigma in sigmas)
    return NoiseSchedule("flow", tuple((1 - s, s) for s in sigmas), timesteps, 1000.0, divided=False)


def of(schedule: NoiseSchedule, longest: int = 100, terms: int = 2) -> Gaps:
    predictions = FittedPredictions(Moments.stored().of_outputs(schedule))
    return Gaps(schedule, predictions, None, longest, terms)


def gaps(steps: int, longest: int = 100, terms: int = 2) -> Gaps:
    return of(flow(steps), longest, terms)


def walk(own: Gaps, limit: float) -> list[int]:
    """Return the steps that are computed."""
    support: Support = (0, own.predictions.start)
    computed = [0]
    while computed[-1] < own.stop:
        computed.append(own.next(support, limit))
        support = own.extended(support, computed[-1])
    return computed


def cost(own: Gaps, computed: list[int], gap: int) -> float:
    """Return the cost of the gap before a computed step, by the formula itself."""
    support = (*tuple(reversed(computed[:gap]))[: own.terms], own.predictions.start)
    inside = range(computed[gap - 1] + 1, computed[gap])
    weights = (own.schedule.drift(step) * (1 + EARLY_WEIGHT * own.schedule.time(step)) for step in inside)
    return sum(weight * own.expected_error(support, step) for weight, step in zip(weights, inside, strict=True))


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(2, 60), limit=st.floats(1e-4, 1.0), terms=st.integers(1, 3))
def test_no_gap_costs_more_than_the_limit(steps: int, limit: float, terms: int) -> None:
    own = gaps(steps, terms=terms)
    computed = walk(own, limit)
    assert computed[-1] == steps - 1
    assert all(early < late for early, late in itertools.pairwise(computed))
    assert all(cost(own, computed, gap) <= limit * (1 + 1e-9) for gap in range(1, len(computed)))


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(4, 60), limit=st.floats(1e-3, 0.3), more=st.floats(1 + 2 / LEVELS, 4))
def test_a_higher_limit_takes_no_more_evaluations(steps: int, limit: float, more: float) -> None:
    own = gaps(steps)
    assert len(walk(own, limit * more)) <= len(walk(own, limit))


@pytest.mark.parametrize("terms", [1, 2])
def test_the_last_gap_is_not_shorter_than_needed(terms: int) -> None:
    """If every gap were as long as the limit allows, the last gap could be far shorter than the others."""
    own, lasts = gaps(50, terms=terms), []
    for limit in (0.01, 0.015, 0.02, 0.03, 0.04, 0.06):
        computed = walk(own, limit)
        costs = [cost(own, computed, gap) for gap in range(1, len(computed))]
        lasts.append(costs[-1] / (sum(costs) / len(costs)))
    assert sum(lasts) / len(lasts) > 0.5


def test_a_zero_limit_computes_everything_and_no_limit_nothing() -> None:
    assert walk(gaps(12), 0.0) == walk(gaps(12), math.nan) == list(range(12))
    assert walk(gaps(12), 1e308) == [0, 11]
    assert walk(gaps(12, longest=3), 1e9) == [0, 4, 8, 11]


def test_the_start_stays_the_last_support_point() -> None:
    own = gaps(12, terms=2)
    assert own.extended((3, 0, 12), 5) == (5, 3, 12)
    assert own.extended((3,), 5) == (5, 3)
    assert own.extended((), 0) == (0,)


def test_a_repeated_time_adds_nothing_to_a_prediction() -> None:
    """Timesteps that are rounded may repeat, and a second-order solver evaluates some of them twice."""
    levels = tuple((math.sqrt(1 - s * s), s) for s in (1.0, 1.0, 0.8, 0.6, 0.3))
    own = of(NoiseSchedule("epsilon", levels, (4.0, 4.0, 3.0, 2.0, 1.0), 1000.0, divided=False))
    assert own.next((1, 0), 1e9) == own.next((1,), 1e9) == 4
    assert own.expected_error((1, 0), 3) == pytest.approx(own.expected_error((1,), 3), rel=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_errors_of_all_kinds_compare_as_velocities(kind: str) -> None:
    """An error of x0 by d is an error of the velocity by d / sigma, whatever the model predicts."""
    import torch

    levels = ((0.6, 0.8),)
    schedule = NoiseSchedule(kind, levels, (500.0,), 1000.0, divided=False)
    sample, data = torch.tensor([0.3]), torch.tensor([0.7])
    outputs = [schedule.output_for(0, sample, data + wrong) for wrong in (0.0, 0.01)]
    assert float((outputs[1] - outputs[0]).abs()) * schedule.velocity(0) == pytest.approx(0.01 / 0.8, rel=1e-2)


def test_runs_with_the_same_noise_levels_share_their_layouts() -> None:
    shared = Gaps.of_run(flow(20))
    assert shared is Gaps.of_run(flow(20))
    assert shared is not Gaps.of_run(flow(20), 4)
    assert shared is not Gaps.of_run(flow(21))
    assert walk(shared, 0.05) == walk(gaps(20, LONGEST, SLOTS), 0.05)
