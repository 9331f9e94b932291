"""How often similar images follow each other: whether waiting for another one is expected to pay."""

from collections import OrderedDict
from dataclasses import dataclass

HALF_LIFE = 300.0  # seconds after which an observation counts half
# The least recently used ones are forgotten. It is more than the buckets of all waiting images that are looked at
# (`queue.LOOK`): a bucket whose record is forgotten while it is needed would always begin again, and wait.
MOST_BUCKETS = 10_000


@dataclass
class _Record:
    similar: float = 0.0  # images that came while a similar one could have been waiting
    watched: float = 0.0  # seconds in which an image could have been waiting
    updated: float = 0.0
    until: float = 0.0  # when the last of the images that have come stops waiting


class Arrivals:
    """Counts, per bucket, the images that came while an earlier similar one waited or could have waited.

    So it learns also from images that did not wait.
    """

    def __init__(self) -> None:
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def note(self, bucket: str, now: float, wait: float, *, similar: bool) -> None:
        """Note an image that came.

        Args:
            bucket: of the image.
            now: in seconds.
            wait: how long it may wait, in seconds.
            similar: whether an earlier image is similar to it and could still have been waiting.
        """
        record = self._current(bucket, now)
        record.similar += similar
        record.until = max(record.until, now + wait)

    def pays(self, bucket: str, now: float, saved: float, speed: float) -> bool:
        """Return whether a second of waiting is expected to save more rows than the idle device would compute in it.

        Without observations it is expected to: the prior is one similar image per half the time that it saves. So the
        time that is lost before unrelated images stop waiting is about half of what one shared image saves.

        Args:
            bucket: in which images wait.
            now: in seconds.
            saved: rows that one similar image saves.
            speed: rows that the device computes per second; 0 if it is not known yet.
        """
        if saved <= 0:
            return False
        if speed <= 0:
            return True
        record = self._current(bucket, now)
        saves = saved / speed  # seconds of the device
        return (record.similar + 1) * saves > record.watched + saves / 2

    def _current(self, bucket: str, now: float) -> _Record:
        """Return the record of a bucket at a time, in which older observations count less."""
        record = self._records.setdefault(bucket, _Record(updated=now))
        self._records.move_to_end(bucket)
        if len(self._records) > MOST_BUCKETS:
            self._records.popitem(last=False)
        if now > record.updated:
            part = 0.5 ** ((now - record.updated) / HALF_LIFE)
            record.similar *= part
            record.watched = record.watched * part + max(0.0, min(now, record.until) - record.updated)
            record.updated = now
        return record
