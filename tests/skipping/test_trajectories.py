"""Skipping on a model that is known exactly: its predictions, its decisions and its quality."""

import functools
import math
import statistics
from typing import Any, get_args

import pytest
import torch
from analytic import SCHEDULERS, SIZE, Sampled, decibels, guided, ideal, sample
from torch import Tensor

from cotrunk import CotrunkError, Skipping
from cotrunk.pipelines.noise_schedule import NoiseSchedule, read_schedule
from cotrunk.settings import Fidelity, Rule
from cotrunk.skipping.extrapolation import lagrange
from cotrunk.skipping.history import History
from cotrunk.skipping.moments import Moments
from cotrunk.skipping.published_sada import Sada
from cotrunk.skipping.step_choice import LONGEST

RULES = [Skipping(rule=rule) for rule in get_args(Rule)]
EVERY = pytest.mark.parametrize("case", SCHEDULERS, ids="-".join)
# one scheduler per kind of output that a model gives
KINDS = [("ddim", "sample"), ("euler", "epsilon"), ("dpm++2m", "v_prediction"), ("unipc", "flow")]
EACH_KIND = pytest.mark.parametrize("case", KINDS, ids="-".join)


def named(skipping: Skipping) -> str:
    return f"{skipping.rule}-{skipping.tolerance:g}"


def run(case: tuple[str, str], skipping: Skipping | None = None, steps: int = 50, **arguments: object) -> Sampled:
    return sample(SCHEDULERS[case](), steps, skipping, **arguments)


@functools.cache
def plain(case: tuple[str, str], steps: int = 50) -> Tensor:
    return run(case, steps=steps).samples


@EACH_KIND
@pytest.mark.parametrize("steps", [8, 50])
def test_tolerance_zero_computes_every_step(case: tuple[str, str], steps: int) -> None:
    skipped = run(case, Skipping(tolerance=0), steps)
    assert all(map(all, skipped.computed))
    assert torch.equal(skipped.samples, plain(case, steps))


@EACH_KIND
@pytest.mark.parametrize("skipping", [Skipping(tolerance=1e9), *RULES[1:]], ids=named)
def test_the_first_steps_and_the_last_are_computed(case: tuple[str, str], skipping: Skipping) -> None:
    for steps in (1, 3, 8, 25, 50):
        ran = run(case, skipping, steps)
        assert all(map(all, ran.computed[: 1 if skipping.rule == "error" else 3])), steps
        assert all(ran.computed[-1]), steps
        assert ran.samples.isfinite().all(), steps


@EACH_KIND
@pytest.mark.parametrize("prediction", ["linear", "quadratic"])
def test_an_output_that_is_a_polynomial_in_time_is_predicted_exactly(case: tuple[str, str], prediction: str) -> None:
    direction = torch.linspace(-1, 1, 32, dtype=torch.float64)

    def polynomial(schedule: NoiseSchedule, step: int, x: Tensor) -> Tensor:
        time = schedule.time(step)
        return (direction * time + (prediction == "quadratic") * time**2 + 0.3).expand_as(x)

    full = run(case, model=polynomial)
    skipped = run(case, Skipping(rule="fixed", every=4, prediction=prediction), model=polynomial)
    assert skipped.evaluations < 20
    assert decibels(skipped.samples, full.samples) > 110  # rounding: some schedulers keep float32


@EACH_KIND
def test_no_tolerance_gives_the_longest_gaps(case: tuple[str, str]) -> None:
    ran = run(case, Skipping(tolerance=1e9))
    gaps = "".join("x" if step[0] else "." for step in ran.computed)
    assert "." * LONGEST in gaps
    assert "." * (LONGEST + 1) not in gaps


@EACH_KIND
@pytest.mark.parametrize("skipping", RULES, ids=named)
def test_an_image_alone_equals_the_image_in_a_batch_of_16(case: tuple[str, str], skipping: Skipping) -> None:
    together = run(case, skipping, seeds=range(16))
    for seed in (0, 7, 15):
        alone = run(case, skipping, seeds=range(seed, seed + 1))
        assert [step[seed] for step in together.computed] == [step[0] for step in alone.computed]
        torch.testing.assert_close(together.samples[seed], alone.samples[0])


