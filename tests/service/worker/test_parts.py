"""Small parts of the worker: previews' steps, rows by way, speed, memory of vectors, merged plans."""

from collections.abc import Sequence

import numpy as np
import pytest

from cotrunk import Plan, Sharing
from cotrunk.planning.embedding import Encoder
from cotrunk.planning.tree import flat_tree, leaf
from cotrunk.service.worker.delivery import rows_of
from cotrunk.service.worker.formed import merged
from cotrunk.service.worker.memory import remembering
from cotrunk.service.worker.partials import preview_steps
from cotrunk.service.worker.speed import Speed
from cotrunk.service.worker.writer import Writer, WriterError

SHARING = Sharing(noise="own", trunk_guidance=0.0)
PAIR = Plan(("a", "b"), (1, 2), tuple(flat_tree([0, 1], 2, 10, 0.9)), 10, 10, sharing=SHARING, threshold=0.5)
SINGLE = Plan(("c",), (3,), (leaf(0, 0, 10),), 10, 10, sharing=SHARING, threshold=0.5)


@pytest.mark.parametrize(
    ("partials", "timesteps", "steps"),
    [(0, 30, []), (1, 30, [15]), (3, 30, [8, 15, 23]), (3, 2, [1]), (1, 1, [])],
)
def test_previews_are_spread_over_the_steps(partials: int, timesteps: int, steps: list[int]) -> None:
    assert preview_steps(partials, timesteps) == steps


def test_rows_are_divided_by_way() -> None:
    # a trunk of two steps without guidance, then three steps skipped
    rows = rows_of(PAIR, "ssCCCPPPCC", 2 * 0.5 + 5 * 2, hit=False)
    assert rows["independent"] == 20
    assert (rows["computed"], rows["sharing"], rows["skipping"]) == (11, 3, 6)
    replayed = rows_of(PAIR, "rrCCCPPPCC", 10, hit=True)
    assert (replayed["sharing"], replayed["replay"]) == (0, 4)
    computed = rows_of(PAIR, "rrCCCPPPCC", 2 * 0.5 + 10, hit=False)
    assert (computed["sharing"], computed["replay"]) == (3, 0)
    ways = ("computed", "sharing", "skipping", "guidance", "replay")
    assert sum(rows[way] for way in ways) == rows["independent"]  # type: ignore[literal-required]


def test_plans_are_merged_group_after_group() -> None:
    plan = merged([SINGLE, PAIR, SINGLE])
    plan.check()
    assert plan.prompts == ("c", "a", "b", "c")
    assert plan.seeds == (3, 1, 2, 3)
    assert [tree.images for tree in plan.trees] == [(0,), (1, 2), (3,)]
    assert plan.trees[1].children[1].images == (2,)


def test_each_prompt_is_embedded_once() -> None:
    asked = []

    def encode(prompts: Sequence[str]) -> np.ndarray:
        asked.append(list(prompts))
        return np.array([[float(len(prompt)), 1.0] for prompt in prompts], dtype=np.float32)

    encoder = remembering(Encoder("test", encode), most=3)
    assert encoder.encode(["a", "bb", "a"])[:, 0].tolist() == [1, 2, 1]
    assert encoder.encode(["bb", "ccc"])[:, 0].tolist() == [2, 3]
    assert asked == [["a", "bb"], ["ccc"]]
    encoder.encode(["dddd"])  # the one that was used least recently is forgotten
    encoder.encode(["a"])
    assert asked[2:] == [["dddd"], ["a"]]
    assert encoder.encode(["1", "2", "3", "4", "5"]).shape == (5, 2)  # more at once than are remembered


def test_speed_is_of_the_latest_calls() -> None:
    speed = Speed()
    speed.note(100, 200, 2)
    assert (speed.computed, speed.served) == (50, 100)
    for _ in range(30):
        speed.note(100, 100, 1)
    assert speed.computed == pytest.approx(100, rel=0.01)
    assert speed.seconds == 1


def test_the_writer_keeps_the_order_and_passes_errors_on() -> None:
    writer, written = Writer(), list[int]()
    for number in range(5):
        writer.do(written.append, number)
    writer.finish()
    assert written == [0, 1, 2, 3, 4]
    assert not writer.is_busy
    writer.do(written.remove, 9)
    with pytest.raises(WriterError, match=r"ValueError: .*not in list"):
        writer.finish()
    writer.do(written.append, 5)
    writer.finish()
    assert written[-1] == 5
