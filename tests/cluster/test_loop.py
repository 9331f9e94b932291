"""Passes over waves, without Ray: what is lost, late, twice, damaged or hanging is done in another pass."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cotrunk.cluster.loop import ALL_FAILED, FRUITLESS, finish
from cotrunk.cluster.manifest import Finished, parts, write_part
from cotrunk.cluster.watchdog import Watchdog
from cotrunk.cluster.waves import Wave
from cotrunk.errors import CotrunkError
from cotrunk.storage.files import StoredFiles

WAVES = [Wave(f"wave{i}", 100 - i, 2) for i in range(6)]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class FakePass:
    """Does what it is asked for at each look: a function, or the reason why the pass ended."""

    def __init__(self, *looks: Callable[[], None] | str | None) -> None:
        self.looks, self.is_stopped = list(looks), False

    def ended(self) -> str | None:
        look = self.looks.pop(0) if self.looks else None
        if callable(look):
            look()
            return None
        return look

    def stop(self) -> None:
        self.is_stopped = True


class Cluster:
    """Gives one fake pass after another."""

    def __init__(self, place: Path) -> None:
        self.store, self.asked, self.passes = StoredFiles(str(place)), list[list[str]](), list[FakePass]()
        self.joined, self.reasons = list[str](), list[str]()

    def writes(self, *ids: str) -> Callable[[], None]:
        return lambda: [write_part(self.store, Finished(each, 1, 1.0)) for each in ids] and None

    def begin(self, left: Sequence[str]) -> FakePass:
        self.asked.append(list(left))
        return self.passes[len(self.asked) - 1]

    def run(
        self, *passes: FakePass, waves: Sequence[Wave] = WAVES, clock: Callable[[], float] | None = None
    ) -> list[str]:
        self.asked, self.passes = [], list(passes)
        failed = finish(
            waves,
            self.begin,
            self.store,
            Watchdog(clock or (lambda: 0.0), start=50.0, least=5.0),
            on_finished=lambda found: self.joined.extend(one.wave for one in found),
            on_pass=self.reasons.append,
            poll=0,
        )
        assert parts(self.store) == []
        assert all(each.is_stopped for each in passes)
        return failed


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def ids(*numbers: int) -> list[str]:
    return [f"wave{i}" for i in numbers]


def test_one_pass_is_enough_if_nothing_happens(cluster: Cluster) -> None:
    one = FakePass(cluster.writes(*ids(0, 1)), cluster.writes(*ids(2, 3, 4)), cluster.writes("wave5"))
    assert cluster.run(one) == []
    assert cluster.asked == [ids(0, 1, 2, 3, 4, 5)]
    assert cluster.joined == ids(0, 1, 2, 3, 4, 5)


def test_another_pass_takes_what_is_left(cluster: Cluster) -> None:
    one = FakePass(cluster.writes(*ids(1, 4)), "a machine was lost")
    two = FakePass(cluster.writes(*ids(0, 2, 3, 5)))
    cluster.run(one, two)
    assert cluster.asked == [ids(0, 1, 2, 3, 4, 5), ids(0, 2, 3, 5)]
    assert cluster.reasons == ["a machine was lost"]


def test_parts_that_a_killed_driver_left_are_taken_first(cluster: Cluster) -> None:
    cluster.writes(*ids(0, 5))()
    cluster.run(FakePass(cluster.writes(*ids(1, 2, 3, 4))))
    assert cluster.asked == [ids(1, 2, 3, 4)]
    assert sorted(cluster.joined) == ids(0, 1, 2, 3, 4, 5)


def test_a_pass_that_ends_too_early_is_followed_by_another(cluster: Cluster) -> None:
    cluster.run(FakePass(""), FakePass(cluster.writes(*ids(0, 1, 2, 3, 4, 5))))
    assert cluster.reasons == ["it ended before all waves were finished"]


def test_a_hanging_pass_is_stopped_after_ten_times_the_expected_time(cluster: Cluster) -> None:
    # a wave of 1 row takes 1 second, as far as the watchdog knows
    waves, clock = [Wave("a", 3, 1), Wave("b", 1, 1), Wave("c", 2, 1)], Clock()

    def write() -> None:
        write_part(cluster.store, Finished("b", 1, 1.0))

    cluster.run(FakePass(write), FakePass(cluster.writes("a", "c")), waves=waves, clock=clock)
    assert cluster.asked == [["a", "b", "c"], ["a", "c"]]
    assert 10 * 3 <= clock.now <= 10 * 3 + 20
    assert "ten times" in cluster.reasons[0]


class Hands:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_watchdog_learns_how_long_waves_take_and_painters_to_start() -> None:
    clock = Hands()
    watchdog = Watchdog(clock, start=50.0, least=5.0)
    watchdog.begin()
    assert watchdog.expected(10) is None
    assert watchdog.limit(10) == 50.0
    clock.now = 50.0
    assert not watchdog.is_overdue(10)
    clock.now = 51.0
    assert watchdog.is_overdue(10)
    watchdog.begin()
    clock.now = 54.0
    watchdog.arrived(10, 2.0)
    assert watchdog.expected(20) == 4.0
    assert watchdog.limit(20) == 3 * 1.0 + 10 * 4.0  # 3 seconds after the pass began came a wave of 2
    clock.now = 64.0
    watchdog.arrived(30, 2.0)
    assert watchdog.limit(20) == 3 * 1.0 + 10 * 2.0  # only the first wave of a pass waits for painters to start
    clock.now = 64.0 + 23.0
    assert not watchdog.is_overdue(20)
    clock.now = 64.0 + 24.0
    assert watchdog.is_overdue(20)


def test_waves_that_take_no_time_are_waited_for_as_well() -> None:
    clock = Hands()
    watchdog = Watchdog(clock, start=50.0, least=5.0)
    watchdog.arrived(10, 0.1)
    assert watchdog.limit(10) == 5.0


def test_a_wave_that_was_painted_twice_is_joined_twice_and_counted_once(cluster: Cluster) -> None:
    one = FakePass(cluster.writes("wave0"), cluster.writes("wave0", "unknown"), cluster.writes(*ids(1, 2, 3, 4, 5)))
    cluster.run(one)
    assert sorted(cluster.joined) == sorted(["unknown", "wave0", *ids(0, 1, 2, 3, 4, 5)])


def test_parts_that_stay_for_a_while_are_read_once(cluster: Cluster) -> None:
    joined, waiting = list[str](), list[str]()

    def remove(names: Sequence[str]) -> list[str]:
        waiting.extend(names)
        if len(waiting) < 3:
            return []
        gone, waiting[:] = list(waiting), []
        for name in gone:
            cluster.store.remove(name)
        return gone

    one = FakePass(*(cluster.writes(wave) for wave in (*ids(0, 1, 2, 0, 3, 4), "wave5")))
    cluster.passes = [one]
    finish(
        WAVES,
        cluster.begin,
        cluster.store,
        Watchdog(lambda: 0.0, start=50.0, least=5.0),
        on_finished=lambda found: joined.extend(each.wave for each in found),
        remove=remove,
        poll=0,
    )
    assert joined == ids(0, 1, 2, 0, 3, 4, 5)  # wave0 was painted again after its part had gone


def test_a_damaged_part_is_removed_and_its_wave_painted_again(cluster: Cluster) -> None:
    def damage() -> None:
        cluster.store.put("manifest/wave0.jsonl", b"{")

    cluster.run(FakePass(damage, cluster.writes(*ids(1, 2, 3, 4, 5)), ""), FakePass(cluster.writes("wave0")))
    assert cluster.asked[1] == ["wave0"]


def test_a_cluster_that_never_finishes_a_wave_is_given_up(cluster: Cluster) -> None:
    with pytest.raises(CotrunkError, match=r"No wave was finished in 5 passes \(it burnt\): .* continue with --resume"):
        cluster.run(*(FakePass("it burnt") for _ in range(FRUITLESS)))
    assert len(cluster.asked) == FRUITLESS


def test_an_error_of_the_input_ends_the_run(cluster: Cluster) -> None:
    def refuse() -> None:
        raise CotrunkError("There is no such model.")

    one = FakePass(refuse)
    with pytest.raises(CotrunkError, match="There is no such model"):
        cluster.run(one)
    assert one.is_stopped


def test_failed_groups_are_returned_and_many_at_first_end_the_run(cluster: Cluster) -> None:
    def fail(count: int) -> Callable[[], None]:
        names = tuple(f"failed/{i}.json" for i in range(count))
        return lambda: write_part(cluster.store, Finished("wave0", 1, 1.0, failed=names))

    assert cluster.run(FakePass(fail(2), cluster.writes(*ids(1, 2, 3, 4, 5)))) == ["failed/0.json", "failed/1.json"]
    with pytest.raises(CotrunkError, match=f"The first {ALL_FAILED} groups all failed: read failed/29.json"):
        cluster.run(FakePass(fail(ALL_FAILED)))