@EACH_KIND
def test_skipping_beats_fewer_steps_and_every_fixed_pattern_but_quadratic_ones(case: tuple[str, str]) -> None:
    full = plain(case)
    for tolerance in (0.003, 0.01):
        ours = run(case, Skipping(tolerance=tolerance))
        steps = math.ceil(ours.evaluations)
        assert decibels(ours.samples, full) > decibels(plain(case, steps), full)
        for every in (2, 3, 4, 6):  # quadratic wins on this model, whose outputs are smooth to the last digit
            for prediction in ("reuse", "linear"):
                fixed = run(case, Skipping(rule="fixed", every=every, prediction=prediction, correct=False))
                if fixed.evaluations <= ours.evaluations:
                    assert decibels(ours.samples, full) > decibels(fixed.samples, full) + 1, (every, prediction)


def from_images(
    case: tuple[str, str], strength: float, steps: int = 30, skipping: Skipping | None = None
) -> tuple[Sampled, int]:
    """Return runs from noised images that do not match the prompt, and the steps that they take."""
    ran = run(case, skipping, steps, seeds=range(12), model=guided, strength=strength)
    return ran, len(ran.computed)


@EACH_KIND
@pytest.mark.parametrize("strength", [0.5, 0.7])
def test_skipping_from_an_image_beats_fewer_steps(case: tuple[str, str], strength: float) -> None:
    """This holds for the mean of the images and for the worst one."""
    full, taken = from_images(case, strength)
    ours, _ = from_images(case, strength, skipping=Skipping())
    assert ours.evaluations < taken
    # of the step counts with this many evaluations, the one that begins closest to where the full run does
    few = [n for n in range(2, 30) if int(n * strength) == math.ceil(ours.evaluations)]
    closest = min(few or [29], key=lambda n: abs(int(n * strength) / n - taken / 30))
    plain, _ = from_images(case, strength, closest)
    gains = [[decibels(ran.samples[i : i + 1], full.samples[i : i + 1]) for i in range(12)] for ran in (ours, plain)]
    assert statistics.mean(gains[0]) > statistics.mean(gains[1]) + 3
    assert min(gains[0]) > min(gains[1])


@EACH_KIND
def test_in_the_middle_nothing_is_predicted_before_a_prediction_has_been_tried(case: tuple[str, str]) -> None:
    """The second and third outputs measure errors of predictions; from pure noise the expectation is used at once."""
    anything = Skipping(1e9)
    computed = from_images(case, 0.5, skipping=anything)[0].computed
    assert all(map(all, computed[:3]))
    assert not any(computed[3])
    assert not any(map(any, from_images(case, 1.0, skipping=anything)[0].computed[1:3]))


