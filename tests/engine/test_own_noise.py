"""Trunks whose images keep their own noise, and share the x0 that the trunk predicts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import reference
import tiny
import torch
from building_blocks import certain
from running import STEPS, bare, close, denoiser, generate, run
from schedulers import CALL_KWARGS, DIFFUSION, SCHEDULERS, others_slow
from tiny import TinyPipeline, flux, pixart, sd, sd3, sd_from_image, sdxl
from torch import Tensor

from cotrunk import Batching, Branch, CotrunkError, Plan, Sharing, Skipping
from cotrunk.engine.equality import EqualityChecks
from cotrunk.engine.own_noise import OwnNoise
from cotrunk.engine.rewind import SchedulerSteps
from cotrunk.engine.step_plan import StepPlan, Trunk
from cotrunk.execution import Batch
from cotrunk.generation import prepare
from cotrunk.pipelines.noise_schedule import read_schedule
from cotrunk.planning.tree import leaf

OWN = Sharing(share=0.5, similarity=-1.0, noise="own", trunk_guidance=1.0)
UNGUIDED = replace(OWN, trunk_guidance=0.0)
SEEDS = [13, 12, 11, 14]


def plan_of(trees: Sequence[Branch], timesteps: int, steps: int, sharing: Sharing = OWN, seeds: Any = SEEDS) -> Plan:
    images = sum(len(tree.images) for tree in trees)
    names = tuple(f"prompt {image}" for image in range(images))
    plan = Plan(names, tuple(seeds[:images]), tuple(trees), steps, timesteps, sharing=sharing, threshold=-1.0)
    plan.check()
    return plan


def replayed(pipeline: TinyPipeline, plan: Plan, inputs: dict[str, Any], **arguments: Any) -> Tensor:
    arguments = {"num_inference_steps": plan.steps, "output_type": "latent"} | arguments
    result = generate(pipeline.pipe, plan=plan, **inputs, **arguments)
    assert result.cost == plan.cost
    return torch.as_tensor(result.output[pipeline.output_field])


# --- the algorithm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", others_slow(SCHEDULERS))
def test_equals_the_plain_loop_with_every_scheduler(name: str) -> None:
    pipeline = sd() if name in DIFFUSION else sd3()
    pipeline.pipe.scheduler = SCHEDULERS[name]()
    timesteps = reference.count_calls(pipeline, STEPS)
    order = pipeline.pipe.scheduler.order
    branch = max(order, timesteps // 2 // order * order)
    inputs, extra = pipeline.inputs(3), CALL_KWARGS.get(name, {})
    pair = Branch((0, 2), 0, branch, 0.5, (leaf(0, branch, timesteps), leaf(2, branch, timesteps)))
    for sharing in (OWN, UNGUIDED):
        plan = plan_of([pair, leaf(1, 0, timesteps)], timesteps, STEPS, sharing)
        made = replayed(pipeline, plan, inputs, guidance_scale=5.0, **extra)
        lineages = reference.branched([[0, 2], [1]], branch)
        how = {"own_noise": True, "trunk_guidance": sharing.trunk_guidance}
        wanted = reference.sample(pipeline, inputs, lineages, SEEDS[:3], STEPS, guidance=5.0, **how, **extra)
        assert close(made, wanted, 1e-3)


@pytest.mark.parametrize("guidance", [1.0, 0.4, 0.0])
def test_a_tree_with_several_branch_points_equals_the_plain_loop(guidance: float) -> None:
    pipeline, steps = sd(), 6
    inputs = pipeline.inputs(4)
    inner = Branch((0, 1), 2, 4, 0.8, (leaf(0, 4, steps), leaf(1, 4, steps)))
    tree = Branch((0, 1, 2, 3), 0, 2, 0.5, (inner, leaf(2, 2, steps), leaf(3, 2, steps)))
    everyone = [(2, [0, 1, 2, 3])]
    lineages = [[*everyone, (4, [0, 1])], [*everyone, (4, [0, 1])], everyone, everyone]
    for noise, seeds in (("own", SEEDS), ("common", [5] * 4)):
        sharing = replace(OWN, noise=noise, trunk_guidance=guidance)
        made = replayed(pipeline, plan_of([tree], steps, steps, sharing, seeds), inputs, guidance_scale=5.0)
        how = {"own_noise": noise == "own", "trunk_guidance": guidance}
        assert close(made, reference.sample(pipeline, inputs, lineages, seeds, steps, guidance=5.0, **how), 1e-3)


def constant_x0(pipeline: TinyPipeline, patch: pytest.MonkeyPatch) -> None:
    """Make the denoiser predict an x0 that depends neither on the sample nor on the prompt."""
    scheduler = pipeline.pipe.scheduler
    x0 = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))

    def exact(sample: Any = None, timestep: Any = None, hidden_states: Any = None, **_: Any) -> tuple[Tensor]:
        sample = hidden_states if sample is None else sample
        schedule = read_schedule(scheduler, [float(timestep.flatten()[0])])
        return (schedule.output_for(0, sample, x0.expand_as(sample)),)

    exact.rows_are_independent = True  # type: ignore[attr-defined]
    patch.setattr(denoiser(pipeline), "forward", exact)


def predicting(name: str, kind: str) -> TinyPipeline:
    """Return a pipeline with a scheduler and the prediction type of its denoiser."""
    pipeline, scheduler = sd3() if kind == "flow" else sd(), SCHEDULERS[name]()
    more = {} if kind == "flow" else {"prediction_type": kind}
    pipeline.pipe.scheduler = type(scheduler).from_config(scheduler.config, **more)
    return pipeline


def trajectory(pipeline: TinyPipeline, plan: Plan | None = None, **options: Any) -> tuple[Any, list[Tensor]]:
    """Return a result without guidance, and the latents (3, ...) after each step."""
    samples: list[Tensor] = []
    options = {"num_inference_steps": 12, "guidance_scale": 1.0} | options
    made = run(pipeline, pipeline.inputs(3), plan=plan, on_step=lambda e: samples.append(e.prev_sample), **options)
    return made, samples


NO_SAMPLE = ("kdpm2", "pndm", "euler-ancestral", "dpm-sde")  # schedulers for models that predict no x0
NAMES = ("ddim", "euler", "dpm++2m", "heun", "unipc", *NO_SAMPLE)
KINDS = [(name, kind) for name in NAMES for kind in ("epsilon", "v_prediction", "sample")]
KINDS = [pair for pair in KINDS if pair[1] != "sample" or pair[0] not in NO_SAMPLE]


@pytest.mark.parametrize(("name", "kind"), [*KINDS, ("flow-euler", "flow"), ("flow-heun", "flow")])
def test_images_whose_x0_is_one_are_exactly_their_independent_images(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = predicting(name, kind)
    constant_x0(pipeline, monkeypatch)
    made, shared = trajectory(pipeline, sharing=OWN)
    independent, alone = trajectory(pipeline, made.plan.independent())
    assert len(set(made.plan.seeds)) == 3
    assert made.cost.used < independent.cost.used
    assert not close(shared[0][0], shared[0][1], 0.1)
    # Euler and Heun interpolate sigma between trained timesteps, and cotrunk the signal
    assert all(close(mine, other, 2e-5) for mine, other in zip(shared, alone, strict=True))


@pytest.mark.parametrize("name", others_slow(SCHEDULERS))
def test_from_equal_noise_it_is_what_common_noise_is(name: str) -> None:
    pipeline = sd() if name in DIFFUSION else sd3()
    pipeline.pipe.scheduler = SCHEDULERS[name]()
    inputs, extra = pipeline.inputs(3), CALL_KWARGS.get(name, {})
    common = run(pipeline, inputs, num_inference_steps=6, **extra)
    assert common.plan.sharing is not None
    plan = replace(common.plan, sharing=replace(common.plan.sharing, noise="own"))
    own = run(pipeline, inputs, plan=plan, num_inference_steps=6, **extra)
    assert own.cost == common.cost
    assert close(own.images, common.images, 1e-4)


# --- pipelines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [sd, sdxl, sd3, flux, pixart, tiny.sana, tiny.wan])
def test_images_keep_their_noise_and_rows_are_as_predicted(build: Callable[[], TinyPipeline], tmp_path: Path) -> None:
    pipeline = build()
    inputs = pipeline.inputs(4)
    for sharing in (OWN, UNGUIDED):
        made = run(pipeline, inputs, sharing=sharing)
        assert made.cost == made.plan.cost
        assert len(set(made.plan.seeds)) == 4
        values = torch.as_tensor(made.output[pipeline.output_field])
        assert not any(torch.equal(values[0], other) for other in values[1:])
        made.plan.save(tmp_path / "plan.json")
        again = run(pipeline, inputs, plan=Plan.load(tmp_path / "plan.json"))
        assert torch.equal(torch.as_tensor(again.output[pipeline.output_field]), values)
    # the image whose row runs is the same whichever noise the others have
    seed = min(made.plan.seeds)
    common = replace(made.plan, seeds=(seed,) * 4, sharing=replace(UNGUIDED, noise="common"))
    others = torch.as_tensor(run(pipeline, inputs, plan=common).output[pipeline.output_field])
    at = made.plan.seeds.index(seed)
    assert close(values[at], others[at], 1e-5)


def test_several_runs_of_parts_of_a_plan_equal_the_whole() -> None:
    pipeline = sd()
    inputs, limits = pipeline.inputs(6), {"num_inference_steps": STEPS, "output_type": "latent"}
    sharing = replace(UNGUIDED, max_group=3)
    whole = generate(pipeline.pipe, sharing=sharing, **inputs, **limits)
    assert len(whole.plan.trees) == 2
    for tree in whole.plan.trees:
        part = prepare(pipeline.pipe, plan=whole.plan, **inputs, **limits).run([tree])
        assert close(part.output.images, whole.images[list(tree.images)], 1e-5)
    chunks = generate(pipeline.pipe, plan=whole.plan, batching=Batching(max_rows=2), **inputs, **limits)
    assert close(chunks.images, whole.images, 1e-5)


@pytest.mark.parametrize("mode", ["flat", "adaptive", "tree"])
def test_the_order_of_prompts_changes_only_rounding(mode: str) -> None:
    pipeline, order = sd(), [2, 0, 3, 1]
    inputs = pipeline.inputs(4)
    mixed = {key: value[order] if isinstance(value, Tensor) else value for key, value in inputs.items()}
    sharing = replace(UNGUIDED, mode=mode, similarity=-0.9)
    plain, other = (run(pipeline, each, sharing=sharing, num_inference_steps=8) for each in (inputs, mixed))
    assert [plain.plan.seeds[i] for i in order] == list(other.plan.seeds)
    assert plain.cost == other.cost
    assert close(other.images, plain.images[order], 1e-4)


def test_a_prompt_alone_is_unchanged_bit_for_bit() -> None:
    pipeline = sd()
    inputs = pipeline.inputs(1)
    alone = run(pipeline, inputs, sharing=UNGUIDED)
    assert torch.equal(alone.images, bare(pipeline, inputs, alone.plan.seeds))


# --- input images -------------------------------------------------------------------------------------------


def inpainting(channels: int) -> TinyPipeline:
    parts = tiny.sd_parts()
    if channels == 9:
        parts["unet"] = tiny.unet(attention_head_dim=4, in_channels=9)
    pipe = tiny.quiet(diffusers.StableDiffusionInpaintPipeline(**parts))
    draw = torch.Generator().manual_seed(1)
    image, mask = torch.rand(1, 3, 32, 32, generator=draw), (torch.rand(1, 1, 32, 32, generator=draw) > 0.5).float()

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return sd().inputs(n, seed) | {"image": image, "mask_image": mask, "strength": 0.9}

    return TinyPipeline(pipe, inputs)


@pytest.mark.parametrize("build", [sd_from_image, lambda: inpainting(4), lambda: inpainting(9)])
def test_images_made_from_one_input_image_keep_their_noise(build: Callable[[], TinyPipeline]) -> None:
    pipeline = build()
    certain(pipeline.pipe.vae)
    made = run(pipeline, pipeline.inputs(3), sharing=UNGUIDED, num_inference_steps=6)
    assert made.cost == made.plan.cost
    assert made.cost.saving > 0
    assert not close(made.images[0], made.images[1], 1e-2)


def test_a_difference_in_what_comes_with_the_latents_is_refused() -> None:
    """The encoder of this pipeline adds much noise, so that each image has another masked image."""
    pipeline = inpainting(9)
    with pytest.raises(CotrunkError, match=r'its argument sample differs among them, .* or noise="common"'):
        run(pipeline, pipeline.inputs(3), sharing=OWN, num_inference_steps=6)


@pytest.mark.parametrize("noise", ["own", "common"])
def test_a_callback_may_change_the_latents_of_one_image(noise: Any) -> None:
    pipeline = sd()

    def change(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["latents"][1] += 0.1
        return tensors

    arguments = {"sharing": replace(OWN, noise=noise), "callback_on_step_end": change}
    if noise == "own":
        assert run(pipeline, pipeline.inputs(3), **arguments).images.isfinite().all()
    else:
        with pytest.raises(CotrunkError, match="sample differs among them"):
            run(pipeline, pipeline.inputs(3), **arguments)


# --- what is refused ----------------------------------------------------------------------------------------


def test_a_scheduler_whose_noise_is_unknown_is_refused_before_denoising() -> None:
    pipeline = sd()
    pipeline.pipe.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(CotrunkError, match='use neither skipping nor noise="own"'):
        run(pipeline, pipeline.inputs(2), sharing=OWN)


def own_noise(outputs: int, given: Tensor | None) -> Tensor:
    """Return the outputs of two images in a trunk, from a denoiser with so many channels and this sample argument."""
    scheduler = SCHEDULERS["ddim"]()
    scheduler.set_timesteps(4)
    steps = SchedulerSteps(scheduler, scheduler.step)
    draw = torch.Generator().manual_seed(0)
    sample, output = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(1, outputs, 8, 8, generator=draw)
    steps.enter(0, sample, {"timestep": scheduler.timesteps[0]})
    own = OwnNoise(4, EqualityChecks())
    own.note_sample("Unet", sample if given is None else given)
    return own.outputs(StepPlan(0, (0, 0), trunk=Trunk(own_noise=True)), steps, output.repeat(2, 1, 1, 1), sample)


def test_a_predicted_variance_stays_that_of_the_trunk() -> None:
    made = own_noise(8, None)
    assert not torch.equal(made[0, :4], made[1, :4])
    assert torch.equal(made[0, 4:], made[1, 4:])


def test_outputs_and_samples_of_unknown_form_are_refused() -> None:
    with pytest.raises(CotrunkError, match=r"The output of Unet has the shape \(2, 3, 8, 8\) .* use noise=\"common\""):
        own_noise(3, None)
    with pytest.raises(
        CotrunkError, match=r'The sample of Unet does not begin with the latents, .* use noise="common"'
    ):
        own_noise(4, torch.zeros(2, 4, 9, 9))


# --- with skipping ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [sd, sd3, flux])
def test_skipping_of_tolerance_zero_changes_nothing(build: Callable[[], TinyPipeline]) -> None:
    pipeline = build()
    inputs = pipeline.inputs(3)
    plain = run(pipeline, inputs, sharing=UNGUIDED, num_inference_steps=12)
    zero = run(pipeline, inputs, sharing=UNGUIDED, num_inference_steps=12, skipping=Skipping(tolerance=0))
    assert torch.equal(plain.images, zero.images)
    assert plain.cost == zero.cost


@pytest.mark.parametrize("rule", [Skipping(rule="fixed", every=2), Skipping(tolerance=1e9), Skipping(rule="paper")])
@pytest.mark.parametrize("build", [sd, sdxl, sd3, flux])
def test_skipping_and_an_interval_of_guidance_count_with_sharing(
    build: Callable[[], TinyPipeline], rule: Skipping
) -> None:
    pipeline, batches = build(), list[Batch]()
    interval = None if build is flux else (0.2, 0.8)
    sharing = replace(UNGUIDED, share=0.6)
    options = {"skipping": rule, "guidance_interval": interval, "num_inference_steps": 12}
    made = run(pipeline, pipeline.inputs(3), sharing=sharing, on_batch=batches.append, **options)
    assert made.cost.used + made.spared["skipping"] + made.spared["guidance"] == made.plan.cost.used
    assert made.cost.used + sum(made.spared.values()) == made.cost.independent
    assert made.spared["skipping"] > 0
    assert sum(batches[0].rows) == pytest.approx(made.cost.used)
    stop = made.plan.trees[0].stop
    for letters in batches[0].steps:
        assert letters[stop - 1].upper() == "S"  # computed on both sides of the branch
        assert letters[stop].upper() == "C"
        assert build is flux or letters[:stop].islower()
        assert build is flux or letters[stop : round(0.8 * 12)].isupper()


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++2m", "unipc"])
def test_a_corrected_run_keeps_the_noise_of_each_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipped steps are taken again from each image's own sample: where x0 is one and reused, all steps are exact."""
    pipeline = predicting(name, "sample")
    constant_x0(pipeline, monkeypatch)
    rule = Skipping(rule="fixed", every=3, prediction="reuse")
    made, shared = trajectory(pipeline, sharing=replace(OWN, share=0.7), skipping=rule)
    assert made.spared["skipping"] > 0
    _, alone = trajectory(pipeline, made.plan.independent())
    assert all(close(mine, other, 1e-5) for mine, other in zip(shared, alone, strict=True))
