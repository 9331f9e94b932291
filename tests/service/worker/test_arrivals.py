"""Whether waiting for a similar image pays."""

from cotrunk.service.worker.arrivals import HALF_LIFE, MOST_BUCKETS, Arrivals

SAVED, SPEED = 20.0, 100.0  # a similar image saves a fifth of a second


def pays(arrivals: Arrivals, now: float = 0.0, bucket: str = "a") -> bool:
    return arrivals.pays(bucket, now, SAVED, SPEED)


def test_waiting_is_tried_first() -> None:
    assert pays(Arrivals())


def test_unrelated_images_stop_waiting() -> None:
    arrivals = Arrivals()
    for _ in range(2):
        arrivals.note("a", 0.0, 0.04, 0)
    assert pays(arrivals)
    arrivals.note("a", 0.0, 0.04, 0)
    assert not pays(arrivals)
    assert pays(arrivals, bucket="b")


def test_similar_images_keep_waiting_until_they_come_too_rarely() -> None:
    arrivals = Arrivals()
    for _ in range(50):
        arrivals.note("a", 0.0, 0.05, 1)
    assert pays(arrivals)
    for _ in range(300):
        arrivals.note("a", 0.0, 0.05, 0)
    assert not pays(arrivals)


def test_old_observations_fade() -> None:
    arrivals = Arrivals()
    arrivals.note("a", 0.0, 0.2, 0)
    assert not pays(arrivals)
    assert pays(arrivals, now=2 * HALF_LIFE)


def test_nothing_to_save_is_never_waited_for() -> None:
    assert not Arrivals().pays("a", 0.0, 0.0, SPEED)
    assert Arrivals().pays("a", 0.0, SAVED, 0.0)  # the speed is not known yet


def test_buckets_are_forgotten() -> None:
    arrivals = Arrivals()
    for number in range(3 * MOST_BUCKETS):
        arrivals.note(str(number), 0.0, 1.0, 0)
    assert len(arrivals._records) == MOST_BUCKETS
