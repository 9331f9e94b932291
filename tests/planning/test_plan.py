"""The plan as data: batches, cost, its file."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import mutants

from cotrunk import Branch, CotrunkError, Plan, Sharing
from cotrunk.planning.plan import DEPTH, Findings
from cotrunk.planning.sharing import why_nothing_shared
from cotrunk.planning.tree import leaf, partition
from cotrunk.runs.build_report import group_report
from cotrunk.runs.job_plan import PartPlan

PAIR = Branch((0, 2), 0, 3, 0.7, (leaf(0, 3, 10), leaf(2, 3, 10)))
PLAN = Plan(("a", "b", "c"), (1, 2, 1), (PAIR, leaf(1, 0, 10)), steps=10, timesteps=10)


def test_cost_counts_a_trunk_once() -> None:
    assert PLAN.cost.used == 2 * (3 + 7 + 7 + 10)
    assert PLAN.cost.independent == 2 * 30
    assert PLAN.cost.saving == pytest.approx(0.1)
    assert PLAN.image_rows() == [2 * (1.5 + 7), 2 * 10, 2 * (1.5 + 7)]


def test_a_trunk_without_guidance_takes_one_row() -> None:
    sharing = Sharing.published(trunk_guidance=0.0)
    plan = replace(PLAN, sharing=sharing, threshold=0.5)
    assert plan.cost.used == 3 + 2 * (7 + 7 + 10)
    assert plan.image_rows() == [1.5 + 14, 20, 1.5 + 14]
    assert replace(plan, guidance_rows=1).cost == replace(PLAN, guidance_rows=1).cost
    assert replace(plan, sharing=Sharing.published(trunk_guidance=0.1)).cost == PLAN.cost
    assert plan.independent().cost.used == 2 * 30


def test_images_of_a_tree_have_one_seed_unless_they_keep_their_own_noise() -> None:
    for noise in ("common", "own"):
        plan = replace(PLAN, seeds=(1, 2, 3), sharing=Sharing.published(noise=noise), threshold=0.5)
        if noise == "own":
            plan.check()
        else:
            with pytest.raises(ValueError, match="share a trunk but not a seed"):
                plan.check()


def test_partition_is_the_tree_at_every_timestep() -> None:
    sources = partition(PLAN.trees, 10, PLAN.seeds)  # images 0, 2, 1 in the order of the batch
    assert sources[0] == sources[2] == (0, 0, 2)
    assert sources[3] == sources[9] == (0, 1, 2)
    # where seeds differ, the smallest one says whose row runs
    assert partition(PLAN.trees, 10, (2, 3, 1))[0] == (1, 1, 2)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12), limit=st.integers(1, 8))
def test_batches_keep_groups_whole_and_bounded(sizes: list[int], limit: int) -> None:
    trees, first = [], 0
    for size in sizes:
        images = tuple(range(first, first + size))
        children = tuple(leaf(i, 2, 4) for i in images)
        trees.append(Branch(images, 0, 2, 0.5, children) if size > 1 else leaf(first, 0, 4))
        first += size
    plan = Plan(("p",) * first, (0,) * first, tuple(trees), 4, 4)
    batches = list(plan.batches(limit))
    assert [tree for batch in batches for tree in batch] == trees
    assert all(len(batch) == 1 or sum(len(t.images) for t in batch) <= limit for batch in batches)


def test_independent_keeps_the_noise() -> None:
    independent = PLAN.independent(steps=8, timesteps=8)
    independent.check()
    assert independent.seeds == PLAN.seeds
    assert independent.cost.used == independent.cost.independent == 2 * 24


def test_round_trip(tmp_path: Path) -> None:
    for path in (tmp_path / "plan.json", str(tmp_path / "text.json")):
        PLAN.save(path)
        assert Plan.load(path) == PLAN
    with pytest.raises(CotrunkError, match="is a folder: name a file"):
        PLAN.save(tmp_path)


def _edit(data: dict[str, Any], *path: Any, value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("format",), 99, "another version"),
        (("seeds",), [1, 2, 3], "share a trunk but not a seed"),
        (("seeds",), [1, 2], "2 seeds for 3 prompts"),
        (("trees",), [], "do not hold every image once"),
        (("trees", 0, "children", 0, "stop"), 9, "ends before the last timestep"),
        (("trees", 0, "children", 0, "start"), 4, "do not follow each other"),
        (("trees", 0, "images"), [0, 5], "do not hold every image once"),
    ],
)
def test_a_contradictory_plan_is_refused(path: tuple[Any, ...], value: Any, says: str, tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    _edit(data, *path, value=value)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(CotrunkError, match=says):
        Plan.load(tmp_path / "plan.json")


def use(plan: Plan) -> None:
    """Use a plan that was read in every way in which cotrunk uses it."""
    plan.check()
    assert 0 < plan.cost.used <= plan.cost.independent
    assert sum(plan.image_rows()) == pytest.approx(plan.cost.used)
    assert 0 <= plan.cost.saving < 1
    assert [i for batch in plan.batches(2) for tree in batch for i in tree.images]
    steps = {0, *(stop for tree in plan.trees for node in tree.nodes() for stop in (node.start, node.stop - 1))}
    for step in steps:
        alive = [branch for tree in plan.trees for branch in tree.at(step)]
        assert sorted(i for branch in alive for i in branch.images) == list(range(len(plan)))
    for image in range(len(plan)):
        assert plan.prompts[plan.prompt_of(image)].encode() is not None
        torch.Generator().manual_seed(plan.seeds[image])
    plan.independent(steps=2, timesteps=2).check()
    why_nothing_shared(plan)
    why_nothing_shared(plan.independent())
    images = tuple(range(len(plan)))
    part = PartPlan((), plan, tuple(map(plan.prompt_of, images)), images, images)
    json.dumps([asdict(group_report(part, tree, {})) for tree in plan.trees], allow_nan=False)


@pytest.mark.parametrize("seed", range(4))
def test_a_plan_that_is_read_can_be_used(seed: int, tmp_path: Path) -> None:
    """For any content of its file: the plan is refused in one sentence, or everything works."""
    inner = Branch((0, 2), 2, 3, 0.7, (leaf(0, 3, 10), leaf(2, 3, 10)))
    tree = Branch((0, 2, 3), 0, 2, 0.6, (inner, leaf(3, 2, 10)))
    findings = Findings(truncated=((1, "the end"),), alike=((0, 1),))
    trees = (tree, leaf(1, 0, 10))
    plan = Plan(("a", "b"), (1, 2, 1, 1), trees, 10, 10, 2, 2, False, Sharing.published(mode="tree"), 0.6, findings)
    plan.save(tmp_path / "plan.json")
    document, read, refused = json.loads((tmp_path / "plan.json").read_text()), 0, list[str]()
    for what, text in mutants(document, 250, seed):
        (tmp_path / "plan.json").write_text(text)
        try:
            mutant = Plan.load(tmp_path / "plan.json")
        except CotrunkError as error:
            refused.append(str(error))
            continue
        try:
            use(mutant)
        except Exception as error:
            raise AssertionError(what) from error
        read += 1
    assert all("\n" not in sentence and len(sentence) < 500 for sentence in refused)
    assert 10 < read < 150  # some changed numbers still make a plan


def test_a_saved_plan_can_be_read_again(tmp_path: Path) -> None:
    def chain(first: int, last: int) -> Branch:
        images, end = tuple(range(first, last + 1)), 500
        if len(images) == 1:
            return leaf(first, first, end)
        return Branch(images, first, first + 1, 0.5, (leaf(first, first + 1, end), chain(first + 1, last)))

    for length in (2, DEPTH, DEPTH + 1):
        plan = Plan(("a",) * length, (0,) * length, (chain(0, length - 1),), 500, 500)
        assert plan.trees[0].depth == length
        if length <= DEPTH:
            plan.save(tmp_path / "plan.json")
            assert Plan.load(tmp_path / "plan.json") == plan
        else:
            with pytest.raises(CotrunkError, match="more than 200 times in a row cannot be saved: limit max_group"):
                plan.save(tmp_path / "plan.json")


def test_the_place_of_a_wrong_value_is_reported(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    _edit(data, "trees", 0, "children", 1, "stop", value=True)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(CotrunkError, match=r"0\.children\.1\.stop: Input should be a valid integer\. Make a new one\."):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("name", ["x" * 5000, "x/" * 3000])
def test_impossible_paths_are_refused_in_one_sentence(name: str) -> None:
    for use_path in (Plan.load, PLAN.save):
        with pytest.raises(CotrunkError, match="Cannot"):
            use_path(name)


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\0\0", '{"format": 1}'])
def test_a_file_that_is_not_a_plan_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(CotrunkError, match="plan"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(CotrunkError, match="Cannot read"):
        Plan.load(tmp_path / "none.json")
