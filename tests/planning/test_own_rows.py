"""Prompts with their own seeds and their own numbers of images, in plans of random prompts."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cotrunk.planning.own_rows import with_copies, with_seeds
from cotrunk.planning.plan import Findings, Plan
from cotrunk.planning.sharing import Evaluations, Item, make_plan
from cotrunk.settings import Sharing


def plan_of(count: int, images: int, sharing: Sharing, seed: int) -> Plan:
    vectors = np.random.default_rng(seed).normal(size=(count, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = [Item(f"prompt {i}", f"prompt {i}") for i in range(count)]
    return make_plan(items, vectors, sharing, 0.0, Evaluations(10, 10), seed=7, images_per_prompt=images)


SHARINGS = st.builds(
    lambda mode, noise: Sharing.published(share=0.8, similarity=0.0, mode=mode, noise=noise, max_group=None),
    st.sampled_from(["flat", "adaptive", "tree"]),
    st.sampled_from(["common", "own"]),
)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 8), st.integers(1, 3), SHARINGS)
def test_only_the_first_images_are_kept(data, count, images, sharing):
    plan = plan_of(count, images, sharing, data.draw(st.integers(0, 99)))
    copies = data.draw(st.lists(st.integers(1, images), min_size=count, max_size=count))
    kept = with_copies(plan, copies)
    kept.check()
    wanted = [(i, c) for i in range(count) for c in range(copies[i])]
    assert [kept.prompts[kept.prompt_of(image)] for image in range(len(kept))] == [f"prompt {i}" for i, _ in wanted]
    assert kept.seeds == tuple(plan.seeds[i * images + c] for i, c in wanted)
    assert {image: set(tree.images) for tree in kept.trees for image in tree.images}.keys() == set(range(len(wanted)))
    # each pair of images that are left shares exactly as long as before
    old = {new: i * images + c for new, (i, c) in enumerate(wanted)}
    for a in range(len(wanted)):
        for b in range(a):
            assert shared(kept, a, b) == shared(plan, old[a], old[b])


def shared(plan: Plan, a: int, b: int) -> int:
    return max(
        (node.stop for tree in plan.trees for node in tree.nodes() if {a, b} <= {*node.images}),
        default=0,
    )


def test_findings_follow_their_prompts():
    plan = plan_of(3, 2, Sharing.published(similarity=0.0), 0)
    plan = replace(plan, findings=Findings(truncated=((2, "end"),), alike=((0, 1),)))
    assert with_copies(plan, [2, 1, 1]).findings == Findings(truncated=((3, "end"),), alike=((0, 2),))
    assert with_copies(plan, [2, 2, 2]) is plan


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 2), SHARINGS)
def test_seeds_of_their_own(data, count, images, sharing):
    plan = plan_of(count, images, sharing, data.draw(st.integers(0, 99)))
    seeds = data.draw(st.lists(st.none() | st.integers(0, 5), min_size=count, max_size=count))
    found = with_seeds(plan, seeds)
    found.check()
    for image in range(len(plan)):
        seed, copy = seeds[image // images], image % images
        if sharing.noise == "own":
            if seed is None:
                assert found.seeds[image] == plan.seeds[image]
            elif copy == 0:
                assert found.seeds[image] == seed
    if sharing.noise == "common":
        for tree in found.trees:
            given = [image for image in tree.images if seeds[image // images] is not None]
            first = [seeds[image // images] for image in given if image % images == 0]
            if first:
                assert found.seeds[tree.images[0]] in first
            elif not given:
                assert found.seeds[tree.images[0]] == plan.seeds[tree.images[0]]
    if None not in seeds and sharing.noise == "own":  # as a list of seeds in Python
        items = [Item(prompt, prompt) for prompt in plan.prompts]
        vectors = np.zeros((count, 3))
        assert (
            found.seeds
            == make_plan(items, vectors, None, 0.0, Evaluations(10, 10), seed=seeds, images_per_prompt=images).seeds
        )
