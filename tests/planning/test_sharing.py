"""From groups to trees: branch points, seeds, the three modes."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotrunk import CotrunkError, Plan, Sharing
from cotrunk.planning.sharing import Evaluations, Item, branch_point, make_plan

shares = st.floats(0, 0.99)
cosines = st.floats(-1, 1)


@given(share=shares, threshold=st.floats(-1, 0.99), a=cosines, b=cosines, timesteps=st.integers(1, 100))
def test_branch_point_is_monotone_and_never_past_the_share(
    share: float, threshold: float, a: float, b: float, timesteps: int
) -> None:
    for mode in ("flat", "adaptive", "tree"):
        for order in (1, 2):
            sharing = Sharing(share=share, mode=mode)
            evaluations = Evaluations(timesteps, timesteps, order=order)
            loose, tight = (branch_point(sharing, threshold, s, evaluations) for s in sorted((a, b)))
            assert 0 <= loose <= tight <= share * timesteps + 1e-6
            assert loose % order == tight % order == 0


def test_branch_point_of_the_paper() -> None:
    def at(sharing: Sharing, similarity: float, timesteps: int, order: int = 1) -> int:
        return branch_point(sharing, 0.5, similarity, Evaluations(timesteps, timesteps, order=order))

    assert at(Sharing(share=0.3), 0.6, 30) == 9
    assert at(Sharing(share=0.29), 0.6, 100) == 29
    assert at(Sharing(share=0.3, mode="adaptive"), 0.5, 40) == 6
    assert at(Sharing(share=0.3, mode="adaptive"), 1.0, 40) == 12
    assert at(Sharing(share=0.3, mode="tree"), 0.75, 40) == 6
    assert at(Sharing(share=0.3), 0.6, 59, 2) == 16


@st.composite
def unit_vectors(draw: st.DrawFn) -> np.ndarray:
    n, seed = draw(st.integers(1, 12)), draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 3)) + draw(st.floats(0, 2))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def planned(vectors: np.ndarray, **facts: Any) -> Plan:
    settings = {"share": 0.4, "mode": "flat", "max_group": 5, **facts.pop("sharing", {})}
    prompts = facts.pop("prompts", [f"prompt {i}" for i in range(len(vectors))])
    reads = facts.pop("reads", prompts)
    items = [Item(prompt, prompt, read) for prompt, read in zip(prompts, reads, strict=True)]
    return make_plan(items, vectors, Sharing.published(**settings), 0.6, Evaluations(20, 20), **facts)


@given(vectors=unit_vectors(), mode=st.sampled_from(["flat", "adaptive", "tree"]), images=st.integers(1, 3))
def test_plans_are_valid_and_every_level_consists_of_cliques(vectors: np.ndarray, mode: str, images: int) -> None:
    plan = planned(vectors, sharing={"mode": mode}, images_per_prompt=images)
    plan.check()
    cosines = vectors.astype(float) @ vectors.astype(float).T
    for tree in plan.trees:
        for node in tree.nodes():
            own = [plan.prompt_of(image) for image in node.images]
            assert len(set(own)) == len(own) <= 5
            if len(own) > 1:
                smallest = min(cosines[i, j] for i in own for j in own if i != j)
                assert smallest >= 0.6 - 1e-5
                assert node.similarity == pytest.approx(smallest, abs=1e-5)


@given(vectors=unit_vectors())
def test_flat_sharing_saves_as_much_as_the_paper_says(vectors: np.ndarray) -> None:
    plan = planned(vectors)
    assert plan.cost.saving == pytest.approx(0.4 * (1 - len(plan.trees) / len(vectors)))


@given(vectors=unit_vectors(), mode=st.sampled_from(["flat", "adaptive", "tree"]), seed=st.integers(0, 99))
def test_order_of_prompts_changes_no_seed_and_no_group(vectors: np.ndarray, mode: str, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(vectors))
    texts = [f"prompt {i}" for i in range(len(vectors))]
    plain = planned(vectors, sharing={"mode": mode})
    mixed = planned(vectors[order], sharing={"mode": mode}, prompts=[texts[i] for i in order])
    assert mixed.seeds == tuple(plain.seeds[i] for i in order)
    assert mixed.cost == plain.cost

    def by_text(plan: Plan) -> set[frozenset[str]]:
        return {frozenset(plan.prompts[i] for i in tree.images) for tree in plan.trees}

    assert by_text(plain) == by_text(mixed)


def test_images_of_one_prompt_and_duplicates_start_from_different_noise() -> None:
    vectors = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    plan = planned(vectors, prompts=["a", "a", "b"], images_per_prompt=2)
    assert len(set(plan.seeds)) == 6
    assert all(len(tree.images) == 1 for tree in plan.trees)


@given(seed=st.integers(0, 99))
def test_which_of_the_prompts_that_read_alike_shares_does_not_depend_on_the_order(seed: int) -> None:
    vectors = np.eye(2, dtype=np.float32)[[0, 0, 0, 1]]
    prompts, reads = ["owl", "fox", "a tiger", "a ship"], ["unknown", "unknown", "a tiger", "a ship"]
    order = np.random.default_rng(seed).permutation(4)
    mixed = planned(vectors[order], prompts=[prompts[i] for i in order], reads=[reads[i] for i in order])
    together = [{mixed.prompts[i] for i in tree.images} for tree in mixed.trees if len(tree.images) > 1]
    assert together == [{"a tiger", "fox"}]
    assert len(set(mixed.seeds)) == 3


@given(vectors=unit_vectors(), mode=st.sampled_from(["flat", "adaptive", "tree"]), images=st.integers(1, 2))
def test_with_own_noise_every_image_has_the_seed_that_it_has_alone(vectors: np.ndarray, mode: str, images: int) -> None:
    common, own = (
        planned(vectors, sharing={"mode": mode, "noise": noise}, images_per_prompt=images)
        for noise in ("common", "own")
    )
    own.check()
    assert own.trees == common.trees
    assert own.cost == common.cost
    assert len(set(own.seeds)) == len(own)
    for tree in own.trees:
        assert len({common.seeds[image] for image in tree.images} & {own.seeds[image] for image in tree.images}) == 1
    assert own.seeds == planned(vectors, sharing={"share": 0.0}, images_per_prompt=images).seeds


def test_seeds_of_the_user_are_kept() -> None:
    vectors = np.eye(3, dtype=np.float32)
    assert planned(vectors, seed=[5, 6, 5]).seeds == (5, 6, 5)
    with pytest.raises(CotrunkError, match="2 seeds for 3 prompts"):
        planned(vectors, seed=[1, 2])


def test_similar_prompts_above_the_upper_limit_stay_apart() -> None:
    vectors = np.array([[1, 0], [0.8, 0.6], [1, 0.01]], dtype=np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = [tree.images for tree in planned(vectors, sharing={"max_similarity": 0.9}).trees]
    assert not any({0, 2} <= set(group) for group in groups)
    assert max(map(len, groups)) == 2


def test_a_tree_of_a_thousand_equal_prompts() -> None:
    vectors = np.ones((1200, 2)) / math.sqrt(2)
    (tree,) = planned(vectors, sharing={"mode": "tree", "max_group": None}).trees
    assert len(tree.children) == 1200
