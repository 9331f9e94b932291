"""Images that replay a trunk: exact where they can be, and the same whether the trunk is stored or computed again."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from building_blocks import byte_tokenizer, clip, sd_parts
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPAGPipeline
from PIL import Image
from running import bare, close, denoiser, generate, recorded
from schedulers import BROWNIAN, CALL_KWARGS, DIFFUSION, others_slow
from tiny import TinyPipeline, sd_with_text
from torch import Tensor

from cotrunk import Batching, Branch, CotrunkError, Plan, Settings, Sharing, Skipping
from cotrunk.engine.trunk_outputs import rounded_to_half
from cotrunk.generation import prepare
from cotrunk.pipelines.cost import timesteps_of
from cotrunk.pipelines.noise_schedule import read_schedule
from cotrunk.planning.replayed import Replayed
from cotrunk.planning.tree import leaf
from cotrunk.planning.trunk_recipe import TrunkRecipe
from cotrunk.trunks.access import Trunks
from cotrunk.trunks.pipeline_state import pipeline_digest

STEPS = 6
TEXTS = ["a red apple", "a green apple", "a blue plum", "an old pear"]
COMMON = Sharing(share=0.6, similarity=-1.0, noise="common", trunk_guidance=1.0)
OWN = Sharing(share=0.6, similarity=-1.0, noise="own", trunk_guidance=1.0)
UNGUIDED = replace(OWN, trunk_guidance=0.0)
CALL: dict[str, Any] = {"negative_prompt": "blurred", "height": 32, "width": 32, "guidance_scale": 5.0}


def pipeline(scheduler: str | None = None) -> TinyPipeline:
    tiny = sd_with_text()
    if scheduler is not None:
        tiny.pipe.scheduler = DIFFUSION[scheduler]()
    return tiny


def evaluations(tiny: TinyPipeline, part: float = 0.5) -> tuple[int, int]:
    """Return the timesteps of a run, and those of a part of it in whole steps."""
    timesteps, order = timesteps_of(tiny.pipe, {"num_inference_steps": STEPS})[1], tiny.pipe.scheduler.order
    return timesteps, max(order, int(timesteps * part) // order * order)


def plan_of(
    timesteps: int,
    trees: Sequence[Branch],
    seeds: Sequence[int],
    trunks: Sequence[Replayed],
    sharing: Sharing = COMMON,
    texts: Sequence[str] = TEXTS,
) -> Plan:
    own = tuple(texts[: len(seeds)])
    plan = Plan(
        own, tuple(seeds), tuple(trees), STEPS, timesteps, sharing=sharing, threshold=-1.0, trunks=tuple(trunks)
    )
    plan.check()
    return plan


def made(tiny: TinyPipeline, plan: Plan, **options: Any) -> Any:
    options = {"num_inference_steps": STEPS, "output_type": "latent", "skipping": None} | CALL | options
    return generate(tiny.pipe, plan=plan, **options)


def alone(text: str, seed: int, tiny: TinyPipeline, **options: Any) -> Tensor:
    if isinstance(tiny.pipe.scheduler, type(DIFFUSION[BROWNIAN]())):  # the pipeline alone does not seed it
        plan = plan_of(evaluations(tiny)[0], [leaf(0, 0, evaluations(tiny)[0])], [seed], [], texts=[text])
        return made(tiny, plan, **options).images
    inputs = {**CALL, "prompt": [text], "negative_prompt": [CALL["negative_prompt"]], **options}
    return bare(tiny, inputs, [seed], num_inference_steps=STEPS)


def of_one(
    tiny: TinyPipeline, sharing: Sharing, seed: int = 5, trunk_seed: int = 5, precision: Any = "float32"
) -> Plan:
    """Return the plan of one image that replays the trunk of its own prompt."""
    timesteps, stop = evaluations(tiny)
    trunk = Replayed(TrunkRecipe((TEXTS[0],), trunk_seed, stop, precision), (0,), stop)
    return plan_of(timesteps, [leaf(0, 0, timesteps)], [seed], [trunk], sharing)


# --- exactness ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", others_slow(DIFFUSION))
def test_a_trunk_of_the_same_prompt_and_noise_gives_the_bare_image_bit_for_bit(name: str) -> None:
    tiny, extra = pipeline(name), CALL_KWARGS.get(name, {})
    wanted = alone(TEXTS[0], 5, tiny, **extra)
    result = made(tiny, of_one(tiny, COMMON), **extra)
    assert torch.equal(result.images, wanted)
    assert torch.equal(alone(TEXTS[0], 5, tiny, **extra), wanted)  # the scheduler is as it was
    half = made(tiny, of_one(tiny, COMMON, precision="float16"), **extra).images
    assert not torch.equal(half, wanted)
    assert close(half, wanted, 2e-3)


@pytest.mark.parametrize("name", others_slow(DIFFUSION))
def test_with_noise_of_its_own_it_gives_the_bare_image_but_for_rounding(name: str) -> None:
    tiny, extra = pipeline(name), CALL_KWARGS.get(name, {})
    assert close(made(tiny, of_one(tiny, OWN), **extra).images, alone(TEXTS[0], 5, tiny, **extra), 2e-4)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++2m", "unipc", "heun"])
def test_one_trunk_serves_any_seed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the denoiser predicts one x0 whatever it gets, replaying a trunk of other noise changes nothing."""
    tiny = pipeline(name)
    x0 = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))

    def exact(sample: Tensor, timestep: Any, **_: Any) -> tuple[Tensor]:
        schedule = read_schedule(tiny.pipe.scheduler, [float(torch.as_tensor(timestep).flatten()[0])])
        # the pipeline scales the samples of Euler and Heun before the denoiser
        return (replace(schedule, divided=False).output_for(0, sample, x0.expand_as(sample)),)

    exact.rows_are_independent = True  # type: ignore[attr-defined]
    monkeypatch.setattr(denoiser(tiny), "forward", exact)
    plan = of_one(tiny, OWN, seed=7, trunk_seed=5)
    assert close(made(tiny, plan).images, alone(TEXTS[0], 7, tiny), 2e-5)


