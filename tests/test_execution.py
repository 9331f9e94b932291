"""How a plan is divided into batches: by groups, images and seconds; and what an output says about its images."""

import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from running import run
from tiny import sd

from cotrunk import Batching, Branch, Plan
from cotrunk.execution import Run
from cotrunk.pipelines.outputs import blackened
from cotrunk.planning.tree import flat_tree
from cotrunk.settings import DEFAULT_BATCHING


class Machine:
    """A clock that advances by the seconds that a denoiser would take per call and per row."""

    def __init__(self, patch: pytest.MonkeyPatch, *, call: float, row: float, memory: float = math.inf) -> None:
        self.call, self.row, self.memory, self.now, self.compile = call, row, memory, 0.0, 0.0
        self.took: list[float] = []
        patch.setattr("cotrunk.execution.time", SimpleNamespace(perf_counter=lambda: self.now))
        patch.setattr(Run, "_call", lambda run, trees, on_step: self._run(run, trees))

    def _run(self, run: Run, trees: Sequence[Branch]) -> tuple[int, ...]:
        images = tuple(image for tree in trees for image in tree.images)
        if len(images) > self.memory:
            raise torch.OutOfMemoryError
        seconds = self.compile + self.call + self.row * run.plan.cost_of(trees).used
        self.compile, self.now = 0.0, self.now + seconds
        self.took.append(seconds)
        return images


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def plan_of(sizes: Sequence[int]) -> Plan:
    trees: list[Branch] = []
    for size in sizes:
        first = sum(len(tree.images) for tree in trees)
        trees += flat_tree(range(first, first + size), 1, 4)
    count = sum(sizes)
    return Plan(("a",) * count, (0,) * count, tuple(trees), 4, 4, guidance_rows=1)


def batches(plan: Plan, **given: Any) -> list[Any]:
    return list(Run(SimpleNamespace(), plan, None).batches(**given))  # type: ignore[arg-type]


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=40),
    done=st.sets(st.integers(0, 39)),
    row=st.floats(0.01, 30),
    call=st.floats(0, 30),
    limit=st.sampled_from([0.5, 60.0, math.inf]),
)
def test_each_unfinished_group_runs_once_and_whole(
    sizes: list[int], done: set[int], row: float, call: float, limit: float
) -> None:
    plan = plan_of(sizes)
    finished = {image for number in done if number < len(plan.trees) for image in plan.trees[number].images}
    with pytest.MonkeyPatch.context() as patch:
        Machine(patch, call=call, row=row)
        found = batches(plan, skip=finished.issuperset, seconds=limit)
    assert [image for batch in found for image in batch] == [
        image for tree in plan.trees for image in tree.images if image not in finished
    ]
    for tree in plan.trees:
        assert sum(not set(tree.images).isdisjoint(batch) for batch in found) <= 1
    assert all(len(batch) <= DEFAULT_BATCHING.batch_size for batch in found)


@pytest.mark.parametrize("row", [0.001, 0.1, 1.0, 10.0, 100.0])
def test_a_batch_keeps_its_time_limit_unless_it_is_one_group(row: float, patch: pytest.MonkeyPatch) -> None:
    machine = Machine(patch, call=0.5, row=row)
    found = batches(plan_of([1, 4, 2, 5, 3] * 30), seconds=60.0)
    assert len(found[0]) == 1
    for batch, seconds in zip(found, machine.took, strict=True):
        assert seconds <= 60.5 or len(batch) <= 5  # a group
    assert max(map(len, found)) >= min(32, 60 / (4 * row)) / 4  # and the time is used


def test_time_to_compile_does_not_shrink_later_batches(patch: pytest.MonkeyPatch) -> None:
    machine = Machine(patch, call=0.0, row=0.1)
    machine.compile = 300.0
    found = batches(plan_of([1] * 100), seconds=60.0)
    assert [len(batch) for batch in found] == [1, 1, 32, 32, 32, 2]


def test_a_machine_that_becomes_slow_gets_smaller_batches(patch: pytest.MonkeyPatch) -> None:
    machine = Machine(patch, call=0.0, row=0.1)
    sizes = []
    for batch in Run(SimpleNamespace(), plan_of([1] * 200), None).batches(seconds=60.0):  # type: ignore[arg-type]
        sizes.append(len(batch))  # type: ignore[arg-type]
        if len(sizes) == 3:
            machine.row = 5.0  # 20 seconds per image
    assert sizes[:7] == [1, 32, 32, 32, 2, 2, 2]


def test_without_a_limit_batches_are_those_of_the_plan(patch: pytest.MonkeyPatch) -> None:
    Machine(patch, call=0.0, row=100.0)
    plan = plan_of([1, 4, 2, 5, 3] * 30)
    of_plan = [
        tuple(image for tree in batch for image in tree.images) for batch in plan.batches(DEFAULT_BATCHING.batch_size)
    ]
    assert batches(plan) == of_plan


def test_batches_shrink_when_memory_runs_out(patch: pytest.MonkeyPatch) -> None:
    machine = Machine(patch, call=0.0, row=0.001, memory=10)
    found = batches(plan_of([1] * 50), seconds=60.0)
    assert [len(batch) for batch in found] == [1, 8, 8, 8, 8, 8, 8, 1]
    machine.memory = 4
    with pytest.raises(torch.OutOfMemoryError):  # a group cannot be divided
        batches(plan_of([5]), seconds=60.0)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({}, [False, False, False]),
        ({"nsfw_content_detected": None}, [False, False, False]),
        ({"nsfw_content_detected": [False, True, False]}, [False, True, False]),
        ({"nsfw_content_detected": torch.tensor([False, True, True])}, [False, True, True]),
        ({"nsfw_detected": [True, False, False], "watermark_detected": [False, False, True]}, [True, False, True]),
        ({"nsfw_detected": None, "watermark_detected": [False, True, False]}, [False, True, False]),
        ({"nsfw_content_detected": False}, [False, False, False]),
        ({"nsfw_content_detected": [True]}, [False, False, False]),  # the results are not per image
    ],
)
def test_results_of_safety_checkers_are_read_in_every_form(output: dict[str, Any], expected: list[bool]) -> None:
    assert blackened(SimpleNamespace(**output), 3) == expected


def test_images_that_a_safety_checker_blackens_are_flagged_in_any_batch(patch: pytest.MonkeyPatch) -> None:
    tiny = sd()

    def check(image: torch.Tensor, device: Any, dtype: Any) -> tuple[torch.Tensor, list[bool]]:
        marks = [bool(one.mean() < means[1]) for one in image]
        return image, marks

    inputs = tiny.inputs(5)
    patch.setattr(tiny.pipe, "run_safety_checker", lambda image, *_: (image, None))
    plain = run(tiny, inputs, sharing=None, output_type="pt")
    assert plain.flagged == ()
    by_darkness = sorted(range(5), key=lambda i: float(plain.images[i].mean()))
    means = [float(plain.images[i].mean()) * 2 - 1 for i in by_darkness]
    means[1] = (means[1] + means[2]) / 2
    patch.setattr(tiny.pipe, "run_safety_checker", check)
    for size in (2, 32):
        result = run(tiny, inputs, sharing=None, output_type="pt", batching=Batching(batch_size=size))
        assert result.flagged == tuple(sorted(by_darkness[:2]))
