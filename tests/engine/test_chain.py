"""Policies in a chain: recorded outputs first, predictions behind them; a step at which nothing is computed."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from running import denoiser, recorded
from tiny import TinyPipeline, audioldm2, flux, pixart, sana, sd, sd3, sd_controlnet, sdxl, wan
from torch import Tensor

from cotrunk import Settings, Sharing, Skipping
from cotrunk.engine.attach import attached
from cotrunk.engine.call_state import CallState, StepEvent
from cotrunk.engine.denoiser_hook import parameters_of
from cotrunk.engine.output_form import blank_output
from cotrunk.engine.patch import intercepted, interceptor_of
from cotrunk.engine.policy import Policy
from cotrunk.engine.rewind import SchedulerSteps
from cotrunk.engine.step_plan import RowPlan
from cotrunk.engine.trace import image_rows, step_letters
from cotrunk.generation import prepare
from cotrunk.pipelines.class_tables import OUTPUT_FORMS
from cotrunk.skipping.rule import Rule

STEPS = 8
TRUNK = 3  # steps that are recorded
SEEDS = [7, 7, 7]  # a group


class Recorder:
    """Keeps what the scheduler gets in the first steps. Last in a chain, it sees the outputs of all policies."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def computes(self, step: int) -> Sequence[bool]:
        return ()

    def observe(
        self, step: int, known: Sequence[bool], steps: SchedulerSteps, output: Tensor, sample: Tensor
    ) -> tuple[Tensor, Tensor]:
        if step < TRUNK:
            self.outputs.append(output.clone())
        return output, sample


class Replay:
    """Supplies the recorded outputs; all images are computed after them."""

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        self.outputs = outputs

    def computes(self, step: int) -> Sequence[bool]:
        return (step >= len(self.outputs),) * len(SEEDS)

    def observe(
        self, step: int, known: Sequence[bool], steps: SchedulerSteps, output: Tensor, sample: Tensor
    ) -> tuple[Tensor, Tensor]:
        if step < len(self.outputs):
            assert not any(known)
            return self.outputs[step], sample
        return output, sample


def run(tiny: TinyPipeline, *policies: Policy) -> tuple[Tensor, CallState, list[StepEvent]]:
    """Return the images of a group that branches at the end of the trunk."""
    trunk, everyone, events = (0,) * len(SEEDS), tuple(range(len(SEEDS))), list[StepEvent]()
    row_plan = RowPlan(lambda step: trunk if step < TRUNK else everyone, policies)
    call = CallState(row_plan, STEPS, on_step=events.append)
    inputs = tiny.inputs(len(SEEDS))
    with attached(tiny.pipe, call, SEEDS) as generators:
        output = tiny.pipe(**inputs, num_inference_steps=STEPS, output_type="latent", generator=generators)
    assert call.step == STEPS
    return output[tiny.output_field], call, events


@pytest.mark.parametrize("rule", [None, Skipping(rule="fixed", every=2)])
def test_a_run_replays_a_recorded_trunk(rule: Skipping | None) -> None:
    tiny, recorder = sd(), Recorder()
    limits = {"num_inference_steps": STEPS, "output_type": "latent"}
    settings = Settings(Sharing.published(share=TRUNK / STEPS, similarity=-1.0), rule)
    recording = prepare(tiny.pipe, None, settings, **tiny.inputs(len(SEEDS)), **limits)
    assert [tree.stop for tree in recording.plan.trees] == [TRUNK]
    recording.policies = lambda images: (recorder,)
    first = recording.run(recording.plan.trees)
    replaying = prepare(tiny.pipe, None, settings, plan=recording.plan, **tiny.inputs(len(SEEDS)), **limits)
    replaying.policies = lambda images: (Replay(recorder.outputs),)
    second = replaying.run(replaying.plan.trees)
    assert all(steps.startswith("P" * TRUNK) for steps in second.steps)
    assert second.cost.used < first.cost.used
    if rule is None:
        assert torch.equal(second.output.images, first.output.images)


def skipping() -> Policy:
    return Rule(Skipping(rule="fixed", every=2)).policy(
        len(SEEDS), STEPS, lambda step: range(3) if step == TRUNK else ()
    )


