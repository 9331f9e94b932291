"""The hooks of one call: removed afterwards; their clock, counters and noise."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from reference import count_calls
from running import EVERYONE, STEPS, BrokenError, bare, close, denoise, denoiser, recorded, run, state
from schedulers import CALL_KWARGS, DIFFUSION, FLOW, SCHEDULERS
from tiny import TinyPipeline, flux, sd, sd3, sd_from_image, sd_perturbed, sdxl
from torch import Tensor, nn

from cotrunk import Batching, CotrunkError, Skipping
from cotrunk.engine.attach import attached
from cotrunk.engine.call_state import CallState, StepEvent
from cotrunk.engine.denoiser_hook import FoldHook
from cotrunk.engine.step_plan import RowPlan

# --- attached for one call ----------------------------------------------------------------------------------


def nothing(tiny: TinyPipeline) -> None:
    pass


def ran_before(tiny: TinyPipeline) -> None:
    bare(tiny, tiny.inputs(1), [0])  # leaves a registry of diffusers on a transformer


def hooked(tiny: TinyPipeline) -> None:
    class Other(ModelHook):
        def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self.fn_ref.original_forward(*args, **kwargs)

    HookRegistry.check_if_exists_or_initialize(denoiser(tiny)).register_hook(Other(), "other")


def own_forward(tiny: TinyPipeline) -> None:
    recorded(denoiser(tiny))


def compiled(tiny: TinyPipeline) -> None:
    denoiser(tiny).compile(backend="eager")


def wrapped(tiny: TinyPipeline) -> None:
    """Compiled by a wrapper, which passes attributes set on it on to the module inside."""
    name = "unet" if hasattr(tiny.pipe, "unet") else "transformer"
    setattr(tiny.pipe, name, torch.compile(denoiser(tiny), backend="eager"))


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("before", [nothing, ran_before, hooked, own_forward, compiled, wrapped])
@pytest.mark.parametrize("build", [sd, flux])
def test_the_pipeline_is_restored_afterwards(
    build: Callable[[], TinyPipeline], before: Callable[[TinyPipeline], None], raises: bool
) -> None:
    tiny = build()
    before(tiny)
    tiny.pipe.scheduler.set_timesteps(2, mu=1.0) if build is flux else tiny.pipe.scheduler.set_timesteps(2)
    tiny.pipe.maybe_free_model_hooks()  # the end of every call; gives some models a registry of hooks
    was, seen = state(tiny), []

    def step(event: StepEvent) -> None:
        seen.append(event.step)
        if raises:
            raise BrokenError

    call = CallState(RowPlan(lambda step: (0, 0)), 2, on_step=step)
    try:
        with attached(tiny.pipe, call, [1, 1]):
            assert "step" in vars(tiny.pipe.scheduler)
            assert isinstance(denoiser(tiny)._compiled_call_impl, FoldHook)
            latents = torch.ones(2, 4, 4, 4)
            tiny.pipe.scheduler.step(latents, tiny.pipe.scheduler.timesteps[0], latents)
    except BrokenError:
        assert raises
    assert seen == [0]
    now = state(tiny)
    for part in ("denoiser", "within", "pipe"):
        assert list(now[part]) == list(was[part]), part
        assert all(now[part][name] is was[part][name] for name in was[part]), part
    assert now["scheduler"].keys() == was["scheduler"].keys()


@pytest.mark.parametrize("build", [sd, flux])
def test_a_call_that_raises_in_the_middle_leaves_a_working_pipeline(build: Callable[[], TinyPipeline]) -> None:
    tiny = build()
    inputs = tiny.inputs(2)
    expected = bare(tiny, inputs, [1, 2])
    was = state(tiny)

    def fail(event: StepEvent) -> None:
        if event.step == 1:
            raise BrokenError

    with pytest.raises(BrokenError):
        run(tiny, inputs, on_step=fail)
    now = state(tiny)
    assert {part: values.keys() for part, values in now.items()} == {part: v.keys() for part, v in was.items()}
    assert "step" not in vars(tiny.pipe.scheduler)
    assert torch.equal(bare(tiny, inputs, [1, 2]), expected)


def test_a_pipeline_in_use_is_refused_and_stays_in_use() -> None:
    tiny = sd()
    module = tiny.pipe.unet
    with attached(tiny.pipe, CallState(RowPlan(lambda step: (0,)), 1), [0]):
        with (
            pytest.raises(CotrunkError, match="in use"),
            attached(tiny.pipe, CallState(RowPlan(lambda step: (0,)), 1), [0]),
        ):
            pass
        assert isinstance(module._compiled_call_impl, FoldHook)
    assert module._compiled_call_impl is None


def test_a_hook_that_removes_itself_during_a_call_does_not_remove_ours() -> None:
    """Group offload with streams removes a hook at the first call, which records the order of the layers."""
    tiny = sd()

    class Once(ModelHook):
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            module._diffusers_hook.remove_hook("once", recurse=False)
            return output

    HookRegistry.check_if_exists_or_initialize(tiny.pipe.unet).register_hook(Once(), "once")
    ran = denoise(tiny, tiny.inputs(3), [[0, 1, 2]], branch=STEPS)
    assert ran.call.rows == 2 * STEPS
    assert torch.equal(ran.images[0], ran.images[1])


@pytest.mark.parametrize("build", [sd, sdxl, sd3, flux])
def test_without_sharing_it_is_the_bare_pipeline_bit_for_bit(build: Callable[[], TinyPipeline]) -> None:
    tiny = build()
    inputs = tiny.inputs(2)
    result = run(tiny, inputs, sharing=None)
    assert torch.equal(result.images, bare(tiny, inputs, result.plan.seeds))
    assert result.cost == result.plan.cost


def test_a_whole_run_in_the_trunk_is_the_bare_pipeline_on_the_mean() -> None:
    tiny = sdxl()  # conditions in `added_cond_kwargs`, rows of both guidance branches
    inputs = tiny.inputs(3)
    ran = denoise(tiny, inputs, [[0, 1], [2]], branch=STEPS)
    mean = {k: v[:2].mean(dim=0, keepdim=True) if torch.is_tensor(v) else v for k, v in inputs.items()}
    alone = {k: v[2:] if torch.is_tensor(v) else v for k, v in inputs.items()}
    assert close(ran.images[:1], bare(tiny, mean, [100]))
    assert torch.equal(ran.images[0], ran.images[1])
    assert close(ran.images[2:], bare(tiny, alone, [102]))


# --- the clock and the counters -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "heun", "kdpm2", "pndm", "pndm-prk", "flow-euler", "flow-heun"])
def test_the_clock_counts_steps_and_rows_are_as_predicted(name: str) -> None:
    tiny = sd3() if name in FLOW else sd()
    tiny.pipe.scheduler = SCHEDULERS[name]()
    calls, clock = count_calls(tiny, STEPS), []
    rows = recorded(denoiser(tiny))
    result = run(tiny, tiny.inputs(3), on_step=lambda event: clock.append(event.step))
    assert clock == list(range(calls))
    assert result.cost == result.plan.cost
    assert result.cost.used == sum(rows) < result.cost.independent == 3 * 2 * calls
    assert len(result.plan.trees) == 1


@pytest.mark.parametrize("build", [sd, flux])
def test_on_step_sees_the_batch_whatever_the_pipeline(build: Callable[[], TinyPipeline]) -> None:
    tiny, seen = build(), []
    run(tiny, tiny.inputs(2), on_step=lambda event: seen.append((event.step, event.timesteps, event.rows)))
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    per_image = tiny.rows_per_step
    assert [rows for _, _, rows in seen] == [per_image * n for n in (1, 2, 4, 6)]


@pytest.mark.parametrize("guided", [False, True])
def test_guidance_in_two_calls_a_step_is_counted_as_predicted(guided: bool) -> None:
    tiny = flux()
    inputs = tiny.inputs(3)
    rows = recorded(tiny.pipe.transformer)
    if guided:
        inputs["negative_prompt_embeds"] = torch.zeros_like(inputs["prompt_embeds"])
        inputs["negative_pooled_prompt_embeds"] = torch.zeros_like(inputs["pooled_prompt_embeds"])
    result = run(tiny, inputs, true_cfg_scale=3.0)
    assert result.cost == result.plan.cost
    assert result.cost.used == sum(rows)
    assert result.plan.guidance_rows == (2 if guided else 1)
    assert rows == [1] * (len(rows) // 2) + [3] * (len(rows) // 2)  # two calls a step do not advance the clock


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_guidance_rows_are_counted_as_predicted(scale: float) -> None:
    tiny = sd3()
    result = run(tiny, tiny.inputs(2), guidance_scale=scale)
    assert result.cost == result.plan.cost
    assert result.plan.guidance_rows == (2 if scale > 1 else 1)


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_image_to_image_shares_a_fraction_of_the_steps_that_run(name: str, strength: float) -> None:
    tiny = sd_from_image()
    tiny.pipe.scheduler = SCHEDULERS[name]()
    inputs, call = tiny.inputs(3), {"strength": strength, "num_inference_steps": 10}
    rows = recorded(tiny.pipe.unet)
    result = run(tiny, inputs, **call)
    assert result.cost == result.plan.cost
    assert result.cost.used == sum(rows)
    assert len(result.plan.trees) == 1
    assert result.plan.trees[0].stop <= 0.5 * result.plan.timesteps
    assert not close(result.images[0], result.images[1], 1e-3)
    independent = run(tiny, inputs, sharing=None, **call)
    assert torch.equal(independent.images, bare(tiny, inputs, independent.plan.seeds, **call))


def test_a_strength_that_leaves_no_step_is_refused() -> None:
    tiny = sd_from_image()
    with pytest.raises(CotrunkError, match=r"strength 0\.1 leaves no step of 4"):
        run(tiny, tiny.inputs(2), strength=0.1)


@pytest.mark.parametrize(("scale", "perturbed", "expected"), [(3.0, 3.0, 3), (3.0, 0.0, 2), (1.0, 3.0, 2)])
def test_rows_of_perturbed_attention_guidance(scale: float, perturbed: float, expected: int) -> None:
    tiny = sd_perturbed()
    result = run(tiny, tiny.inputs(3), guidance_scale=scale, pag_scale=perturbed)
    assert result.plan.guidance_rows == expected
    assert result.cost == result.plan.cost
    with pytest.raises(CotrunkError, match="perturbed-attention guidance, which cannot run in chunks"):
        run(tiny, tiny.inputs(3), batching=Batching(max_rows=2))


def test_guidance_that_cannot_be_predicted_is_counted_with_a_warning() -> None:
    tiny = sd3()
    rows = recorded(tiny.pipe.transformer)
    with pytest.warns(UserWarning, match="denoiser rows where .* were predicted"):
        result = run(tiny, tiny.inputs(2), skip_guidance_layers=[0], skip_layer_guidance_stop=0.7)
    assert result.cost.used == sum(rows) > result.plan.cost.used


FEWER = Skipping(rule="fixed", every=2)


@pytest.mark.parametrize(
    ("planned", "skipping", "said"),
    [
        (STEPS + 1, None, "took 4 scheduler steps .* 5 were planned"),
        (STEPS + 1, FEWER, "took 4 scheduler steps .* 5 were planned"),
        (STEPS - 1, None, "takes more scheduler steps .* the 3 that"),
        (STEPS - 1, FEWER, "takes more scheduler steps .* the 3 that"),
        (1, FEWER, "takes more scheduler steps .* the 1 that"),  # with one step, nothing is shared
    ],
)
def test_a_pipeline_that_takes_other_steps_than_planned_is_refused(
    planned: int, skipping: Skipping | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = sd()
    monkeypatch.setattr("cotrunk.planning.request.timesteps_of", lambda pipe, arguments: (STEPS, planned))
    with pytest.raises(CotrunkError, match=said):
        run(tiny, tiny.inputs(2), skipping=skipping, sharing=replace(EVERYONE, share=0.9))


@pytest.mark.parametrize("planned", [STEPS + 1, STEPS - 1, 1])
def test_other_steps_than_planned_do_not_matter_where_every_row_is_computed(
    planned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = sd()
    expected = run(tiny, tiny.inputs(2), sharing=None, seed=[1, 2])
    monkeypatch.setattr("cotrunk.planning.request.timesteps_of", lambda pipe, arguments: (STEPS, planned))
    with pytest.warns(UserWarning, match="cannot predict its guidance or its steps"):
        result = run(tiny, tiny.inputs(2), sharing=None, seed=[1, 2])
    assert torch.equal(result.images, expected.images)
    assert result.cost == expected.cost


def test_a_callback_may_interrupt() -> None:
    tiny = sd()

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._interrupt = step == 1
        return tensors

    assert run(tiny, tiny.inputs(2), callback_on_step_end=stop).cost.used == 2 * 2


def test_an_unknown_condition_is_refused_before_its_first_row() -> None:
    class Odd(nn.Module):
        def forward(self, sample: Tensor, t: Tensor, mood: Tensor) -> Tensor:
            raise AssertionError("never called")

    pipe = SimpleNamespace(unet=Odd(), scheduler=SCHEDULERS["ddim"]())
    with (
        pytest.raises(CotrunkError, match="cannot share steps in a Odd: its argument mood differs"),
        attached(pipe, CallState(RowPlan(lambda step: (0, 0)), 1), [0, 0]),
    ):
        pipe.unet(torch.ones(2, 3), torch.tensor(1), mood=torch.eye(2))


class Frames(nn.Module):
    """Its conditions have one row per frame, as in AnimateDiff, so its rows cannot be separated."""

    def __init__(self, most: int = 99) -> None:
        super().__init__()
        self.most = most

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        if len(sample) > self.most:
            raise torch.OutOfMemoryError
        own = encoder_hidden_states.reshape(len(sample), -1, *encoder_hidden_states.shape[1:])
        return (sample + own.mean(dim=(1, 2, 3))[:, None],)


def called(call: CallState, *, images: int = 2, copies: int = 1, most: int = 99) -> list[Tensor]:
    """Return the outputs of the denoiser in two steps."""
    pipe = SimpleNamespace(unet=Frames(most), scheduler=SCHEDULERS["ddim"]())
    sample, texts = torch.ones(copies * images, 3), torch.randn(5 * copies * images, 2, 4)
    outputs = []
    with attached(pipe, call, [0] * images):
        for step in range(2):
            call.step = step
            outputs.append(pipe.unet(sample * step, torch.tensor(1), encoder_hidden_states=texts)[0])
    return outputs


def skipping_second(images: int) -> RowPlan:
    """All images are computed at the first step and none at the second."""
    policy: Any = SimpleNamespace(computes=lambda step: (step == 0,) * images)
    return RowPlan(lambda step: tuple(range(images)), (policy,))


@pytest.mark.parametrize(
    ("call", "options", "said"),
    [
        (
            CallState(skipping_second(2), 2),
            {},
            "No rows of a Frames can be skipped: its condition .* has 10 rows where",
        ),
        (CallState(RowPlan(lambda step: (0, 1), interval=(0, 1)), 2), {"copies": 2}, "No rows of a Frames can be skip"),
        (
            CallState(RowPlan(lambda step: (0, 1)), 2, max_rows=1),
            {},
            "A Frames cannot run in chunks: .* Leave max_rows",
        ),
        (CallState(RowPlan(lambda step: (0, 1)), 2, row_sizes=(4,)), {}, "A Frames cannot run in chunks"),
        (CallState(RowPlan(lambda step: (0, 0)), 2), {}, "Prompts cannot share steps in a Frames"),
    ],
)
def test_rows_that_cannot_be_separated_are_refused_at_the_first_call(
    call: CallState, options: dict[str, int], said: str
) -> None:
    with pytest.raises(CotrunkError, match=said):
        called(call, **options)
    assert call.rows == 0


def test_rows_that_cannot_be_separated_may_run_all_or_none() -> None:
    assert len(called(CallState(RowPlan(lambda step: (0, 1)), 2, max_rows=2))) == 2
    first, second = called(CallState(skipping_second(1), 2), images=1)
    assert torch.equal(first, second)
    with pytest.raises(torch.OutOfMemoryError):  # the user's: half of them would not run
        called(CallState(RowPlan(lambda step: (0, 1)), 2), most=1)


# --- noise --------------------------------------------------------------------------------------------------


FORGOTTEN = [("flow-euler-stochastic", sd3), ("flow-euler-stochastic", flux), ("dpm-sde", sd)]
DRAWING = [*FORGOTTEN, ("ddim-eta", sd), ("euler-ancestral", sd), ("dpm++2m-sde", sd), ("sasolver", sd), ("lcm", sd)]


def with_scheduler(name: str, build: Callable[[], TinyPipeline]) -> TinyPipeline:
    tiny = build()
    tiny.pipe.scheduler = SCHEDULERS[name]()
    return tiny


@pytest.mark.parametrize(("name", "build"), DRAWING)
def test_a_group_is_equal_in_the_trunk_and_not_after(name: str, build: Callable[[], TinyPipeline]) -> None:
    tiny = with_scheduler(name, build)
    branch = count_calls(tiny, STEPS) // 2
    ran = denoise(tiny, tiny.inputs(3), [[0, 1], [2]], branch, **CALL_KWARGS.get(name, {}))
    assert len(ran.latents) == count_calls(tiny, STEPS)
    for step, latents in enumerate(ran.latents):
        assert torch.equal(latents[0], latents[1]) == (step < branch)
        assert not close(latents[2], latents[0], 1e-2)


@pytest.mark.parametrize(("name", "build"), FORGOTTEN)
def test_noise_depends_on_the_seed_alone(name: str, build: Callable[[], TinyPipeline]) -> None:
    def images(rows: int, groups: Sequence[Sequence[int]], noise: int, seed: int = 2**47 + 1) -> Tensor:
        tiny = with_scheduler(name, build)
        torch.manual_seed(noise)
        seeds = [seed + (row // 2) for row in range(rows)]
        return denoise(tiny, tiny.inputs(rows), groups, 2, seeds).images

    together = images(4, [[0, 1], [2, 3]], noise=1)
    assert torch.equal(together, images(4, [[0, 1], [2, 3]], noise=2))
    assert close(images(2, [[0, 1]], noise=3), together[:2])
    assert not close(images(4, [[0, 1], [2, 3]], noise=1, seed=7), together, 1e-2)


def test_the_scheduler_keeps_its_own_seed_for_the_brownian_tree() -> None:
    tiny = with_scheduler("dpm-sde", sd)
    tiny.pipe.scheduler.noise_sampler_seed = 5
    run(tiny, tiny.inputs(2))
    assert tiny.pipe.scheduler.noise_sampler_seed == 5


def test_the_wrapped_step_keeps_its_signature() -> None:
    """Pipelines read it to decide on `eta` and `generator`."""
    for name in DIFFUSION:
        tiny = with_scheduler(name, sd)
        expected = inspect.signature(tiny.pipe.scheduler.step)
        with attached(tiny.pipe, CallState(RowPlan(lambda step: (0,)), 1), [0]):
            assert inspect.signature(tiny.pipe.scheduler.step) == expected


def test_a_scheduler_that_is_copied_in_a_run_is_refused() -> None:
    tiny = sd()
    with (
        attached(tiny.pipe, CallState(RowPlan(lambda step: (0,)), 1), [0]),
        pytest.raises(CotrunkError, match="copies its DPMSolverMultistepScheduler while it runs"),
    ):
        copy.deepcopy(tiny.pipe.scheduler)
    copy.deepcopy(tiny.pipe.scheduler)
