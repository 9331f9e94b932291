"""Which trunk each tree of a plan replays, and what the cache learns from a run."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from running import generate
from tiny import TinyPipeline, sd_with_text

import cotrunk
from cotrunk import CotrunkError, Plan, Settings, Sharing
from cotrunk.generation import prepare
from cotrunk.planning import request as requests
from cotrunk.planning.embedding import Encoder
from cotrunk.planning.grouping import unit_rows
from cotrunk.planning.replayed import Replayed
from cotrunk.planning.trunk_recipe import TrunkRecipe
from cotrunk.trunks.access import Trunks

OWN = Sharing(share=0.5, similarity=0.8, noise="own", trunk_guidance=0.0)
COMMON = Sharing(share=0.5, similarity=0.8, noise="common", trunk_guidance=1.0)
STEPS = 10
CALL: dict[str, Any] = {"num_inference_steps": STEPS, "height": 32, "width": 32, "skipping": None}


def vector_of(text: str) -> list[float]:
    """Return a vector from a text such as "red 12": a word for its direction, and an angle to it in degrees."""
    word, _, angle = text.partition(" ")
    axis = {"red": 0, "blue": 1, "none": 2}[word]
    turned, own = np.sin(np.radians(float(angle or 0))), np.cos(np.radians(float(angle or 0)))
    found = [0.0] * 4
    if word != "none":
        found[axis], found[3] = own, turned
    return found


@pytest.fixture(autouse=True)
def known_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder("known", lambda texts: unit_rows(np.array([vector_of(text) for text in texts])))
    monkeypatch.setattr(requests, "pipeline_encoder", lambda pipe: encoder)
    monkeypatch.setattr("cotrunk.trunks.key.pipeline_digest", lambda pipe: "pipeline")


@pytest.fixture(scope="module")
def tiny() -> TinyPipeline:
    return sd_with_text()


def planned(tiny: TinyPipeline, prompts: Sequence[str], trunks: Trunks, sharing: Sharing = OWN, **options: Any) -> Plan:
    return cotrunk.plan(tiny.pipe, prompts, trunks=trunks, settings=Settings(sharing, None), **{**CALL_ONLY, **options})


CALL_ONLY = {name: value for name, value in CALL.items() if name != "skipping"}


def ran(tiny: TinyPipeline, prompts: Sequence[str], trunks: Trunks, sharing: Sharing = OWN, **options: Any) -> Any:
    """Generate with a denoiser that costs nothing."""
    return generate(tiny.pipe, prompts, trunks=trunks, sharing=sharing, output_type="latent", **{**CALL, **options})


@pytest.fixture(autouse=True)
def quick(tiny: TinyPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def zero(sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        return (sample * 0.1,)

    zero.rows_are_independent = True  # type: ignore[attr-defined]
    monkeypatch.setattr(tiny.pipe.unet, "forward", zero)


def of(plan: Plan) -> list[tuple[tuple[str, ...], tuple[int, ...], int, bool]]:
    return [(trunk.recipe.members, trunk.images, trunk.stop, trunk.is_stored) for trunk in plan.trunks]


# --- the rules ----------------------------------------------------------------------------------------------


def test_a_group_makes_a_trunk_and_a_late_prompt_replays_it(tiny: TinyPipeline) -> None:
    trunks = Trunks(None)
    first = ran(tiny, ["red 0", "red 10", "blue 0"], trunks)
    assert of(first.plan) == [(("red 0", "red 10"), (0, 1), 5, False)]
    assert first.plan.trunks[0].recipe.seed == min(first.plan.seeds[:2])
    late = ran(tiny, ["red 20"], trunks)
    assert of(late.plan) == [(("red 0", "red 10"), (0,), 5, True)]
    group = ran(tiny, ["red 5", "red 15"], trunks)
    assert of(group.plan) == [(("red 0", "red 10"), (0, 1), 5, True)]
    assert group.cost.used == 2 * 5 * 2


def test_every_member_must_be_similar_to_every_prompt(tiny: TinyPipeline) -> None:
    trunks = Trunks(None)
    ran(tiny, ["red 0", "red 20"], trunks)
    assert of(planned(tiny, ["red 30"], trunks))  # 30 degrees from one, 10 from the other
    assert not planned(tiny, ["red 40"], trunks).trunks  # 40 degrees are a cosine of 0.77
    assert of(planned(tiny, ["red 30", "red 50"], trunks)) == [(("red 30", "red 50"), (0, 1), 5, False)]


def test_a_lone_prompt_stays_exact_and_the_next_makes_a_trunk_with_it(tiny: TinyPipeline) -> None:
    trunks = Trunks(None)
    alone = ran(tiny, ["red 0"], trunks)
    assert not alone.plan.trunks
    assert alone.cost.used == alone.cost.independent
    two = ran(tiny, ["red 10"], trunks)
    assert of(two.plan) == [(("red 0", "red 10"), (0,), 5, False)]
    assert two.plan.trunks[0].recipe.seed == two.plan.seeds[0]
    assert two.cost.used == 5 * 2 + 5
    three = ran(tiny, ["red 5"], trunks)
    assert of(three.plan) == [(("red 0", "red 10"), (0,), 5, True)]


def test_making_a_plan_teaches_the_cache_nothing(tiny: TinyPipeline) -> None:
    trunks = Trunks(None)
    for _ in range(2):
        planned(tiny, ["blue 0"], trunks)
        planned(tiny, ["red 0", "red 10"], trunks)
    assert not planned(tiny, ["blue 5"], trunks).trunks
    assert not planned(tiny, ["red 5"], trunks).trunks


def test_a_replayed_plan_teaches_the_cache_as_a_new_one_does(tiny: TinyPipeline) -> None:
    source, plans = Trunks(None), []
    for prompts in (["red 0", "red 10"], ["blue 0"]):
        plans.append(planned(tiny, prompts, source))
    trunks = Trunks(None)
    for plan in plans:
        generate(tiny.pipe, plan=plan, trunks=trunks, output_type="latent", sharing=OWN, **CALL)
    assert of(planned(tiny, ["red 5"], trunks)) == [(("red 0", "red 10"), (0,), 5, True)]
    assert of(planned(tiny, ["blue 5"], trunks)) == [(("blue 0", "blue 5"), (0,), 5, False)]


def test_an_exact_repeat_of_a_lone_prompt_is_exact(tiny: TinyPipeline) -> None:
    trunks = Trunks(None)
    first, again = (ran(tiny, ["red 0"], trunks) for _ in range(2))
    assert not again.plan.trunks
    assert torch.equal(first.images, again.images)


def test_the_branch_point_depends_on_the_similarity(tiny: TinyPipeline) -> None:
    sharing, trunks = replace(OWN, mode="adaptive", share=0.8), Trunks(None)
    ran(tiny, ["red 0", "red 1"], trunks, sharing)
    stops = [planned(tiny, [f"red {angle}"], trunks, sharing).trunks[0].stop for angle in (0, 15, 36)]
    steps = planned(tiny, ["red 0"], trunks, sharing).trunks[0].recipe.steps
    assert stops[0] >= stops[1] > stops[2] == 4
    assert stops[0] <= steps < 0.8 * STEPS + 1
    late = ran(tiny, ["red 36"], trunks, sharing)
    assert late.cost.used == (STEPS - 4) * 2


def test_a_tree_in_stages_replays_its_root(tiny: TinyPipeline) -> None:
    sharing, trunks = replace(OWN, mode="tree", share=0.9, similarity=0.5), Trunks(None)
    plan = ran(tiny, ["red 0", "red 5", "red 30"], trunks, sharing).plan
    (tree,), (trunk,) = plan.trees, plan.trunks
    assert trunk.stop == trunk.recipe.steps == tree.stop
    assert any(child.children for child in tree.children)


def test_prompts_that_are_too_similar_do_not_share_a_stored_trunk(tiny: TinyPipeline) -> None:
    trunks, sharing = Trunks(None), replace(OWN, max_similarity=0.999)
    ran(tiny, ["red 0", "red 10"], trunks)
    assert not planned(tiny, ["red 0.5"], trunks, sharing).trunks
    assert planned(tiny, ["red 5"], trunks, sharing).trunks


def test_what_cannot_be_compared_stays_alone(tiny: TinyPipeline) -> None:
    trunks, everyone = Trunks(None), replace(OWN, similarity=-1.0)
    ran(tiny, ["red 0", "red 10"], trunks, everyone)
    assert not planned(tiny, ["none"], trunks, everyone).trunks


def test_groups_of_one_and_no_steps_replay_nothing(tiny: TinyPipeline) -> None:
    trunks = Trunks(None)
    ran(tiny, ["red 0", "red 10"], trunks)
    for sharing in (replace(OWN, max_group=1), replace(OWN, share=0.0), replace(OWN, share=0.05)):
        assert not planned(tiny, ["red 5"], trunks, sharing).trunks


def test_another_argument_is_another_cache(tiny: TinyPipeline) -> None:
    trunks = Trunks(None)
    ran(tiny, ["red 0", "red 10"], trunks)
    assert planned(tiny, ["red 5"], trunks).trunks
    assert not planned(tiny, ["red 5"], trunks, negative_prompt="dark").trunks
    assert not planned(tiny, ["red 5"], trunks, guidance_scale=3.0).trunks
    assert not planned(tiny, ["red 5"], trunks, num_inference_steps=STEPS + 2).trunks
    assert not planned(tiny, ["red 5"], trunks, COMMON).trunks
    own = planned(tiny, ["red 5", "red 6"], trunks, negative_prompt=["dark", ""])
    assert not own.trunks  # neither shares with the other, and neither had this negative prompt


# --- seeds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", [OWN, COMMON])
def test_images_of_one_prompt_replay_different_trunks(tiny: TinyPipeline, sharing: Sharing) -> None:
    trunks = Trunks(None)
    first = ran(tiny, ["red 0", "red 10"], trunks, sharing, num_images_per_prompt=2)
    assert len({trunk.recipe for trunk in first.plan.trunks}) == 2
    late = ran(tiny, ["red 5"], trunks, sharing, num_images_per_prompt=3)
    assert len({trunk.recipe for trunk in late.plan.trunks}) == len(late.plan.trunks) == 2
    assert len(set(late.plan.seeds)) == 3
    twice = ran(tiny, ["red 5", "red 5"], trunks, sharing)
    assert len({trunk.recipe for trunk in twice.plan.trunks}) == len(twice.plan.trunks) >= 1
    assert not torch.equal(twice.images[0], twice.images[1])


def test_own_noise_keeps_its_seeds(tiny: TinyPipeline) -> None:
    trunks = Trunks(None)
    ran(tiny, ["red 0", "red 10"], trunks)
    for seed in (0, 5, [7]):
        with_cache, without = (planned(tiny, ["red 5"], cache, seed=seed) for cache in (trunks, Trunks(None)))
        assert with_cache.trunks
        assert with_cache.seeds == without.seeds


def test_with_common_noise_an_image_starts_from_the_trunk_of_its_own_seed_only(tiny: TinyPipeline) -> None:
    trunks = Trunks(None)
    first = ran(tiny, ["red 0", "red 10"], trunks, COMMON, seed=1)
    recipe = first.plan.trunks[0].recipe
    same = planned(tiny, ["red 5"], trunks, COMMON, seed=1)
    assert same.seeds == (recipe.seed,) == (first.plan.seeds[0],)
    # a prompt must not give one image under two seeds
    assert not planned(tiny, ["red 5"], trunks, COMMON, seed=2).trunks
    assert not planned(tiny, ["red 5"], trunks, COMMON, seed=[1]).trunks
    assert planned(tiny, ["red 5"], trunks, COMMON, seed=[recipe.seed]).trunks
    # trunks of other seeds in between do not hide it
    for seed in range(2, 7):
        ran(tiny, ["red 4", "red 6"], trunks, COMMON, seed=seed)
    assert planned(tiny, ["red 5"], trunks, COMMON, seed=1).trunks[0].recipe == recipe


PROMPTS = [f"{word} {angle}" for word in ("red", "blue") for angle in range(0, 60, 6)]


@hypothesis_settings(max_examples=25)
@given(
    st.lists(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=4), min_size=1, max_size=4),
    st.sampled_from([OWN, COMMON, replace(OWN, mode="adaptive"), replace(COMMON, mode="tree", share=0.8)]),
    st.integers(1, 2),
)
def test_plans_hold_whatever_the_cache_holds(
    tiny: TinyPipeline, waves: list[list[str]], sharing: Sharing, copies: int
) -> None:
    trunks = Trunks(None)
    for wave in waves:
        result = ran(tiny, wave, trunks, sharing, num_images_per_prompt=copies)
        plan = result.plan
        plan.check()
        assert Plan.from_json(plan.to_json(), "plan") == plan
        assert result.cost == plan.cost
        assert result.cost.used + sum(result.spared.values()) == result.cost.independent
        assert plan.independent().trunks == ()
        for trunk in plan.trunks:
            vectors = np.array([vector_of(plan.prompts[plan.prompt_of(image)]) for image in trunk.images])
            members = np.array([vector_of(member) for member in trunk.recipe.members])
            assert (unit_rows(vectors) @ unit_rows(members).T).min() >= 0.8 - 1e-5
        seen = [(plan.prompts[plan.prompt_of(i)], trunk.recipe) for trunk in plan.trunks for i in trunk.images]
        assert len(set(seen)) == len(seen)
        if sharing.noise == "common":
            images = [(plan.prompts[plan.prompt_of(i)], seed) for i, seed in enumerate(plan.seeds)]
            assert len(set(images)) == len(images)


# --- files and refusals -------------------------------------------------------------------------------------


def test_a_plan_without_trunks_in_its_file_loads(tiny: TinyPipeline) -> None:
    plan = planned(tiny, ["red 0", "blue 0"], Trunks(None))
    data = plan.to_json()
    del data["trunks"]
    assert Plan.from_json(data, "plan.json") == plan


RECIPE = TrunkRecipe(("red 0", "red 10"), 4, 5)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"images": (0,)}, "are not one tree"),
        ({"images": (0, 2)}, "are not one tree"),
        ({"stop": 6}, "replay 6 timesteps of a trunk of 5"),
        ({"stop": 6, "recipe": replace(RECIPE, steps=7)}, "beyond the timestep at which they branch"),
        ({"recipe": replace(RECIPE, steps=STEPS + 1)}, "of a trunk of 11"),
        ({"recipe": replace(RECIPE, members=())}, "has no members"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(tiny: TinyPipeline, changes: dict[str, Any], why: str) -> None:
    plan = planned(tiny, ["red 0", "red 10", "blue 0"], Trunks(None))
    good = replace(plan.trunks[0], recipe=RECIPE)
    replace(plan, trunks=(good,)).check()
    with pytest.raises(CotrunkError, match=why):
        Plan.from_json(replace(plan, trunks=(replace(good, **changes),)).to_json(), "plan.json")
    with pytest.raises(CotrunkError, match="named twice"):
        Plan.from_json(replace(plan, trunks=(good, good)).to_json(), "plan.json")
    alone = replace(plan.independent(), trunks=(replace(good, images=(2,)),))
    with pytest.raises(CotrunkError, match="replays trunks without sharing"):
        Plan.from_json(alone.to_json(), "plan.json")


def test_common_noise_needs_the_seed_of_the_trunk(tiny: TinyPipeline) -> None:
    plan = planned(tiny, ["red 0", "red 10"], Trunks(None), COMMON)
    trunk = plan.trunks[0]
    other = replace(trunk, recipe=replace(trunk.recipe, seed=trunk.recipe.seed + 1))
    with pytest.raises(CotrunkError, match="do not start from the noise of the trunk"):
        Plan.from_json(replace(plan, trunks=(other,)).to_json(), "plan.json")


def test_what_cannot_have_trunks_is_refused(tiny: TinyPipeline) -> None:
    trunks = Trunks(None)
    with pytest.raises(CotrunkError, match="A trunk cache is given, and sharing=None"):
        ran(tiny, ["red 0"], trunks, sharing=None)
    embeds = tiny.pipe.encode_prompt(["red 0"], "cpu", 1, False)[0]
    with pytest.raises(CotrunkError, match="prompt_embeds hold no texts"):
        ran(tiny, ["red 0"], trunks, prompt_embeds=embeds, guidance_scale=1.0)
    with pytest.raises(CotrunkError, match="callback_on_step_end"):
        ran(tiny, ["red 0"], trunks, callback_on_step_end=lambda *_: {})


def test_a_prepared_run_uses_its_cache(tiny: TinyPipeline) -> None:
    trunks = Trunks(None)
    run = prepare(tiny.pipe, ["red 0", "red 10"], Settings(OWN, None), trunks=trunks, **CALL_ONLY)
    batch = run.run(run.plan.trees)
    assert batch.cost == run.plan.cost
    again = prepare(tiny.pipe, None, Settings(OWN, None), plan=run.plan, trunks=trunks, **CALL_ONLY)
    assert isinstance(again.plan.trunks[0], Replayed)
    assert again.plan.trunks[0].is_stored
    assert prepare(tiny.pipe, None, Settings(OWN, None), plan=again.plan, **CALL_ONLY).plan == run.plan
