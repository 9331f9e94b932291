"""The plan of images that are generated again with another number of steps."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from run_folders import PLAN

from cotrunk.planning.sharing import Evaluations, Item, make_plan
from cotrunk.runs.recipe import part_of
from cotrunk.runs.redo import _rescaled
from cotrunk.settings import Sharing


@st.composite
def plans(draw: st.DrawFn):
    vectors = np.asarray(draw(st.lists(st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)), min_size=1, max_size=6)))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    sharing = Sharing(draw(st.floats(0, 0.9)), -1.0, mode=draw(st.sampled_from(["flat", "tree"])), noise="own")
    sharing = replace(sharing, trunk_guidance=1.0)
    items = [Item(f"prompt {i}", f"prompt {i}") for i in range(len(vectors))]
    steps = draw(st.integers(1, 12))
    copies = draw(st.integers(1, 2))
    return make_plan(items, vectors, sharing, -1.0, Evaluations(steps, steps), images_per_prompt=copies)


@given(plans(), st.integers(1, 40), st.integers(1, 2))
def test_rescaled_trees_are_a_plan(plan, steps: int, order: int) -> None:
    trees = [new for tree in plan.trees for new in _rescaled(tree, plan.timesteps, steps * order, order)]
    found = replace(plan, trees=tuple(trees), steps=steps, timesteps=steps * order)
    found.check()
    for tree in trees:
        for node in tree.nodes():
            assert node.start % order == 0
            assert node.stop > node.start
    if steps * order == plan.timesteps and order == 1:
        assert found == plan


@given(plans(), st.randoms())
def test_part_of_a_plan_is_a_plan_of_the_same_images(plan, random) -> None:
    trees = list(plan.trees)
    random.shuffle(trees)
    trees = trees[: random.randint(1, len(trees))]
    images = [image for tree in trees for image in tree.images]
    part = part_of(plan, images)
    part.check()
    assert [part.seeds[i] for i in range(len(part))] == [plan.seeds[image] for image in images]
    assert [part.prompts[part.prompt_of(i)] for i in range(len(part))] == [
        plan.prompts[plan.prompt_of(image)] for image in images
    ]
    assert part.cost == plan.cost_of(trees)
    assert [tree.images for tree in part.trees] == sorted(
        tuple(images.index(image) for image in tree.images) for tree in trees
    )


def test_an_image_keeps_its_place_in_the_batch() -> None:
    assert part_of(PLAN, (2, 0, 1)).prompts == ("a tiger", "a [red] äpple", "a green apple")
