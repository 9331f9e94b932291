"""Which waiting images leave, and which groups run together."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from cotrunk.service.worker.admission import Waiting, departure, wave

SIZE = 4


def image(number: int, bucket: str = "a", *, accepted: float = 0.0, wait: float = 1.0, call: str = "call") -> Waiting:
    return Waiting(str(number), bucket, call, accepted, wait)


def leaving(waiting: list[Waiting], now: float, *, pays: bool = True, busy: float = 0.0) -> list[list[str]]:
    found = departure(waiting, now, SIZE, lambda bucket: pays, busy)
    return [[each.id for each in bucket] for bucket in found.buckets]


def test_an_image_leaves_when_it_has_waited() -> None:
    assert leaving([image(1)], 0.9) == []
    assert departure([image(1)], 0.9, SIZE, lambda bucket: True).again == 1.0
    assert leaving([image(1)], 1.0) == [["1"]]


def test_a_bucket_leaves_whole_with_its_first_deadline() -> None:
    waiting = [image(1, wait=5), image(2, accepted=0.5, wait=0.1)]
    assert leaving(waiting, 0.55) == []
    assert leaving(waiting, 0.6) == [["1", "2"]]


def test_a_bucket_leaves_when_it_fills_a_call() -> None:
    assert leaving([image(i) for i in range(SIZE)], 0.0) == [["0", "1", "2", "3"]]
    assert leaving([image(i) for i in range(SIZE - 1)], 0.0) == []


def test_a_bucket_leaves_when_waiting_does_not_pay() -> None:
    assert leaving([image(1), image(2)], 0.0, pays=False) == [["1", "2"]]


def test_buckets_that_leave_share_a_call_if_they_may() -> None:
    waiting = [image(1, "a"), image(2, "b", call="other"), image(3, "c")]
    assert leaving(waiting, 1.0) == [["1"], ["3"]]


def test_images_whose_time_ends_during_the_call_go_along() -> None:
    waiting = [image(1, "a"), image(2, "b", accepted=0.5), image(3, "c", wait=9)]
    assert leaving(waiting, 1.0) == [["1"]]
    assert leaving(waiting, 1.0, busy=1.0) == [["1"], ["2"]]


def test_an_image_that_is_alone_leaves_at_once_by_itself() -> None:
    alone = Waiting("1", "a", "call", 0.0, 9.0, is_alone=True)
    assert leaving([alone, image(2)], 5.0) == [["1"]]
    assert leaving([image(2), alone], 5.0) == [["2"]]
    assert departure([image(2, wait=9), alone], 0.0, SIZE, lambda bucket: True).buckets == ((alone,),)


def test_nothing_waits_without_images() -> None:
    assert departure([], 0.0, SIZE, lambda bucket: True).again is None


waits = st.builds(
    lambda place, **fields: Waiting(bucket=place[0], call=place[1], **fields),
    id=st.uuids().map(str),
    place=st.sampled_from([("a", "x"), ("b", "x"), ("c", "y")]),  # images of a bucket may always run in one call
    accepted=st.floats(0, 10),
    wait=st.floats(0, 5),
    is_alone=st.booleans(),
)


@given(st.lists(waits, max_size=20, unique_by=lambda each: each.id), st.booleans(), st.floats(0, 3))
def test_every_image_leaves_and_none_waits_beyond_its_time(waiting: list[Waiting], pays: bool, busy: float) -> None:
    """Whatever waits, an idle device runs an image at the latest at its deadline, and all are gone in the end."""
    waiting = sorted(waiting, key=lambda each: each.accepted)
    left, now = list(waiting), 10.0
    while left:
        found = departure(left, now, SIZE, lambda bucket: pays, busy)
        if not found.buckets:
            assert found.again is not None
            assert now < found.again <= min(each.deadline for each in left)
            now = found.again
            continue
        gone = [each for bucket in found.buckets for each in bucket]
        assert len({each.call for each in gone}) == 1
        assert len(gone) == 1 or not any(each.is_alone for each in gone)
        due = [each for each in left if each.deadline <= now]
        assert not due or min(each.accepted for each in gone) <= due[0].accepted
        left = [each for each in left if each not in gone]
    assert not left


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(1, 6)), min_size=1, max_size=12))
def test_the_oldest_group_is_always_in_the_next_call(shapes: list[tuple[float, int]]) -> None:
    @dataclass(frozen=True)
    class Group:
        oldest: tuple[float, int]
        size: int

    groups = [Group((accepted, number), size) for number, (accepted, size) in enumerate(shapes)]
    chosen = wave(groups, SIZE)
    assert min(groups, key=lambda group: group.oldest) == chosen[0]
    assert sum(group.size for group in chosen) <= max(SIZE, chosen[0].size)
    rest = [group for group in groups if group not in chosen]
    assert all(sum(group.size for group in chosen) + group.size > SIZE for group in rest)


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(1, 4)), min_size=1, max_size=30))
def test_none_starves_while_others_keep_coming(shapes: list[tuple[float, int]]) -> None:
    """A group leaves after at most as many calls as there were older groups, although new ones come all the time."""

    @dataclass(frozen=True)
    class Group:
        oldest: tuple[float, int]
        size: int

    groups = [Group((accepted, number), size) for number, (accepted, size) in enumerate(shapes)]
    last = max(groups, key=lambda group: group.oldest)
    for turn in range(len(groups)):
        if last not in groups:
            break
        chosen = wave(groups, SIZE)
        newcomer = Group((10.0 + turn, 0), SIZE)
        groups = [*(group for group in groups if group not in chosen), newcomer]
    assert last not in groups
