"""The fitted predictions: their moments, and that no other weights are expected to err less."""

import itertools
import json
import math
from importlib.resources import files

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cotrunk.pipelines.noise_schedule import NoiseSchedule
from cotrunk.skipping.fitted import SUPPORT_ERROR, FittedPredictions
from cotrunk.skipping.moments import Moments

KINDS = ("epsilon", "v_prediction", "sample", "flow")


def schedule_of(kind: str, steps: int = 20, first: float = 0.999) -> NoiseSchedule:
    sigmas = np.linspace(first, 0.03, steps)
    alphas = 1 - sigmas if kind == "flow" else np.sqrt(1 - sigmas**2)
    levels = tuple(zip(alphas.tolist(), sigmas.tolist(), strict=True))
    return NoiseSchedule(kind, levels, tuple(range(steps)), 1000.0, divided=False)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_of_outputs_are_those_of_a_simulated_run(kind: str) -> None:
    """A first-order solver follows random x0 predictions; the products of its outputs are averaged."""
    schedule, generator = schedule_of(kind), torch.Generator().manual_seed(0)
    times = np.array([schedule.time(step) for step in range(20)])
    mixing = torch.randn(21, 21, generator=generator, dtype=torch.float64)
    values = mixing @ torch.randn(21, 400, generator=generator, dtype=torch.float64)  # x0 predictions and, last, noise
    moments = Moments(times, (values @ values.T / 400).numpy())
    sample, outputs = values[-1], []
    for step, ((alpha, sigma), later) in enumerate(itertools.zip_longest(schedule.levels, schedule.levels[1:])):
        outputs.append(schedule.output_for(step, sample if step else sample * sigma, values[step]))
        sample = sample if step else sample * sigma
        if later is not None:
            noise = (sample - alpha * values[step]) / sigma
            sample = later[0] * values[step] + later[1] * noise
    run = torch.stack([*outputs, values[-1]])
    found = moments.of_outputs(schedule)
    np.testing.assert_allclose(found, (run @ run.T / 400).numpy(), rtol=1e-6, atol=1e-6 * np.abs(found).max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_trajectory_may_begin_within_a_run(kind: str) -> None:
    """Its moments are those of a run of its own that begins there."""
    whole, begin = schedule_of(kind, 30), 12
    late = NoiseSchedule(kind, whole.levels[begin:], whole.timesteps[begin:], 1000.0, divided=False)
    moments = Moments.after_discontinuity(whole.time(begin))
    found = moments.of_outputs(whole, begin)
    np.testing.assert_allclose(found[begin:, begin:], moments.of_outputs(late), rtol=1e-9)
    assert not found[:begin].any()


@settings(max_examples=30, deadline=None)
@given(time=st.floats(0, 6))
def test_moments_after_a_discontinuity_are_moments_at_every_time(time: float) -> None:
    moments = Moments.after_discontinuity(time)
    assert moments.times[0] == max(time, 0.02)
    assert (np.diff(moments.times) < 0).all()
    assert np.linalg.eigvalsh(moments.values).min() > -1e-6 * moments.values.max()


def test_moments_after_a_discontinuity_are_those_stored_at_its_time_and_change_evenly_between() -> None:
    ends = [Moments.after_discontinuity(time).values for time in (2.7, 2.1)]
    data = json.loads(files("cotrunk.skipping").joinpath("discontinuities.json").read_text())
    stored = [Moments.from_json(one).values for one in data if one["times"][0] in (2.7, 2.1)]
    np.testing.assert_allclose(ends, stored)
    np.testing.assert_allclose(Moments.after_discontinuity(2.4).values, np.mean(ends, axis=0))


def test_outputs_change_more_after_a_discontinuity_than_along_a_trajectory() -> None:
    """The first prediction after a branch at a fifth of the steps is expected to err several times as much."""
    schedule = schedule_of("v_prediction", 50)
    along = FittedPredictions(Moments.stored().of_outputs(schedule))
    after = FittedPredictions(Moments.after_discontinuity(schedule.time(10)).of_outputs(schedule, 10))
    assert after.errors((11, 10, 50))[12] > 2 * along.errors((11, 10, 50))[12]
    assert after.errors((40, 39, 50))[42] < 2 * along.errors((40, 39, 50))[42]


def test_stored_moments_are_moments_and_survive_json() -> None:
    moments = Moments.stored()
    assert (np.diff(moments.times) < 0).all()
    assert np.linalg.eigvalsh(moments.values).min() > -1e-6 * moments.values.max()
    assert moments.values[-1, -1] == pytest.approx(1, abs=0.05)  # the noise has unit variance
    again = Moments.from_json(json.loads(json.dumps(moments.to_json())))
    np.testing.assert_array_equal(again.values, moments.values)
    np.testing.assert_array_equal(again.times, moments.times)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 4), change=st.floats(-0.3, 0.3), place=st.integers(0, 3))
