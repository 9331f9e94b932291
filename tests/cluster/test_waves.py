"""Waves: whole groups of a plan, each image once, the heaviest first, with recipes that say all."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import JOB, JOB_PLAN, PLAN

from cotrunk.cluster.waves import EACH, MOST, PER_FILE, Recipe, Wave, cut, size_of_waves, wave_of, write_waves
from cotrunk.errors import CotrunkError
from cotrunk.planning.plan import Plan
from cotrunk.planning.tree import Branch, flat_tree
from cotrunk.runs.arm import Arm, main_arms
from cotrunk.runs.job import Job
from cotrunk.runs.job_plan import job_plan
from cotrunk.runs.recipe import part_of
from cotrunk.settings import Batching, Settings, Sharing
from cotrunk.storage.files import StoredFiles


def everything(arm: Arm, tree: Branch) -> bool:
    return True


def arms_of(sizes: list[list[int]]) -> list[Arm]:
    """Return arms of a run with groups of these sizes, per part."""
    texts, parts = list[str](), []
    for groups in sizes:
        count, trees = 0, list[Branch]()
        for size in groups:
            trees += flat_tree(range(count, count + size), 2, 4, 0.9)
            count += size
        prompts = tuple(f"prompt {len(texts) + i}" for i in range(count))
        plan = Plan(
            prompts, tuple(_seeds(trees)), tuple(trees), 4, 4, sharing=Sharing.published(share=0.5), threshold=0.5
        )
        parts.append((range(len(texts), len(texts) + count), plan))
        texts += prompts
    return main_arms(job_plan(Job(tuple(texts)), parts))


def _seeds(trees: list[Branch]) -> list[int]:
    return [number for number, tree in enumerate(trees) for _ in tree.images]


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=3), st.integers(1, 12))
def test_waves_hold_whole_groups_and_each_image_once(sizes: list[list[int]], size: int) -> None:
    arms = arms_of(sizes)
    cuts = cut(arms, size, everything)
    found = sorted((each.arm.number, image) for each in cuts for tree in each.trees for image in tree.images)
    assert found == [(arm.number, image) for arm in arms for image in range(len(arm.plan))]
    for each in cuts:
        assert {*each.trees} <= {*each.arm.plan.trees}
        assert each.images <= size or len(each.trees) == 1
        assert each.rows == each.arm.plan.cost_of(each.trees).used
    assert [each.rows for each in cuts] == sorted((each.rows for each in cuts), reverse=True)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=20), st.integers(1, 9), st.data())
def test_a_resumed_run_cuts_the_same_waves_without_what_is_done(
    sizes: list[int], size: int, data: st.DataObject
) -> None:
    [arm] = arms_of([sizes])
    whole = cut([arm], size, everything)
    done = data.draw(st.sets(st.sampled_from(arm.plan.trees)))
    left = cut([arm], size, lambda _, tree: tree not in done)
    kept = {each.trees: tuple(tree for tree in each.trees if tree not in done) for each in whole}
    assert {each.trees for each in left} == {trees for trees in kept.values() if trees}


def test_a_recipe_says_all_that_a_painter_needs() -> None:
    [arm] = main_arms(JOB_PLAN)
    wave = wave_of(cut([arm], 2, everything)[0], JOB)
    recipe = Recipe.from_text(wave.recipe)
    assert (wave.images, wave.rows) == (2, PLAN.cost_of(PLAN.trees[:1]).used)
    assert recipe.plan == part_of(PLAN, (0, 1))
    assert recipe.job.texts == list(PLAN.prompts[:2])
    own = recipe.own_arm()
    assert (own.name, own.groups, [own.file(i) for i in (0, 1)]) == ("shared", {0: 0, 1: 0}, list(recipe.files))
    other = Recipe.from_text(wave_of(cut([arm], 2, everything)[1], JOB).recipe)
    assert (other.images, other.groups, other.files) == ((2,), (1,), ("images/00002.png",))
    assert other.own_arm().groups == {0: 1}
    assert other.own_arm().file(0) == "images/00002.png"


def test_an_id_changes_with_the_images_and_not_with_the_machine() -> None:
    [arm] = main_arms(JOB_PLAN)
    own = cut([arm], 2, everything)[0]
    same = wave_of(own, JOB).id
    assert wave_of(own, replace(JOB, device="cuda", compiled=True)).id == same
    assert wave_of(own, replace(JOB, settings=Settings(steps=3, batching=Batching(8)))).id == same
    for change in ({"guidance_scale": 5.0}, {"negative_prompt": "fog"}, {"dtype": "float16"}, {"model": "mini-dit"}):
        assert wave_of(own, replace(JOB, **change)).id != same  # type: ignore[arg-type]
    other = replace(own, arm=replace(arm, plan=replace(PLAN, seeds=(9, 9, 8))))
    assert wave_of(other, JOB).id != same
    assert wave_of(replace(own, trees=PLAN.trees[1:]), JOB).id != same


def test_waves_are_written_in_files_of_limited_size(tmp_path: Path) -> None:
    from pyarrow import parquet

    waves = [Wave(f"{i:04}", 1000 - i, 2, f'{{"wave": {i}}}') for i in range(PER_FILE + 3)]
    written = list(write_waves(waves, StoredFiles(str(tmp_path))))
    assert [len(some) for _, some in written] == [PER_FILE, 3]
    assert all(wave.recipe == "" for _, some in written for wave in some)
    rows = [row for path, _ in written for row in parquet.read_table(path).to_pylist()]
    assert [Wave(**row) for row in rows] == waves


def test_waves_of_no_image_are_refused() -> None:
    with pytest.raises(CotrunkError, match="images per wave 0 is out of range"):
        cut(arms_of([[1]]), 0, everything)


@given(st.integers(1, 100_000), st.integers(1, 200), st.integers(1, 300))
def test_by_default_waves_are_whole_batches_and_no_painter_is_idle(images: int, painters: int, batch: int) -> None:
    size = size_of_waves(images, painters, batch)
    share = -(-images // painters)
    assert 1 <= size <= max(MOST, batch)
    assert size == share or (size < share and size % batch == 0)
    assert EACH * (size - batch) < share  # several waves for each painter


def test_the_default_size_of_waves() -> None:
    sizes = [size_of_waves(images, painters, 32) for images, painters in ((10_000, 8), (300, 1), (256, 8), (64, 8))]
    assert sizes == [128, 96, 32, 8]