def switched(case: tuple[str, str], steps: int, skipping: Skipping | None = None) -> Sampled:
    """Return runs in which guidance begins after a fifth of the steps, except for the first image."""

    def model(schedule: NoiseSchedule, step: int, x: Tensor) -> Tensor:
        plain, own = ideal(schedule, step, x), guided(schedule, step, x)
        return torch.cat([plain[:1], own[1:] if step >= steps // 5 else plain[1:]])

    return run(case, skipping, steps, seeds=range(12), model=model, switch=steps // 5)


@EACH_KIND
def test_skipping_after_a_discontinuity_beats_fewer_steps(case: tuple[str, str]) -> None:
    """This holds for the mean of the images and for the worst one. The image without one computes other steps."""
    full, ours = switched(case, 50).samples, switched(case, 50, Skipping())
    assert ours.evaluations < 20
    assert [step[1:] for step in ours.computed[9:12]] == [(True,) * 11] * 3
    assert not all(step[0] for step in ours.computed[9:12])
    few = switched(case, 5 * math.ceil(ours.evaluations / 5)).samples
    gains = [[decibels(samples[i : i + 1], full[i : i + 1]) for i in range(12)] for samples in (ours.samples, few)]
    assert statistics.mean(gains[0]) > statistics.mean(gains[1]) + 3
    assert min(gains[0]) > min(gains[1])


def test_after_a_discontinuity_nothing_depends_on_where_the_run_began() -> None:
    """Predictions start from the sample at the discontinuity: images that are equal from there on stay equal."""
    meeting, direction = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def model(schedule: NoiseSchedule, step: int, x: Tensor) -> Tensor:
        if step == 0:  # one step of Euler leads each image to the same sample
            return (meeting - x) / (schedule.levels[1][1] - schedule.levels[0][1])
        return (direction * schedule.time(step)).expand_as(x)

    ran = run(("euler", "flow"), Skipping(1e9, correct=False), seeds=range(3), model=model, switch=1)
    assert not all(step[1] for step in ran.computed)
    assert [step[1] for step in ran.computed] == [step[2] for step in ran.computed]
    torch.testing.assert_close(ran.samples[1], ran.samples[2], rtol=0, atol=1e-4)


def test_a_schedule_that_begins_with_an_image_begins_in_the_middle() -> None:
    """A call with its own timesteps or sigmas sets no begin index."""
    import diffusers

    class Late(diffusers.DPMSolverMultistepScheduler):
        def set_timesteps(self, steps: int, **_: Any) -> None:
            super().set_timesteps(steps)
            self.timesteps, self.sigmas = self.timesteps[steps // 2 :], self.sigmas[steps // 2 :]

    ran = sample(Late(), 30, Skipping(1e9), model=guided)
    assert [all(step) for step in ran.computed[:4]] == [True, True, True, False]


def test_errors_larger_than_expected_count_in_full_and_smaller_ones_by_their_root() -> None:
    assert [History(scale=scale).caution for scale in (0.25, 1.0, 4.0)] == [0.5, 1.0, 4.0]
    assert [History(scale=scale, overshoot=3.0).caution for scale in (None, 0.25)] == [3.0, 0.5]
    assert [History(scale=0.25, untried=left).caution for left in (2, 1, 0)] == [None, None, 0.5]


def test_after_a_discontinuity_nothing_is_predicted_before_an_error_has_been_measured() -> None:
    history = History(scale=0.5, overshoot=2.0, times=[1.0], steps=[3], errors=[0.1])
    history.begin_again(4)
    assert history.caution is None
    assert (history.begin, history.times, history.steps, history.errors) == (4, [], [], [])
    history.scale, history.untried = 0.25, 0
    assert history.caution == 0.5


def test_a_larger_error_scale_counts_at_once_and_a_lower_one_slowly() -> None:
    history = History(scale=1.0)
    assert history.updated_scale(5.0) == 5.0
    assert 0.6 < history.updated_scale(0.1) < 1.0
    assert math.isnan(history.updated_scale(math.nan))


def test_an_image_with_larger_prediction_errors_is_computed_more_often() -> None:
    schedules: dict[float, list[int]] = {}
    for size in (0.1, 1.0, 10.0):

        def wild(schedule: NoiseSchedule, step: int, x: Tensor, size: float = size) -> Tensor:
            rough = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(step), dtype=x.dtype)
            return (size * rough).expand_as(x)

        ran = run(("ddim", "v_prediction"), Skipping(0.05), model=wild)
        schedules[size] = [step for step, computed in enumerate(ran.computed) if computed[0]]
    assert len(schedules[0.1]) < len(schedules[1.0]) < len(schedules[10.0])


def test_an_image_that_failed_is_computed() -> None:
    """A NaN does not show how well an output can be predicted."""

    def broken(schedule: NoiseSchedule, step: int, x: Tensor) -> Tensor:
        return torch.full_like(x, math.nan) if step > 5 else torch.zeros_like(x)

    ran = run(("ddim", "v_prediction"), Skipping(0.001), model=broken)
    first = next(step for step, computed in enumerate(ran.computed) if computed[0] and step > 5)
    assert all(computed[0] for computed in ran.computed[first + 1 :])


def test_gaps_are_laid_out_to_the_end_of_the_run() -> None:
    """The last gap is as long as the others; it is not a remainder."""
    ran = run(("ddim", "v_prediction"), Skipping(0.02))
    letters = "".join("x" if step[0] else "." for step in ran.computed)
    lengths = [len(gap) for gap in letters.split("x") if gap]
    assert letters[-1] == "x"
    assert lengths[-1] >= max(lengths) / 2


def test_inversion_goes_back_in_time() -> None:
    import diffusers

    scheduler = diffusers.DDIMInverseScheduler(timestep_spacing="trailing")
    ran = sample(scheduler, 20, Skipping(0.01))
    assert 3 < ran.evaluations < 20
    assert ran.samples.isfinite().all()


@EVERY
def test_correction_brings_images_closer_to_all_steps(case: tuple[str, str]) -> None:
    full, gains = plain(case), []
    for every in (2, 3, 4):
        rules = [Skipping(rule="fixed", every=every, prediction="linear", correct=correct) for correct in (True, False)]
        with_, without = (run(case, rule) for rule in rules)
        assert with_.computed == without.computed
        gains.append(decibels(with_.samples, full) - decibels(without.samples, full))
    assert statistics.mean(gains) > 0


@pytest.mark.parametrize("support", [[0.5], [0.5, 0.7], [0.5, 0.7, 1.0]])
def test_weights_of_a_polynomial_sum_to_one_and_reproduce_its_values(support: list[float]) -> None:
    assert sum(lagrange(support, 0.1)) == pytest.approx(1)
    for i, time in enumerate(support):
        assert lagrange(support, time) == pytest.approx([float(i == j) for j in range(len(support))])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tolerance": -0.1}, "tolerance -0.1 is out of range"),
        ({"tolerance": math.nan}, "tolerance nan is out of range"),
        ({"rule": "magic"}, "rule 'magic' is unknown: use error, fixed, paper or released"),
        ({"prediction": "cubic"}, "prediction .cubic. is unknown"),
        ({"every": 0}, "every 0 is out of range"),
        ({"every": 4}, "every 4 has no effect under the rule 'error': leave it out, or use the rule 'fixed'"),
        ({"rule": "fixed", "tolerance": 0.1}, "tolerance 0.1 has no effect under the rule 'fixed'"),
        ({"rule": "paper", "tolerance": 0.1}, "0.1 has no effect under the rule 'paper': .* use the rule 'error'"),
        ({"rule": "paper", "every": 4}, "every 4 has no effect .* use the rule 'fixed'"),
        ({"rule": "paper", "tokens": 0.5}, "tokens 0.5 has no effect .* use the rule 'error' or 'fixed'"),
        ({"rule": "released", "prediction": "reuse"}, "prediction 'reuse' has no effect under the rule 'released'"),
        ({"prediction": "quadratic"}, "prediction 'quadratic' has no effect .*: leave it out, or use the rule 'fixed'"),
        ({"rule": "released", "correct": False}, "correct False has no effect under the rule 'released'"),
    ],
)
def test_bad_values_are_reported(arguments: dict, said: str) -> None:
    with pytest.raises(CotrunkError, match=said):
        Skipping(**arguments)


def test_a_fidelity_names_a_tolerance() -> None:
    tolerances = [Skipping.with_fidelity(name).tolerance for name in get_args(Fidelity)]
    assert tolerances == sorted(tolerances)
    assert Skipping.with_fidelity("balanced") == Skipping()
    with pytest.raises(CotrunkError, match="fidelity 'best' is unknown: use high, balanced or fast"):
        Skipping.with_fidelity("best")


@pytest.mark.parametrize("rule", get_args(Rule))
def test_defaults_may_be_given_under_every_rule(rule: Rule) -> None:
    given = Skipping(rule=rule, tolerance=0.03, every=3, correct=True, tokens=None)
    assert given == Skipping(rule=rule)


def test_a_schedule_that_cannot_be_read_is_reported() -> None:
    import diffusers

    with pytest.raises(CotrunkError, match="EDMEulerScheduler does not say how noisy"):
        read_schedule(diffusers.EDMEulerScheduler(), [1.0])


# --- the published rules; `test_published_sada.py` holds "released" against the authors' ------------------------------

COMPUTED = {  # of 50 steps in the tail, whatever the criterion says
    "diffusion": [25, 29, 33, 37, 41, 45, 48, 49],
    "flow": [21, 25, 29, 33, 37, 41, 45, 48, 49],
}


def steps_of(ran: Sampled, image: int = 0) -> list[int]:
    return [step for step, computed in enumerate(ran.computed) if computed[image]]


def observed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Record (output, sample) of every step as the scheduler gets them, in a list that fills while `Sada` runs."""
    seen: list[tuple[Tensor, Tensor]] = []
    original = Sada.observe

    def spy(self: Sada, *arguments: Any) -> tuple[Tensor, Tensor]:
        seen.append(original(self, *arguments))
        return seen[-1]

    monkeypatch.setattr(Sada, "observe", spy)
    return seen


@EACH_KIND
@pytest.mark.parametrize("rule", ["paper", "released"])
def test_the_published_rules_end_with_a_fixed_pattern(case: tuple[str, str], rule: str) -> None:
    ran = run(case, Skipping(rule=rule))
    flux = rule == "released" and case[1] == "flow"
    tail = COMPUTED["flow" if flux else "diffusion"]
    for image in range(len(ran.samples)):
        computed = steps_of(ran, image)
        assert computed[:11] == list(range(11))
        assert [step for step in computed if step >= tail[0]] == tail


@pytest.mark.parametrize("bend", [1, -1])
@pytest.mark.parametrize("case", [case for case in SCHEDULERS if case[1] == "flow"], ids="-".join)
def test_released_uses_the_velocity_of_a_flow(
    case: tuple[str, str], bend: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For Flux, the authors' code extrapolates at the first skipped step in a row and reuses the last output after it.

    It takes 22 evaluations of 50 where its criterion always holds, and 30 where it never does.
    """
    direction = bend * torch.rand(SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def bending(schedule: NoiseSchedule, step: int, x: Tensor) -> Tensor:
        return (direction * step**2).expand_as(x)

    seen = observed(monkeypatch)
    ran = run(case, Skipping(rule="released"), model=bending)
    computed = steps_of(ran)
    early = [*range(11), 15, 20] if bend > 0 else list(range(21))
    assert computed == early + COMPUTED["flow"]
    for step in set(range(50)) - set(computed):
        last = max(at for at in computed if at < step)
        # the code treats the two previous evaluations as one step apart, although skipped steps may lie between them
        before = max(at for at in computed if at < last)
        expected = direction * last**2
        if step == last + 1:
            expected = 2 * expected - direction * before**2
        torch.testing.assert_close(seen[step][0][0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [("euler", "flow"), ("dpm++2m", "v_prediction"), ("euler", "epsilon")], ids="-".join)
def test_first_predictions_are_trusted_less_the_more_the_first_output_overshoots(case: tuple[str, str]) -> None:
    def first_gap(size: float) -> int:
        """Return how many evaluations are skipped after the first, which predicts an x0 of this RMS."""

        def model(schedule: NoiseSchedule, step: int, x: Tensor) -> Tensor:
            return schedule.output_for(step, x, torch.full_like(x, size))

        computed = [step[0] for step in run(case, Skipping(tolerance=0.1), model=model).computed]
        return computed.index(True, 1) - 1

    expected = math.sqrt(Moments.stored().values[0, 0])
    assert first_gap(0.5) == first_gap(1.0) == first_gap(expected - 0.1) > first_gap(2 * expected)