def test_no_other_weights_are_expected_to_err_less(seed: int, size: int, change: float, place: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(6, 40))
    moments = rows @ rows.T / 40
    fitted, support = FittedPredictions(moments), (4, 2, 1, 5)[:size]

    def expected(weights: np.ndarray) -> float:
        full = np.zeros(6)
        full[list(support)], full[3] = weights, -1
        return math.sqrt(full @ moments @ full)

    best = np.array(fitted.weights(support, 3, ()))
    assert fitted.errors(support)[3] == pytest.approx(expected(best), rel=1e-4)
    other = best.copy()
    other[place % size] += change
    assert expected(other) >= expected(best) - 1e-6


@settings(max_examples=50, deadline=None)
@given(latest=st.integers(4, 40), spacing=st.integers(1, 6), gap=st.integers(1, 8), error=st.floats(0.01, 3))
def test_errors_of_support_points_are_amplified_no_more_than_they_are_worth(
    latest: int, spacing: int, gap: int, error: float
) -> None:
    """Trends of three points carry on at most the error that a prediction from the latest point alone has."""
    moments = Moments.stored().of_outputs(schedule_of("v_prediction", 50))
    fitted, step = FittedPredictions(moments), min(latest + gap, 49)
    support = tuple(point for point in (latest, latest - spacing, latest - 2 * spacing) if point >= 0)
    weights = np.array(fitted.weights(support, step, [error] * len(support)))
    alone = np.array(fitted.weights(support[:1], step, [error]))
    carried_on = SUPPORT_ERROR * error * np.linalg.norm(weights)
    own = moments[step, step] - 2 * alone[0] * moments[latest, step] + alone[0] ** 2 * moments[latest, latest]
    assert carried_on <= math.sqrt(own + (SUPPORT_ERROR * error * alone[0]) ** 2) + 1e-6


def test_an_error_of_a_support_point_counts_as_noise_of_its_own() -> None:
    fitted = FittedPredictions(np.array([[1.0, 0.5], [0.5, 1.0]]))
    assert fitted.weights((0,), 1, [2.0]) == pytest.approx([0.5 / (1 + (2 * SUPPORT_ERROR) ** 2)])


def test_a_trend_is_followed_less_if_its_support_points_have_errors() -> None:
    fitted = FittedPredictions(Moments.stored().of_outputs(schedule_of("v_prediction", 50)))
    exact, wrong = (fitted.weights((20, 16), 24, [error] * 2) for error in (0.0, 2.0))
    assert exact[1] < 0  # the weight of the older point: the trend leads away from it
    assert exact[1] < wrong[1]


def test_points_between_two_known_times_are_not_on_a_straight_line() -> None:
    schedule = schedule_of("sample", 2000)  # its outputs are the x0 predictions
    places = [int(np.searchsorted(-Moments.stored().times, -schedule.time(step))) for step in range(2000)]
    cell = next(place for place in places if place > 2 and places.count(place) >= 9)
    inside = [step for step, place in enumerate(places) if place == cell]
    first, middle, last = inside[0], inside[len(inside) // 2], inside[-1]
    times = [schedule.time(step) for step in (first, middle, last)]
    part = (times[0] - times[1]) / (times[0] - times[2])
    line = np.zeros(2001)
    line[[first, middle, last]] = 1 - part, -1, part
    assert line @ Moments.stored().of_outputs(schedule) @ line > 1e-7