# --- the cache changes nothing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sharing", "precision"),
    [
        (COMMON, "float32"),
        (UNGUIDED, "float16"),
        pytest.param(OWN, "float32", marks=pytest.mark.slow),
        pytest.param(COMMON, "float16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", others_slow(DIFFUSION))
def test_stored_and_computed_again_it_gives_the_same_image(name: str, sharing: Sharing, precision: Any) -> None:
    tiny, extra = pipeline(name), CALL_KWARGS.get(name, {}) | {"sharing": sharing}
    options = {"num_inference_steps": STEPS, "output_type": "latent", **CALL, **extra}
    trunks = Trunks(None, precision=precision)
    first = generate(tiny.pipe, TEXTS[:2], trunks=trunks, **options)
    late = generate(tiny.pipe, TEXTS[2:3], trunks=trunks, **options)
    (trunk,) = late.plan.trunks
    assert trunk.recipe == first.plan.trunks[0].recipe
    assert trunk.is_stored
    assert late.spared["replay"] == trunk.stop * 2
    evicted = generate(tiny.pipe, plan=late.plan, **options)
    assert torch.equal(evicted.images, late.images)
    assert evicted.cost.used == late.cost.used + trunk.recipe.steps * (2 if sharing.trunk_guidance else 1)
    assert not evicted.plan.trunks[0].is_stored
    again = generate(tiny.pipe, plan=late.plan, trunks=trunks, **options)
    assert torch.equal(again.images, late.images)
    assert (again.cost, again.plan) == (late.cost, late.plan)


@pytest.mark.parametrize("sharing", [COMMON, UNGUIDED])
def test_a_group_gives_the_images_that_it_gives_without_a_cache(sharing: Sharing) -> None:
    tiny = pipeline()
    options = {"num_inference_steps": STEPS, "output_type": "latent", "sharing": sharing, **CALL}
    without = generate(tiny.pipe, TEXTS[:3], **options)
    cached = generate(tiny.pipe, TEXTS[:3], trunks=Trunks(None), **options)
    assert len(cached.plan.trunks) == 1
    assert close(cached.images, without.images, 2e-3)
    assert cached.cost == without.cost == cached.plan.cost
    assert cached.spared == without.spared | {"replay": 0}


@pytest.mark.parametrize("sharing", [COMMON, UNGUIDED])
@pytest.mark.parametrize("cached", [False, True])
def test_equal_recipes_with_other_arguments_are_other_trunks(sharing: Sharing, cached: bool) -> None:
    tiny, texts, words = pipeline(), TEXTS[:2], ["dark", "dark", "blurred", "blurred"]
    timesteps = evaluations(tiny)[0]
    seeds = [5, 5] if sharing.noise == "common" else [5, 6]
    trees = [Branch((i, i + 1), 0, 3, 0.5, (leaf(i, 3, timesteps), leaf(i + 1, 3, timesteps))) for i in (0, 2)]
    trunks = [Replayed(TrunkRecipe(tuple(texts), 5, 3, "float32"), tree.images, 3) for tree in trees]
    plan = plan_of(timesteps, trees, seeds * 2, trunks, sharing, texts * 2)
    both = made(tiny, plan, negative_prompt=words, trunks=Trunks(None, precision="float32") if cached else None)
    single = plan_of(timesteps, trees[:1], seeds, trunks[:1], sharing, texts)
    for place, word in ((0, "dark"), (2, "blurred")):
        alone_ = made(tiny, single, negative_prompt=word).images
        assert close(both.images[place : place + 2], alone_, 1e-5)
    assert both.cost.used + sum(both.spared.values()) == both.cost.independent


def test_trunks_of_several_trees_are_kept_only_until_the_last_of_them() -> None:
    tiny = pipeline()
    recipe = TrunkRecipe((TEXTS[0], TEXTS[1]), 5, 3, "float32")
    trees = [leaf(image, 0, STEPS) for image in range(3)]
    plan = plan_of(STEPS, trees, [1, 2, 3], [Replayed(recipe, (image,), 3) for image in range(3)], OWN)
    options = {"num_inference_steps": STEPS, "output_type": "latent", **CALL}
    run = prepare(tiny.pipe, settings=Settings(skipping=None, batching=Batching(1)), plan=plan, **options)
    held = [len(run._trunks._kept) for _ in run.batches()]
    assert held == [1, 1, 0]


def perturbed() -> Any:
    own = sd_parts() | {"text_encoder": clip(77), "tokenizer": byte_tokenizer(77)}
    pipe = StableDiffusionPAGPipeline(**own, pag_applied_layers=["down"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_pipeline_with_perturbed_attention_is_unchanged_after_a_trunk() -> None:
    pipe, trunks = perturbed(), Trunks(None)
    options = {"num_inference_steps": STEPS, "output_type": "latent", "sharing": OWN, "height": 32, "width": 32}
    before, digest = dict(pipe.unet.attn_processors), pipeline_digest(pipe)
    generate(pipe, TEXTS[:2], trunks=trunks, pag_scale=3.0, **options)
    assert pipe.unet.attn_processors == before
    assert pipeline_digest(pipe) == digest
    late = generate(pipe, TEXTS[2:3], trunks=trunks, pag_scale=3.0, **options)
    assert late.plan.trunks[0].is_stored
    plain = generate(pipe, TEXTS[:1], pag_scale=0.0, **options).images
    assert torch.equal(plain, generate(perturbed(), TEXTS[:1], pag_scale=0.0, **options).images)


@pytest.mark.parametrize("kind", [StableDiffusionInpaintPipeline, StableDiffusionImg2ImgPipeline])
def test_a_lone_prompt_with_an_image_makes_and_computes_trunks_of_several_members(kind: Any) -> None:
    pipe = kind(**pipeline().pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = Image.new("RGB", (32, 32), "red")
    mask = {"mask_image": Image.new("L", (32, 32), 255), "height": 32, "width": 32}
    call: dict[str, Any] = {"image": image, "strength": 0.9, **(mask if kind is StableDiffusionInpaintPipeline else {})}
    options = {"num_inference_steps": STEPS, "output_type": "latent", "sharing": UNGUIDED, **call}
    trunks = Trunks(None)
    generate(pipe, TEXTS[:1], trunks=trunks, **options)
    second = generate(pipe, TEXTS[1:2], trunks=trunks, **options)
    assert len(second.plan.trunks[0].recipe.members) == 2
    late = generate(pipe, TEXTS[2:3], trunks=trunks, **options)
    assert late.plan.trunks[0].is_stored
    assert torch.equal(generate(pipe, plan=late.plan, **options).images, late.images)


# --- plans of many kinds ------------------------------------------------------------------------------------

TIMESTEPS = STEPS


def mixed(sharing: Sharing, precision: Any = "float32") -> Plan:
    """Return a plan with a group and an image that replay, a group that shares, a group whose trunk is longer than what
    it replays and that shares on, and an image alone."""
    seeds = [3, 3, 4, 6, 6, 8, 8, 9] if sharing.noise == "common" else [13, 3, 14, 6, 16, 18, 8, 9]
    trees = [
        Branch((0, 1), 0, 3, 0.5, (leaf(0, 3, TIMESTEPS), leaf(1, 3, TIMESTEPS))),
        leaf(2, 0, TIMESTEPS),
        Branch((3, 4), 0, 2, 0.5, (leaf(3, 2, TIMESTEPS), leaf(4, 2, TIMESTEPS))),
        Branch((5, 6), 0, 4, 0.5, (leaf(5, 4, TIMESTEPS), leaf(6, 4, TIMESTEPS))),
        leaf(7, 0, TIMESTEPS),
    ]
    texts = [*TEXTS, "a plum", "a quince", "a fig", "a lemon"]
    trunks = [
        Replayed(TrunkRecipe((texts[0], texts[1]), 3, 3, precision), (0, 1), 3),
        Replayed(TrunkRecipe((texts[2], "a grape", "a melon"), 4, 4, precision), (2,), 2),
        Replayed(TrunkRecipe((texts[7],), 8, 3, precision), (5, 6), 1),
    ]
    return plan_of(TIMESTEPS, trees, seeds, trunks, sharing, texts)


@pytest.mark.parametrize("skipping", [None, Skipping(rule="fixed", every=2), Skipping(0.2), Skipping(tokens=0.5)])
@pytest.mark.parametrize("sharing", [COMMON, OWN, UNGUIDED])
def test_batches_mix_what_replays_what_shares_and_what_is_alone(sharing: Sharing, skipping: Skipping | None) -> None:
    tiny, plan = pipeline(), mixed(sharing)
    rows = recorded(denoiser(tiny))
    whole = made(tiny, plan, skipping=skipping)
    assert sum(rows) == whole.cost.used
    assert whole.cost.used + sum(whole.spared.values()) == whole.cost.independent == 8 * TIMESTEPS * 2
    assert whole.cost.used + whole.spared["skipping"] == plan.cost.used
    assert whole.spared["replay"] == 0  # all of them were computed for this run
    apart = made(tiny, plan, skipping=skipping, batching=Batching(batch_size=1))
    assert close(apart.images, whole.images, 1e-4)
    assert apart.cost == whole.cost
    assert apart.spared == whole.spared


@pytest.mark.parametrize("sharing", [COMMON, OWN, UNGUIDED])
def test_rows_and_letters_of_each_image(sharing: Sharing) -> None:
    tiny, plan, batches = pipeline(), mixed(sharing), []
    made(tiny, plan, on_batch=batches.append)
    (batch,) = batches
    assert sum(batch.rows) == pytest.approx(batch.cost.used)
    assert batch.rows == pytest.approx(plan.image_rows())
    r, s = ("r", "s") if sharing is UNGUIDED else ("R", "S")
    letters = [r * 3 + "CCC"] * 2 + [r * 2 + "CCCC"] + [s * 2 + "CCCC"] * 2 + [r + s * 3 + "CC"] * 2 + ["CCCCCC"]
    assert list(batch.steps) == letters


def test_what_a_cache_has_counts_as_replayed() -> None:
    tiny, plan, trunks = pipeline(), mixed(UNGUIDED), Trunks(None, precision="float32")
    first = made(tiny, plan, trunks=trunks)
    second = made(tiny, plan, trunks=trunks)
    assert torch.equal(second.images, first.images)
    assert second.cost == second.plan.cost
    assert second.spared["replay"] == (2 * 3 + 2 + 2 * 1) * 2
    assert second.cost.used == first.cost.used - (3 + 4 + 3)
    assert second.cost.used + sum(second.spared.values()) == second.cost.independent
    assert all(trunk.is_stored for trunk in second.plan.trunks)


@pytest.mark.parametrize("interval", [(0.0, 0.3), (0.4, 1.0)])
def test_the_interval_of_guidance_holds_in_trunks(interval: tuple[float, float]) -> None:
    tiny, plan = pipeline(), mixed(COMMON)
    rows = recorded(denoiser(tiny))
    result = made(tiny, plan, guidance_interval=interval)
    assert sum(rows) == result.cost.used
    assert result.cost.used + result.spared["guidance"] == plan.cost.used
    single = of_one(tiny, COMMON)
    exact = replace(single, trunks=())
    assert torch.equal(
        made(tiny, single, guidance_interval=interval).images, made(tiny, exact, guidance_interval=interval).images
    )


def test_trees_in_several_stages_replay_their_first_steps() -> None:
    tiny = pipeline()
    inner = Branch((0, 1), 2, 4, 0.8, (leaf(0, 4, TIMESTEPS), leaf(1, 4, TIMESTEPS)))
    tree = Branch((0, 1, 2), 0, 2, 0.5, (inner, leaf(2, 2, TIMESTEPS)))
    trunk = Replayed(TrunkRecipe(tuple(TEXTS[:3]), 5, 2, "float32"), (0, 1, 2), 2)
    plan = plan_of(TIMESTEPS, [tree], [5] * 3, [trunk])
    assert close(made(tiny, plan).images, made(tiny, replace(plan, trunks=())).images, 1e-5)


def test_a_trunk_of_several_trees_is_computed_once() -> None:
    tiny = pipeline()
    recipe = TrunkRecipe((TEXTS[0], TEXTS[1]), 5, 3, "float32")
    trees = [leaf(image, 0, TIMESTEPS) for image in range(3)]
    plan = plan_of(TIMESTEPS, trees, [1, 2, 3], [Replayed(recipe, (image,), 3) for image in range(3)], OWN)
    rows = recorded(denoiser(tiny))
    for size in (32, 1):
        rows.clear()
        result = made(tiny, plan, batching=Batching(batch_size=size))
        assert sum(rows) == result.cost.used == plan.cost.used == 3 * 3 * 2 + 3 * 2
        assert result.spared == {"sharing": 0, "guidance": 0, "skipping": 0, "replay": 2 * 3 * 2}


def test_a_trunk_is_replayed_under_autocast() -> None:
    tiny, plan = pipeline(), of_one(pipeline(), OWN, precision="float16")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made(tiny, plan).images.isfinite().all()


# --- safety -------------------------------------------------------------------------------------------------


def test_values_beyond_float16_are_kept_whole() -> None:
    values = torch.tensor([[1.0 + 2**-20, 3.0], [1e5, 1.0 + 2**-20], [torch.nan, 1.0]])
    rounded = rounded_to_half(values)
    assert rounded[0].tolist() == [1.0, 3.0]
    assert torch.equal(rounded[1], values[1])
    assert rounded[2].isnan().tolist() == [True, False]


def test_outputs_beyond_float16_give_the_same_image_when_they_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, trunks = pipeline(), Trunks(None)
    forward = denoiser(tiny).forward

    def large(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        return (forward(*args, **kwargs)[0] * 1e6,)

    large.rows_are_independent = True  # type: ignore[attr-defined]
    monkeypatch.setattr(denoiser(tiny), "forward", large)
    plan = of_one(tiny, COMMON, precision="float16")
    monkeypatch.setattr("cotrunk.trunks.use.trunk_keys", lambda *_: ["key"])
    first, second = (made(tiny, plan, trunks=trunks) for _ in range(2))
    assert second.plan.trunks[0].is_stored
    assert first.images.isfinite().all()
    assert torch.equal(first.images, second.images)


def test_a_trunk_that_is_not_finite_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, trunks = pipeline(), Trunks(None)
    forward = denoiser(tiny).forward

    def broken(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        return (forward(*args, **kwargs)[0] * torch.nan,)

    broken.rows_are_independent = True  # type: ignore[attr-defined]
    monkeypatch.setattr(denoiser(tiny), "forward", broken)
    monkeypatch.setattr("cotrunk.trunks.use.trunk_keys", lambda *_: ["key"])
    plan = of_one(tiny, COMMON)
    result = made(tiny, plan, trunks=trunks)
    assert result.failed == (0,)
    assert not trunks.has("key", plan.trunks[0].recipe)


def test_a_damaged_trunk_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, plan = pipeline(), of_one(pipeline(), COMMON)
    wanted = made(tiny, plan).images
    recipe = plan.trunks[0].recipe
    shape = (recipe.steps, 4, 16, 16)
    for bad in (
        {},
        {"outputs": None},
        {"outputs": torch.zeros(recipe.steps - 1, 4, 16, 16)},
        {"outputs": torch.full(shape, torch.inf)},
        {"outputs": torch.zeros(shape).int()},
    ):
        trunks = Trunks(None, precision="float32")
        monkeypatch.setattr(trunks, "load", lambda *_, bad=bad: bad)
        assert torch.equal(made(tiny, plan, trunks=trunks).images, wanted)


def test_a_trunk_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, plan, trunks = pipeline(), of_one(pipeline(), COMMON), Trunks(None, precision="float32")
    small = {"outputs": torch.zeros(plan.trunks[0].recipe.steps, 4, 8, 8)}
    monkeypatch.setattr(trunks, "load", lambda *_: small)
    with pytest.raises(CotrunkError, match="stored trunk has outputs of"):
        made(tiny, plan, trunks=trunks)


def test_the_pipeline_is_unchanged_after_a_trunk() -> None:
    tiny = pipeline("dpm++2m")
    before = dict(vars(tiny.pipe.scheduler))
    made(tiny, of_one(tiny, COMMON))
    assert "step" not in vars(tiny.pipe.scheduler)
    assert vars(tiny.pipe.scheduler).keys() == before.keys()
    assert torch.equal(alone(TEXTS[1], 3, tiny), alone(TEXTS[1], 3, pipeline("dpm++2m")))


def test_callbacks_do_not_run_in_trunks() -> None:
    tiny, steps = pipeline(), list[int]()

    def count(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(step)
        return tensors

    made(tiny, of_one(tiny, COMMON), callback_on_step_end=count)
    assert steps == list(range(STEPS))


def test_embeddings_cannot_replay_a_plan_with_trunks() -> None:
    tiny = pipeline()
    embeds = tiny.pipe.encode_prompt(TEXTS[:1], "cpu", 1, False)[0]
    call = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "height": 32, "width": 32}
    plan = replace(of_one(tiny, COMMON), guidance_rows=1)
    with pytest.raises(CotrunkError, match="trunks, which are computed from texts"):
        generate(tiny.pipe, TEXTS[:1], plan=plan, prompt_embeds=embeds, **call)


def test_a_pipeline_that_ends_before_its_trunk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = pipeline()
    plan = of_one(tiny, COMMON)
    call = type(tiny.pipe).__call__

    @functools.wraps(call)
    def shorter(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(self, *args, **kwargs | {"num_inference_steps": 2})

    monkeypatch.setattr(type(tiny.pipe), "__call__", shorter)
    with pytest.raises(CotrunkError, match="took 2 scheduler steps, and its trunk has 3"):
        made(tiny, plan)
