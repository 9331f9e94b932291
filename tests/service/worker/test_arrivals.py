"""Whether waiting for a similar image pays."""

from cotrunk.service.worker.arrivals import HALF_LIFE, MOST_BUCKETS, Arrivals
from cotrunk.service.worker.queue import LOOK

SAVED, SPEED = 20.0, 100.0  # a similar image saves a fifth of a second
WAIT = 0.05


def pays(arrivals: Arrivals, now: float = 0.0, bucket: str = "a") -> bool:
    return arrivals.pays(bucket, now, SAVED, SPEED)


def come(arrivals: Arrivals, similar: int, others: int, start: float = 0.0, apart: float = 1.0) -> float:
    """Let images come that are similar to earlier ones, or not; return the time after them."""
    for number in range(similar + others):
        arrivals.note("a", start + apart * number, WAIT, similar=number < similar)
    return start + apart * (similar + others)


def test_waiting_is_tried_first() -> None:
    assert pays(Arrivals())


def test_unrelated_images_stop_waiting() -> None:
    arrivals = Arrivals()
    assert pays(arrivals, come(arrivals, 0, 1))
    assert not pays(arrivals, come(arrivals, 0, 2, start=1.0))  # after half of the time that a similar one saves
    assert pays(arrivals, 3.0, bucket="b")


def test_a_single_image_stops_waiting_when_none_comes() -> None:
    arrivals = Arrivals()
    arrivals.note("a", 0.0, 60.0, similar=False)
    assert pays(arrivals, 0.09)
    assert not pays(arrivals, 0.11)


def test_similar_images_keep_waiting_until_they_come_too_rarely() -> None:
    arrivals = Arrivals()
    now = come(arrivals, 20, 0)
    assert pays(arrivals, now)
    assert not pays(arrivals, come(arrivals, 0, 100, start=now))


def test_time_in_which_several_images_wait_counts_once() -> None:
    arrivals = Arrivals()
    for _ in range(1000):
        arrivals.note("a", 0.0, WAIT, similar=False)
    assert pays(arrivals, 1.0)


def test_old_observations_fade() -> None:
    arrivals = Arrivals()
    now = come(arrivals, 0, 3)
    assert not pays(arrivals, now)
    assert pays(arrivals, now + 2 * HALF_LIFE)


def test_nothing_to_save_is_never_waited_for() -> None:
    assert not Arrivals().pays("a", 0.0, 0.0, SPEED)
    assert Arrivals().pays("a", 0.0, SAVED, 0.0)  # the speed is not known yet


def test_as_many_buckets_as_are_looked_at_stop_waiting() -> None:
    arrivals = Arrivals()
    for number in range(LOOK):
        arrivals.note(str(number), 0.0, 60.0, similar=False)
    for now in (0.05, 1.0):
        waits = [pays(arrivals, now, bucket=str(number)) for number in range(LOOK)]
        assert waits == [now < 0.1] * LOOK


def test_buckets_are_forgotten() -> None:
    arrivals = Arrivals()
    for number in range(3 * MOST_BUCKETS):
        arrivals.note(str(number), 0.0, 1.0, similar=False)
    assert len(arrivals._records) == MOST_BUCKETS
