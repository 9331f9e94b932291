"""Skipping in pipelines: what runs and what does not, alone and with sharing, guidance and side networks."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from running import EVERYONE, BrokenError, bare, close, denoiser, generate, recorded, state
from schedulers import DIFFUSION, FLOW, REPRESENTATIVE, others_slow
from skipped import EVERY_THIRD, FIXED, STEPS, pixels, skipped
from tiny import TinyPipeline, flux, sd, sd3, sd_controlnet, sd_from_image, sd_perturbed, wan
from torch import Tensor

from cotrunk import Batch, Batching, Cost, CotrunkError, Skipping, apply, mini, remove
from cotrunk.pipelines.noise_schedule import read_schedule


def strips(tiny: TinyPipeline, inputs: dict[str, Any], **arguments: Any) -> list[str]:
    letters: dict[int, str] = {}
    skipped(
        tiny, inputs, on_batch=lambda batch: letters.update(zip(batch.images, batch.steps, strict=True)), **arguments
    )
    return [letters[image] for image in sorted(letters)]


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_tolerance_zero_equals_the_run_without_skipping_bit_for_bit(name: str) -> None:
    pipeline = tiny.PIPELINES[name]()
    inputs = pipeline.inputs(2)
    none, zero = skipped(pipeline, inputs, None), skipped(pipeline, inputs, Skipping(tolerance=0))
    assert torch.equal(pixels(pipeline, none), pixels(pipeline, zero))
    assert zero.cost == none.cost
    assert not zero.spared["skipping"]


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_rows_are_skipped_and_counted(name: str) -> None:
    pipeline = tiny.PIPELINES[name]()
    ran = recorded(denoiser(pipeline))
    result = skipped(pipeline, pipeline.inputs(3))
    a_step = pipeline.rows_per_step * 3
    assert result.cost.independent == STEPS * a_step
    assert result.cost.used == sum(ran) == FIXED.count("C") * a_step
    assert result.spared["skipping"] == result.cost.independent - result.cost.used
    assert pixels(pipeline, result).isfinite().all()


@pytest.mark.parametrize("name", others_slow([*DIFFUSION, *FLOW]))
def test_every_scheduler_runs_and_computes_its_first_and_last_steps(name: str) -> None:
    pipeline = sd() if name in DIFFUSION else sd3()
    pipeline.pipe.scheduler = (DIFFUSION | FLOW)[name]()
    published = [Skipping(rule="paper"), Skipping(rule="released")] if name in REPRESENTATIVE else []
    for skipping in (Skipping(tolerance=1e9), *published):
        own = {"eta": 1.0} if name == "ddim-eta" else {}
        batches = list[Batch]()
        result = skipped(pipeline, pipeline.inputs(2), skipping, on_batch=batches.append, **own)
        assert pixels(pipeline, result).isfinite().all()
        for letters in (letters for batch in batches for letters in batch.steps):
            assert letters.startswith("C" if skipping.rule == "error" else "CCC")
            assert letters.endswith("C")
            assert skipping.rule != "error" or "P" in letters


# multistep schedulers, and those that correct the previous step: their memory must be as if nothing had been skipped
@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++2m", "dpm++3m", "unipc", "lms", "deis", "pndm", "heun"])
def test_a_corrected_run_equals_the_scheduler_on_interpolated_outputs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A denoiser whose output is a straight line in time is interpolated exactly, however wrong its predictions are."""

    def images(skipping: Skipping | None) -> tuple[Tensor, int]:
        pipeline = sd()
        scheduler = pipeline.pipe.scheduler = DIFFUSION[name]()
        direction = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))

        def straight(sample: Tensor, timestep: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
            time = read_schedule(scheduler, [float(timestep)]).time(0)
            return ((direction * time).expand_as(sample) + 0.0,)

        straight.rows_are_independent = True  # type: ignore[attr-defined]
        monkeypatch.setattr(pipeline.pipe.unet, "forward", straight)
        result = skipped(pipeline, pipeline.inputs(1), skipping)
        return pixels(pipeline, result), result.cost.used

    full, wrong = images(None), images(Skipping(rule="fixed", every=3, prediction="reuse"))
    assert wrong[1] < full[1]
    assert close(wrong[0], full[0], 1e-4)
    uncorrected = images(Skipping(rule="fixed", every=3, prediction="reuse", correct=False))
    assert not close(uncorrected[0], full[0], 1e-3)


@pytest.mark.parametrize("skipping", [Skipping(0.05), Skipping(rule="released")], ids=lambda skipping: skipping.rule)
@pytest.mark.parametrize("build", [sd, sd3, flux])
def test_an_image_alone_equals_the_image_in_a_batch_of_16(
    build: Callable[[], TinyPipeline], skipping: Skipping
) -> None:
    pipeline, seeds = build(), list(range(1, 17))
    inputs = pipeline.inputs(16)
    third = {key: value[2:3] if isinstance(value, Tensor) else value for key, value in inputs.items()}
    together = skipped(pipeline, inputs, skipping, seed=seeds)
    alone = skipped(pipeline, third, skipping, seed=[3])
    assert close(pixels(pipeline, alone)[0], pixels(pipeline, together)[2])
    all_letters = strips(pipeline, inputs, skipping=skipping, seed=seeds)
    assert strips(pipeline, third, skipping=skipping, seed=[3]) == all_letters[2:3]


@pytest.mark.parametrize("controlnets", [1, 2])
def test_a_controlnet_does_not_run_if_its_denoiser_does_not(controlnets: int) -> None:
    pipeline = sd_controlnet(controlnets)
    nets = [pipeline.pipe.controlnet] if controlnets == 1 else list(pipeline.pipe.controlnet.nets)
    denoised, controlled = recorded(pipeline.pipe.unet), [recorded(net) for net in nets]
    skipped(pipeline, pipeline.inputs(2))
    assert len(denoised) == FIXED.count("C")
    assert all(rows == denoised for rows in controlled)


def test_two_denoiser_calls_per_step_decide_together() -> None:
    """Flux with true guidance calls its denoiser for the prompt, then for the negative prompt."""
    pipeline = flux()
    inputs = pipeline.inputs(2)
    inputs |= {f"negative_{name}": -inputs[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}
    ran = recorded(pipeline.pipe.transformer)
    result = skipped(pipeline, inputs, true_cfg_scale=2.0)
    assert ran == [2] * 2 * FIXED.count("C")
    assert result.cost.used == sum(ran)
    assert strips(pipeline, inputs, true_cfg_scale=2.0) == [FIXED] * 2


def test_a_video_pipeline() -> None:
    pipeline = wan()
    inputs = pipeline.inputs(2)
    ran = recorded(pipeline.pipe.transformer)
    result = skipped(pipeline, inputs)
    assert ran == [2] * 2 * FIXED.count("C")
    assert pixels(pipeline, result).isfinite().all()
    assert result.cost.used == sum(ran)
    whole, zero = skipped(pipeline, inputs, None), skipped(pipeline, inputs, Skipping(tolerance=0))
    assert torch.equal(pixels(pipeline, whole), pixels(pipeline, zero))


def test_rows_spared_by_sharing_are_not_counted_for_guidance() -> None:
    """Guidance is a separate call (wan) or a second row in the batch. Both are counted alike at
    steps where sharing and the interval save the same rows."""
    counts = [
        skipped(pipeline, pipeline.inputs(2), None, sharing=EVERYONE, guidance_interval=(0.5, 1.0)).spared
        for pipeline in (wan(), sd())
    ]
    assert counts[0] == counts[1]
    assert counts[0]["sharing"] > 0
    assert counts[0]["guidance"] > 0


@pytest.mark.parametrize("build", [sd, sd3])
def test_guidance_is_off_outside_its_interval(build: Callable[[], TinyPipeline]) -> None:
    pipeline = build()
    inputs = pipeline.inputs(2)
    result = skipped(pipeline, inputs, None, guidance_interval=(0.25, 0.75))
    assert result.spared["guidance"] == 6 * 2
    assert result.cost.used == 6 * 2 * 2 + 6 * 2
    unguided = skipped(pipeline, inputs, None, guidance_scale=1.0)
    never = skipped(pipeline, inputs, None, guidance_interval=(0, 0))
    assert close(pixels(pipeline, never), pixels(pipeline, unguided))
    everywhere = skipped(pipeline, inputs, None, guidance_interval=(0, 1))
    assert torch.equal(pixels(pipeline, everywhere), pixels(pipeline, skipped(pipeline, inputs, None)))
    assert not close(pixels(pipeline, result), pixels(pipeline, everywhere))


def test_around_a_switch_of_guidance_every_image_is_computed() -> None:
    letters = strips(sd(), sd().inputs(1), guidance_interval=(0.5, 1.0))[0]
    assert letters[5:7] == "cC"


def test_sharing_skipping_and_guidance_multiply() -> None:
    pipeline = sd()
    inputs = pipeline.inputs(3)
    ran = recorded(pipeline.pipe.unet)
    result = skipped(pipeline, inputs, sharing=EVERYONE, guidance_interval=(0.0, 0.75))
    assert result.cost.used == sum(ran)
    assert result.cost.independent == STEPS * 2 * 3
    assert result.cost.independent - result.cost.used == sum(result.spared.values())
    assert all(result.spared[what] > 0 for what in ("sharing", "guidance", "skipping"))
    letters = strips(pipeline, inputs, sharing=EVERYONE, guidance_interval=(0.0, 0.75))
    assert len(set(letters)) == 1  # a fixed rule decides the same for all images
    assert letters[0].startswith("SSS")
    assert letters[0][5:7] == "SC"  # the last step together and the first alone
    assert letters[0].endswith("c")


def test_forward_passes_have_the_requested_sizes() -> None:
    pipeline = sd()
    inputs, skipping = pipeline.inputs(3), Skipping(tolerance=2)
    ran = recorded(pipeline.pipe.unet)
    free = skipped(pipeline, inputs, skipping, num_inference_steps=20)
    assert set(ran) == {2, 4, 6}
    ran.clear()
    filled = skipped(pipeline, inputs, skipping, num_inference_steps=20, batching=Batching(row_sizes=(4, 8)))
    assert set(ran) == {4, 8}
    assert filled.cost.used == sum(ran) > free.cost.used
    assert close(pixels(pipeline, filled), pixels(pipeline, free))
    ran.clear()
    with apply(pipeline.pipe, skipping, row_sizes=(4, 8)) as applied:
        own = bare(pipeline, inputs, filled.plan.seeds, num_inference_steps=20)
    assert set(ran) == {4, 8}
    assert applied.rows == sum(ran) == filled.cost.used
    assert close(own, pixels(pipeline, free))
    ran.clear()
    skipped(pipeline, inputs, skipping, batching=Batching(max_rows=5, row_sizes=(4, 8)))
    assert max(ran) <= 5


@pytest.mark.slow
def test_a_compiled_denoiser_gives_the_same_images_and_meets_few_shapes() -> None:
    pipeline, compiled = sd(), list[int]()
    inputs, skipping = pipeline.inputs(3), Skipping(tolerance=2)
    expected = skipped(pipeline, inputs, skipping, num_inference_steps=20)

    def eager(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        compiled.extend(len(tensor) for tensor in example if tensor.shape[1:] == (4, 16, 16))
        return graph.forward

    torch._dynamo.reset()
    pipeline.pipe.unet = torch.compile(pipeline.pipe.unet, backend=eager, dynamic=False)
    result = skipped(pipeline, inputs, skipping, num_inference_steps=20, batching=Batching(row_sizes=(4, 8)))
    with apply(pipeline.pipe, skipping, row_sizes=(4, 8)):
        applied_images = bare(pipeline, inputs, result.plan.seeds, num_inference_steps=20)
    torch._dynamo.reset()
    assert sorted(compiled) == [4, 8]
    assert result.spared == expected.spared
    for images in (pixels(pipeline, result), applied_images):
        assert close(images, pixels(pipeline, expected), 1e-5)


# --- a plain accelerator ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_apply_gives_what_generate_gives(name: str) -> None:
    pipeline = tiny.PIPELINES[name]()
    inputs = pipeline.inputs(2)
    ours = skipped(pipeline, inputs)
    with apply(pipeline.pipe, EVERY_THIRD) as applied:
        for _ in range(2):  # every call is a run of its own
            own = bare(pipeline, inputs, ours.plan.seeds, num_inference_steps=STEPS)
            assert close(torch.as_tensor(np.asarray(own)), pixels(pipeline, ours))
    assert applied.rows == 2 * ours.cost.used
    assert applied.rows_asked == 2 * ours.cost.independent


def cost_by_both_ways(pipeline: TinyPipeline, inputs: dict[str, Any], skipping: Skipping, steps: int) -> Cost:
    """Check that `apply` gives the images and rows of `generate`, and return their cost."""
    ours = skipped(pipeline, inputs, skipping, num_inference_steps=steps)
    with apply(pipeline.pipe, skipping) as applied:
        own = bare(pipeline, inputs, ours.plan.seeds, num_inference_steps=steps)
    assert applied.rows == ours.cost.used
    assert close(own, pixels(pipeline, ours))
    return ours.cost


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++2m"])
def test_an_applied_run_from_an_image_knows_where_it_begins(scheduler: str) -> None:
    pipeline = sd_from_image()
    pipeline.pipe.scheduler = DIFFUSION[scheduler]()
    inputs = pipeline.inputs(2) | {"strength": 0.6}
    cost = cost_by_both_ways(pipeline, inputs, Skipping(tolerance=0.5), steps=20)
    assert cost.used < cost.independent


@pytest.mark.slow
def test_from_an_image_skipping_is_closer_to_all_steps_than_fewer_steps() -> None:
    """It runs on the embedded model, whose first outputs from an image change fast. The worst image counts."""
    text = mini.load()
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**text.components, requires_safety_checker=False)
    prompts = ["broken heart, twemoji style", "astronaut, noto style"]

    def called(pipe: Any, prompts: list[str], steps: int, **arguments: Any) -> Tensor:
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        return pipe(prompts, generator=generators, num_inference_steps=steps, output_type="pt", **arguments).images

    begun = {"image": called(text, ["red apple, noto style", "owl, flat style"], 8), "strength": 0.5}
    full = called(pipe, prompts, 30, **begun)
    with apply(pipe) as applied:
        ours = called(pipe, prompts, 30, **begun)
    computed = applied.rows / (2 * len(prompts))
    assert computed < 13  # of 15
    plain = called(pipe, prompts, 2 * math.ceil(computed), **begun)
    worst = [(images - full).square().mean(dim=(1, 2, 3)).max() for images in (ours, plain)]
    assert worst[0] < worst[1] / 4  # 6 dB


@pytest.mark.parametrize("raises", [False, True])
def test_remove_leaves_no_trace(raises: bool, tmp_path: Any) -> None:
    pipeline = sd()
    pipeline.pipe(**pipeline.inputs(1), num_inference_steps=2)  # pipelines store values of their last call
    kind, before = type(pipeline.pipe), state(pipeline)
    names = inspect.signature(pipeline.pipe.__call__).parameters

    def broken(*_: Any) -> dict[str, Tensor]:
        raise BrokenError

    with apply(pipeline.pipe, EVERY_THIRD):
        assert isinstance(pipeline.pipe, kind)
        assert type(pipeline.pipe).__name__ == kind.__name__
        assert inspect.signature(pipeline.pipe.__call__).parameters.keys() == names.keys()
        if raises:
            with pytest.raises(BrokenError):
                pipeline.pipe(**pipeline.inputs(1), num_inference_steps=2, callback_on_step_end=broken)
    assert type(pipeline.pipe) is kind
    after = state(pipeline)
    assert all(after[part].keys() == before[part].keys() for part in before)


def test_apply_skips_in_each_of_several_runs_of_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline for long videos runs its scheduler several times."""
    pipeline = sd()
    once = type(pipeline.pipe).__call__

    @functools.wraps(once)
    def twice(self: Any, *args: Any, **kwargs: Any) -> Any:
        once(self, *args, **kwargs)
        return once(self, *args, **kwargs)

    with apply(pipeline.pipe, EVERY_THIRD) as applied:
        alone = bare(pipeline, pipeline.inputs(2), [1, 2], num_inference_steps=STEPS)
    rows = applied.rows
    monkeypatch.setattr(type(pipeline.pipe), "__call__", twice)
    with apply(pipeline.pipe, EVERY_THIRD) as applied:
        again = bare(pipeline, pipeline.inputs(2), [1, 2], num_inference_steps=STEPS)
    assert applied.rows == 2 * rows
    assert again.shape == alone.shape
    assert torch.as_tensor(again).isfinite().all()


def test_an_interval_without_a_second_row_of_guidance_is_refused() -> None:
    pipeline = flux()
    with pytest.raises(CotrunkError, match="FluxPipeline computes no extra row for guidance"):
        skipped(pipeline, pipeline.inputs(1), None, guidance_interval=(0.1, 0.8), guidance_scale=3.5)


def test_two_transformers_one_after_the_other_are_refused() -> None:
    pipeline = wan()
    pipeline.pipe.register_to_config(boundary_ratio=0.5)
    pipeline.pipe.transformer_2 = pipeline.pipe.transformer
    with pytest.raises(CotrunkError, match="changes from one transformer to another"):
        skipped(pipeline, pipeline.inputs(1))


def test_skipping_is_applied_once() -> None:
    pipeline = sd()
    applied = apply(pipeline.pipe)
    with pytest.raises(CotrunkError, match="applied to this StableDiffusionPipeline already: call"):
        apply(pipeline.pipe)
    applied.remove()
    applied.remove()
    apply(pipeline.pipe).remove()


# --- refused before any denoising ---------------------------------------------------------------------------


def _cached(pipeline: TinyPipeline) -> None:
    pipeline.pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))


def _unreadable(pipeline: TinyPipeline) -> None:
    pipeline.pipe.scheduler = diffusers.EDMEulerScheduler()


@pytest.mark.parametrize(
    ("build", "change", "said"),
    [
        (sd, _unreadable, "EDMEulerScheduler does not say how noisy a timestep is"),
        (flux, _cached, "has a cache enabled, which does not work with skipping"),
        (sd_perturbed, lambda pipeline: None, "uses perturbed-attention guidance, which does not work with skipping"),
    ],
)
def test_a_pipeline_that_cannot_skip_is_refused_first(
    build: Callable[[], TinyPipeline], change: Callable, said: str
) -> None:
    pipeline = build()
    change(pipeline)
    ran = recorded(denoiser(pipeline))
    with pytest.raises(CotrunkError, match=said):
        skipped(pipeline, pipeline.inputs(1))
    with pytest.raises(CotrunkError, match=said):
        apply(pipeline.pipe)
    assert ran == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"skipping": 0.1}, "skipping is a float: give Skipping"),
        ({"guidance_interval": (0.2, 1.5)}, r"guidance_interval \(0.2, 1.5\) is out of range"),
        ({"guidance_interval": 0.5}, "guidance_interval 0.5 is not a pair"),
    ],
)
def test_bad_arguments_are_reported(arguments: dict[str, Any], said: str) -> None:
    pipeline = sd()
    with pytest.raises(CotrunkError, match=said):
        generate(pipeline.pipe, **pipeline.inputs(1), **arguments)
    with pytest.raises(CotrunkError, match="skipping is a float"):
        apply(pipeline.pipe, 0.1)
    with pytest.raises(CotrunkError, match="row_sizes 8 is not a list"):
        apply(pipeline.pipe, row_sizes=8)


# --- what a review found -------------------------------------------------------------------------------------


def test_nothing_is_interpolated_across_a_discontinuity() -> None:
    """Outputs that are constant on both sides of a switch of guidance stay so, whatever gaps there are."""
    pipeline = sd()
    pipeline.pipe.scheduler = DIFFUSION["ddim"]()

    def constant(sample: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        half = len(sample) // 2
        return (torch.cat([torch.zeros_like(sample[:half]), torch.ones_like(sample[half:])]),)

    constant.rows_are_independent = True  # type: ignore[attr-defined]
    pipeline.pipe.unet.forward = constant  # type: ignore[method-assign]
    arguments = {"guidance_interval": (0.5, 1.0), "guidance_scale": 3.0, "num_inference_steps": 20}
    result = skipped(pipeline, pipeline.inputs(1), **arguments)
    whole = skipped(pipeline, pipeline.inputs(1), None, **arguments)
    assert result.cost.used < whole.cost.used
    assert close(pixels(pipeline, result), pixels(pipeline, whole), 1e-5)


def test_what_a_callback_does_to_one_image_is_not_undone_by_the_gap_of_another() -> None:
    pipeline = sd()

    def change(_: Any, __: int, ___: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": tensors["latents"] * 1.05 + 0.1}

    inputs = pipeline.inputs(3)
    third = {key: value[2:3] if isinstance(value, Tensor) else value for key, value in inputs.items()}
    arguments = {"callback_on_step_end": change}
    together = skipped(pipeline, inputs, Skipping(tolerance=0.05), seed=[1, 2, 3], **arguments)
    alone = skipped(pipeline, third, Skipping(tolerance=0.05), seed=[3], **arguments)
    assert close(pixels(pipeline, alone)[0], pixels(pipeline, together)[2], 1e-5)


def test_repeated_timesteps_count_once() -> None:
    pipeline = sd()
    pipeline.pipe.scheduler = DIFFUSION["dpm++2m-karras"]()
    for skipping in (EVERY_THIRD, Skipping(tolerance=0.5)):
        result = skipped(pipeline, pipeline.inputs(1), skipping, num_inference_steps=200)
        assert pixels(pipeline, result).isfinite().all()


def test_a_run_that_ends_early_reads_its_noise_schedule() -> None:
    """SDXL's `denoising_end` takes the first part of a schedule. It is tested with `generate` and with `apply`."""
    pipeline = tiny.sdxl()
    inputs = pipeline.inputs(2) | {"denoising_end": 0.5}
    cost = cost_by_both_ways(pipeline, inputs, Skipping(tolerance=0.5), steps=40)
    assert cost.used < cost.independent


def test_an_applied_heun_run_from_an_image() -> None:
    pipeline = sd_from_image()
    pipeline.pipe.scheduler = DIFFUSION["heun"]()
    inputs = pipeline.inputs(1) | {"strength": 0.6}
    cost_by_both_ways(pipeline, inputs, Skipping(tolerance=0.05), steps=20)


def test_tolerance_zero_computes_all_tokens() -> None:
    pipeline = sd()
    inputs = pipeline.inputs(1)
    none, zero = skipped(pipeline, inputs, None), skipped(pipeline, inputs, Skipping(tolerance=0, tokens=0.5))
    assert torch.equal(pixels(pipeline, none), pixels(pipeline, zero))


def test_tokens_of_two_denoiser_calls_per_step_are_not_mixed() -> None:
    pipeline = flux()
    inputs = pipeline.inputs(1)
    inputs |= {f"negative_{name}": -inputs[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}
    every = skipped(pipeline, inputs, Skipping(rule="fixed", every=2, tokens=1.0), true_cfg_scale=2.0)
    whole = skipped(pipeline, inputs, Skipping(rule="fixed", every=2), true_cfg_scale=2.0)
    assert close(pixels(pipeline, every), pixels(pipeline, whole))


def cosmos_scheduler() -> diffusers.FlowMatchEulerDiscreteScheduler:
    """Return the scheduler of a flow whose samples are x0 + sigma * noise, with sigmas up to 80."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.register_to_config(sigma_max=80.0)
    return scheduler


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        cosmos_scheduler(),
        diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
    ],
)
def test_schedules_with_another_meaning_are_refused(scheduler: Any) -> None:
    with pytest.raises(CotrunkError, match="does not say how noisy a timestep is"):
        read_schedule(scheduler, ())


def test_generate_refuses_a_pipeline_with_skipping_applied() -> None:
    pipeline = sd()
    with (
        apply(pipeline.pipe),
        pytest.raises(CotrunkError, match="Skipping is applied to this StableDiffusionPipeline: call"),
    ):
        skipped(pipeline, pipeline.inputs(1))
    skipped(pipeline, pipeline.inputs(1))


def test_remove_needs_no_handle() -> None:
    pipeline = sd()
    kind = type(pipeline.pipe)
    applied = apply(pipeline.pipe, EVERY_THIRD)
    assert repr(applied) == "<Applied: StableDiffusionPipeline, 0 of 0 denoiser rows>"
    remove(pipeline.pipe)
    assert type(pipeline.pipe) is kind
    remove(pipeline.pipe)  # a pipeline without skipping stays as it is
    with apply(pipeline.pipe, EVERY_THIRD):
        remove(pipeline.pipe)
        with apply(pipeline.pipe, EVERY_THIRD) as second:
            pass
    assert type(pipeline.pipe) is kind
    assert second.rows == 0


def test_apply_remembers_a_row_limit_found_by_running_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = sd()
    module = pipeline.pipe.unet
    forward, failures = module.forward, list[int]()

    @functools.wraps(forward)
    def small(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(sample) > 2:
            failures.append(len(sample))
            raise torch.OutOfMemoryError
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(module, "forward", small)
    with apply(pipeline.pipe, EVERY_THIRD) as applied:
        for _ in range(2):
            pipeline.pipe(**pipeline.inputs(2), num_inference_steps=4, output_type="latent")
        assert (failures, applied.max_rows) == ([4], 2)
