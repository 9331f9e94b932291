"""The contract of sharing, line by line, on tiny random pipelines: what a user may rely on."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import reference
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import generate
from schedulers import CALL_KWARGS, DIFFUSION, SCHEDULERS, others_slow

from cotrunk import Batching, Branch, Plan, Sharing, mini
from cotrunk.planning.tree import leaf

STEPS = 6
# every two prompts are similar enough: groups of three by their order of content
ANYONE = Sharing.published(similarity=-1.0, share=0.5, max_group=3)


def images_of(pipeline: tiny.TinyPipeline, n: int, **arguments: Any) -> Any:
    kwargs = {"num_inference_steps": STEPS, "sharing": ANYONE, **pipeline.inputs(n), **arguments}
    if pipeline.output_field == "images":
        kwargs.setdefault("output_type", "latent")
    else:
        kwargs.setdefault("output_type", "pt")
    return generate(pipeline.pipe, **kwargs)


def pixels(pipeline: tiny.TinyPipeline, result: Any) -> torch.Tensor:
    return torch.as_tensor(result.output[pipeline.output_field])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def flat(groups: list[list[int]], branch: int, timesteps: int, seeds: list[int], **facts: Any) -> Plan:
    """Return a plan in which each group shares a trunk up to `branch`, from the noise of its first member."""
    trees = []
    for group in groups:
        children = tuple(leaf(i, branch, timesteps) for i in group)
        trees.append(Branch(tuple(group), 0, branch, 0.5, children) if len(group) > 1 else leaf(group[0], 0, timesteps))
    of_group = {i: seeds[group[0]] for group in groups for i in group}
    n = len(of_group)
    return Plan(
        prompts=tuple(f"prompt {i}" for i in range(n)),
        seeds=tuple(of_group[i] for i in range(n)),
        trees=tuple(trees),
        timesteps=timesteps,
        **{"steps": STEPS, **facts},
    )


def replay(pipeline: tiny.TinyPipeline, plan: Plan, inputs: dict[str, Any], **arguments: Any) -> torch.Tensor:
    plan.check()
    kwargs = {"num_inference_steps": plan.steps, "output_type": "latent", **inputs, **arguments}
    result = generate(pipeline.pipe, plan=plan, **kwargs)
    assert result.cost == plan.cost
    return pixels(pipeline, result)


# --- 1. off is off ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_without_sharing_images_equal_the_bare_pipeline_bit_for_bit(name: str) -> None:
    pipeline = tiny.PIPELINES[name]()
    kind = "latent" if pipeline.output_field == "images" else "pt"
    common = {**pipeline.inputs(3), "num_inference_steps": 3, "output_type": kind}
    seeds = [3, 1, 2]
    bare = pipeline.pipe(**common, generator=[torch.Generator().manual_seed(seed) for seed in seeds])
    parts = [pipeline.pipe, *(part for part in pipeline.pipe.components.values() if hasattr(part, "__dict__"))]
    before = [set(vars(part)) for part in parts]
    result = generate(pipeline.pipe, sharing=None, seed=seeds, **common)
    assert [set(vars(part)) for part in parts] == before
    assert torch.equal(pixels(pipeline, result), torch.as_tensor(bare[pipeline.output_field]))
    assert result.cost.saving == 0
    assert result.cost.used == 3 * 3 * pipeline.rows_per_step


# --- 2. equal prompts through any tree --------------------------------------------------------------------------------


@st.composite
def trees(draw: st.DrawFn, images: tuple[int, ...], start: int, timesteps: int) -> Branch:
    if len(images) == 1:
        return leaf(images[0], start, timesteps)
    stop = draw(st.integers(start, timesteps - 1))
    cut = draw(st.integers(1, len(images) - 1))
    children = (draw(trees(images[:cut], stop, timesteps)), draw(trees(images[cut:], stop, timesteps)))
    return Branch(images, start, stop, 1.0, children)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), name=st.sampled_from(["ddim-eta", "dpm++2m", "unipc", "lms", "heun", "pndm"]))
def test_equal_prompts_through_any_tree_equal_one_independent_run(data: st.DataObject, name: str) -> None:
    pipeline = tiny.sd()
    pipeline.pipe.scheduler = SCHEDULERS[name]()
    timesteps = reference.count_calls(pipeline, STEPS)
    tree = data.draw(trees((0, 1, 2, 3), 0, timesteps))
    one = pipeline.inputs(1)
    four = {k: v.repeat(4, *[1] * (v.ndim - 1)) if isinstance(v, torch.Tensor) else v for k, v in one.items()}
    plan = Plan(("a",) * 4, (7,) * 4, (tree,), STEPS, timesteps)
    single = Plan(("a",), (7,), (leaf(0, 0, timesteps),), STEPS, timesteps)
    shared = replay(pipeline, plan, four, **CALL_KWARGS.get(name, {}))
    alone = replay(pipeline, single, one, **CALL_KWARGS.get(name, {}))
    for row in shared:
        assert relative(row, alone[0]) < 1e-4


# --- 3. the paper's algorithm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", others_slow(SCHEDULERS))
def test_equals_algorithm_1_with_every_scheduler(name: str) -> None:
    pipeline = tiny.sd() if name in DIFFUSION else tiny.sd3()
    pipeline.pipe.scheduler = SCHEDULERS[name]()
    timesteps = reference.count_calls(pipeline, STEPS)
    order = pipeline.pipe.scheduler.order
    branch = timesteps // 2 // order * order
    groups, inputs = [[0, 2], [1]], pipeline.inputs(3)
    plan = flat(groups, branch, timesteps, [11, 12, 13])
    extra = CALL_KWARGS.get(name, {})
    made = replay(pipeline, plan, inputs, guidance_scale=5.0, **extra)
    lineages = reference.branched(groups, branch)
    wanted = reference.sample(pipeline, inputs, lineages, list(plan.seeds), STEPS, guidance=5.0, **extra)
    assert relative(made, wanted) < 1e-3
    assert relative(made[0], made[2]) > 1e-3, "siblings must differ after the branch"


def test_a_tree_with_several_branch_points_equals_algorithm_1() -> None:
    pipeline, inputs = tiny.sd(), tiny.sd().inputs(4)
    inner = Branch((0, 1), 2, 4, 0.8, (leaf(0, 4, STEPS), leaf(1, 4, STEPS)))
    tree = Branch((0, 1, 2, 3), 0, 2, 0.5, (inner, leaf(2, 2, STEPS), leaf(3, 2, STEPS)))
    made = replay(pipeline, Plan(("a", "b", "c", "d"), (5,) * 4, (tree,), STEPS, STEPS), inputs, guidance_scale=5.0)
    everyone = [(2, [0, 1, 2, 3])]
    lineages = [[*everyone, (4, [0, 1])], [*everyone, (4, [0, 1])], everyone, everyone]
    assert relative(made, reference.sample(pipeline, inputs, lineages, [5] * 4, STEPS, guidance=5.0)) < 1e-3


# --- 4. order and chunks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["flat", "adaptive", "tree"])
def test_prompt_order_and_chunks_change_nothing(mode: str) -> None:
    pipeline, order = tiny.sd(), [4, 2, 0, 3, 1]
    sharing = replace(ANYONE, mode=mode)
    inputs = pipeline.inputs(5)
    mixed = {k: v[order] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    plain = images_of(pipeline, 5, sharing=sharing)
    other = images_of(pipeline, 5, sharing=sharing, batching=Batching(batch_size=3, max_rows=3), **mixed)
    assert plain.cost == other.cost
    assert relative(pixels(pipeline, other), pixels(pipeline, plain)[order]) < 1e-4


def test_another_seed_gives_different_images_and_seeds_may_be_given_per_prompt() -> None:
    pipeline = tiny.sd()
    zero, one = images_of(pipeline, 2, seed=0), images_of(pipeline, 2, seed=1)
    assert relative(pixels(pipeline, zero), pixels(pipeline, one)) > 1e-2
    listed = images_of(pipeline, 2, seed=[3, 4], sharing=None)
    assert listed.plan.seeds == (3, 4)


# --- 5. duplicates ----------------------------------------------------------------------------------------------------


def test_duplicates_and_several_images_of_a_prompt_differ() -> None:
    pipeline = tiny.sd_with_text()
    prompts = ["a red apple", "a green apple", "a red apple"]
    common = {"height": 32, "width": 32, "num_inference_steps": 4, "output_type": "latent", "sharing": ANYONE}
    result = generate(pipeline.pipe, prompts, num_images_per_prompt=2, **common)
    assert len(result.images) == 6
    for i in range(6):
        for j in range(i):
            if prompts[i // 2] == prompts[j // 2]:
                assert relative(result.images[i], result.images[j]) > 1e-2
                assert not any({i, j} <= set(tree.images) for tree in result.plan.trees)


@pytest.mark.parametrize(
    ("prompts", "arguments"),
    [
        (["A Red Fox", "a red fox ", "a red owl"], {}),
        (["green cat, flat style", "green cat, noto style", "red cat"], {"max_sequence_length": 4}),
    ],
)
def test_prompts_that_look_identical_to_the_model_differ_by_noise(
    prompts: list[str], arguments: dict[str, Any]
) -> None:
    pipe = mini.load_dit()
    pipe.set_progress_bar_config(disable=True)
    common = {"num_inference_steps": 2, "output_type": "latent", "sharing": ANYONE, **arguments}
    result = generate(pipe, prompts, **common)
    assert not any({0, 1} <= set(tree.images) for tree in result.plan.trees)
    assert relative(result.images[0], result.images[1]) > 1e-2
    assert len(result.plan.trees) == 2  # the third shares with one of them


# --- 7. plans and cost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "flat") for name in tiny.PIPELINES), ("sd", "adaptive"), ("sd", "tree")]
)
def test_predicted_cost_is_counted_and_a_saved_plan_replays(name: str, mode: str, tmp_path: Any) -> None:
    pipeline = tiny.PIPELINES[name]()
    sharing = replace(ANYONE, similarity=-0.9, mode=mode)
    made = images_of(pipeline, 4, sharing=sharing, num_inference_steps=4)
    assert made.cost == made.plan.cost
    assert made.cost.independent == 4 * 4 * pipeline.rows_per_step
    assert made.cost.saving > 0
    made.plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == made.plan
    again = images_of(pipeline, 4, plan=loaded, num_inference_steps=4)
    assert torch.equal(pixels(pipeline, made), pixels(pipeline, again))


@pytest.mark.parametrize(
    ("name", "guidance"),
    [("pndm", 4.0), ("pndm-prk", 1.0), ("heun", 4.0), ("kdpm2", 1.0), ("lcm", 4.0), ("dpm-single", 4.0)],
)
def test_predicted_cost_is_counted_with_schedulers_of_other_lengths(name: str, guidance: float) -> None:
    pipeline = tiny.sd()
    pipeline.pipe.scheduler = SCHEDULERS[name]()
    made = images_of(pipeline, 3, guidance_scale=guidance)
    assert made.cost == made.plan.cost
    order = pipeline.pipe.scheduler.order
    trunks = [node for tree in made.plan.trees for node in tree.nodes() if node.children]
    assert trunks
    assert all(trunk.stop % order == 0 for trunk in trunks)


@pytest.mark.parametrize("twice", [copy.deepcopy, copy.copy, lambda result: pickle.loads(pickle.dumps(result))])
def test_a_result_can_be_copied_and_pickled(twice: Any) -> None:
    result = images_of(tiny.sd(), 2)
    again = twice(result)
    assert again.plan == result.plan
    assert torch.equal(again.images, result.images)
    with pytest.raises(AttributeError, match="no 'frames', only images"):
        _ = again.frames


# --- 8. only the prompt may differ ------------------------------------------------------------------------------------


def test_prompts_with_different_negative_prompts_do_not_share() -> None:
    pipeline = tiny.sd_with_text()
    common = {"height": 32, "width": 32, "num_inference_steps": 4, "output_type": "latent", "sharing": ANYONE}
    prompts = ["one", "two", "three"]
    shared = generate(pipeline.pipe, prompts, negative_prompt="blurry", **common)
    apart = generate(pipeline.pipe, prompts, negative_prompt=["blurry", "blurry", "dark"], **common)
    assert [tree.images for tree in shared.plan.trees] == [(0, 1, 2)]
    assert [tree.images for tree in apart.plan.trees] == [(0, 1), (2,)]