@pytest.mark.parametrize("behind", [(), (skipping,)], ids=["alone", "skipping"])
@pytest.mark.parametrize("build", [sd, sdxl, sd3, flux, pixart, sana])
def test_a_recorded_trunk_is_replayed_without_a_denoiser_row(
    build: Callable[[], TinyPipeline], behind: tuple[Callable[[], Policy], ...]
) -> None:
    tiny, recorder = build(), Recorder()
    rows = recorded(denoiser(tiny))
    first, call, _ = run(tiny, *[make() for make in behind], recorder)
    assert sum(rows) == call.rows
    counted = len(rows)
    again, replayed, _ = run(tiny, Replay(recorder.outputs), *[make() for make in behind])
    assert torch.equal(again, first)
    assert sum(rows[counted:]) == replayed.rows
    assert replayed.rows == call.rows - TRUNK * tiny.rows_per_step
    assert replayed.rows_asked == call.rows_asked
    assert replayed.rows_spared["skipping"] == call.rows_spared["skipping"] + TRUNK * tiny.rows_per_step
    assert [letters[:TRUNK] for letters in step_letters(replayed.plans, len(SEEDS))] == ["P" * TRUNK] * len(SEEDS)
    per_image = image_rows(replayed.plans, len(SEEDS), tiny.rows_per_step)
    assert sum(per_image) == pytest.approx(replayed.rows)


def test_skipping_learns_from_replayed_outputs() -> None:
    """What an earlier policy supplies counts as computed for the later ones."""
    tiny, recorder, seen = sd(), Recorder(), list[tuple[bool, ...]]()

    class Watching(Recorder):
        def observe(self, step: int, known: Sequence[bool], *given: object) -> tuple[Tensor, Tensor]:
            seen.append(tuple(known))
            return super().observe(step, known, *given)  # type: ignore[arg-type]

    run(tiny, recorder)
    run(tiny, Replay(recorder.outputs), Watching())
    assert seen == [(True,) * len(SEEDS)] * STEPS


def test_a_network_whose_output_form_is_unknown_is_computed() -> None:
    """A ControlNet runs once, because only a call shows the form of its residuals. The denoiser does not run."""
    tiny, recorder = sd_controlnet(), Recorder()
    networks = recorded(tiny.pipe.controlnet)
    first, call, _ = run(tiny, recorder)
    counted = len(networks)
    again, replayed, _ = run(tiny, Replay(recorder.outputs))
    assert torch.equal(again, first)
    assert replayed.rows == call.rows - TRUNK * tiny.rows_per_step
    assert len(networks) - counted == STEPS - TRUNK + 1


@pytest.mark.parametrize("build", [sd, sdxl, sd3, flux, pixart, sana, wan, audioldm2])
@pytest.mark.parametrize("return_dict", [True, False])
def test_a_blank_output_has_the_form_of_a_real_one(build: Callable[[], TinyPipeline], return_dict: bool) -> None:
    tiny = build()
    module = denoiser(tiny)
    assert type(module).__name__ in OUTPUT_FORMS
    found = list[object]()

    def compare(*args: object, **kwargs: object) -> object:
        kwargs["return_dict"] = return_dict
        blank = blank_output(module, dict(zip(parameters_of(module), args, strict=False)) | kwargs)
        real = module._call_impl(*args, **kwargs)
        assert type(blank) is type(real)
        for own, other in zip(values_of(blank), values_of(real), strict=True):
            assert (own.shape, own.dtype, own.device) == (other.shape, other.dtype, other.device)
        found.append(blank)
        return real if not return_dict else (real.sample,)

    with intercepted(module, compare):
        tiny.pipe(**tiny.inputs(2), num_inference_steps=2, output_type="latent")
    assert found
    assert interceptor_of(module) is None


def values_of(output: object) -> list[Tensor]:
    return list(output) if isinstance(output, tuple) else [output.sample]  # type: ignore[attr-defined]


def test_a_step_event_holds_what_the_scheduler_got_and_gave() -> None:
    tiny = sd()
    latents, _, events = run(tiny, skipping())
    assert [event.step for event in events] == list(range(STEPS))
    assert all(event.timesteps == STEPS for event in events)
    assert [float(event.timestep) for event in events] == tiny.pipe.scheduler.timesteps.tolist()
    for before, after in itertools.pairwise(events):
        if all(after.computed) and all(before.computed):
            assert torch.equal(after.sample, before.prev_sample)
    assert torch.equal(events[-1].prev_sample, latents)
    assert all(event.output.shape == latents.shape for event in events)
    assert [event.sources for event in events] == [(0, 0, 0)] * TRUNK + [(0, 1, 2)] * (STEPS - TRUNK)
    assert {all(event.computed) for event in events} == {True, False}
    assert events[-1].rows + sum(events[-1].rows_spared.values()) == events[-1].rows_asked
