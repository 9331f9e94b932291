"""The waiting images as the worker sees them: which of them leave now, and when to look again."""

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import first_line
from ..launch import WorkerSettings
from ..store import ImageRow
from .admission import Waiting, departure
from .arrivals import Arrivals
from .asked import call_of, is_alone
from .formed import Member
from .planning import Planner
from .savings import Savings
from .speed import Speed
from .wave import check_device

log = logging.getLogger("cotrunk.worker")
LOOK = 4096  # waiting images that are looked at, oldest first: as many as can be grouped by complete linkage
IDLE = 0.5  # seconds between looks at an empty queue if no message comes
WAITING = 0.1  # seconds between looks while images wait for similar ones
COMPARED = 64  # latest images of a bucket that a new one is compared with
KEPT = 60.0  # seconds after which the images of a bucket without new ones are forgotten


@dataclass(frozen=True)
class _Recent:
    """An image that came before: when it stops waiting, its job and its prompt."""

    until: float
    job: str
    prompt: str


class Queue:
    """The waiting images.

    Attributes:
        look: how many images are looked at.

    Args:
        planner: of the loaded pipeline.
        speed: of the device.
        savings: what sharing has saved.
        launch: how long images wait by default.
        clock: gives the time, in seconds since 1970.
    """

    def __init__(
        self,
        planner: Planner,
        speed: Speed,
        savings: Savings,
        launch: WorkerSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self.look = LOOK
        self._planner, self._speed, self._savings, self._launch = planner, speed, savings, launch
        self._arrivals = Arrivals()
        self._seen = set[str]()  # images that waited at the last look
        self._saved: dict[Hashable, float] = {}  # call -> rows that a similar image saves by plan
        self._recent: dict[str, list[_Recent]] = {}  # bucket -> its latest images
        self._again: float | None = None

    def seconds_left(self) -> float:
        """Return after how many seconds to look again if no other image comes."""
        # while an image waits, it may turn out that waiting does not pay
        return IDLE if self._again is None else min(WAITING, max(0.001, self._again - self._clock()))

    def leaving(self, rows: Sequence[ImageRow], size: int) -> list[list[Member]]:
        """Return the images that leave now, per bucket; none if they wait on.

        Args:
            rows: the waiting images, oldest first.
            size: largest number of images in one call.

        Raises:
            LostDeviceError: the device cannot be used any more.
        """
        now = self._clock()
        waiting = [self._waiting(row) for row in rows]
        by_id = {row.id: row for row in rows}
        first = {image.bucket: by_id[image.id] for image in reversed(waiting)}
        self._note(rows, waiting)
        # images behind these may leave: they are not looked at as long as these wait
        is_full = len(rows) >= self.look

        def pays(bucket: str) -> bool:
            return not is_full and self._pays(bucket, first[bucket], now)

        found = departure(waiting, now, size, pays, self._speed.seconds)
        self._again = found.again
        return [[Member.of(by_id[image.id]) for image in bucket] for bucket in found.buckets]

    def _waiting(self, row: ImageRow) -> Waiting:
        request = row.request
        own = self._launch.wait_ms if request.custom_id is None else self._launch.batch_wait_ms
        wait = (own if request.wait_ms is None else request.wait_ms) / 1000
        # an image of which an attempt counts although it waits: the worker may have died while it compared its prompt
        is_single = is_alone(request) or row.attempts > 0
        return Waiting(row.id, row.bucket, call_of(request), row.accepted, wait, is_single)

    def _pays(self, bucket: str, row: ImageRow, now: float) -> bool:
        return self._arrivals.pays(bucket, now, self._saved_by(row), self._speed.computed)

    def _saved_by(self, row: ImageRow) -> float:
        """Return the rows that an image similar to this one would save."""
        call = call_of(row.request)
        if call not in self._saved:
            try:
                self._saved[call] = self._planner.saved_rows(row.request)
            except Exception as error:  # it is refused when it leaves
                check_device(error, [row.id])
                return 0.0
        return self._savings.of_pair(call, self._saved[call])

    def _note(self, rows: Sequence[ImageRow], waiting: Sequence[Waiting]) -> None:
        """Note the images that have come since the last look, and which earlier ones they are similar to."""
        new = [i for i, row in enumerate(rows) if row.id not in self._seen]
        self._seen = {row.id for row in rows}
        if not self._planner.shares:
            return
        for i in new:
            row, image = rows[i], waiting[i]
            if image.is_alone:
                continue
            recent = [each for each in self._recent.get(row.bucket, []) if each.until >= row.accepted][-COMPARED:]
            # those of one job came together, and need not wait for each other
            earlier = [each.prompt for each in recent if each.job != row.job and each.prompt != row.request.prompt]
            similar = bool(earlier) and self._is_similar(row, earlier)
            self._arrivals.note(row.bucket, row.accepted, image.wait, similar=similar)
            self._recent[row.bucket] = [*recent, _Recent(image.deadline, row.job, row.request.prompt)]
        now = max((row.accepted for row in rows), default=0.0)
        self._recent = {bucket: own for bucket, own in self._recent.items() if own[-1].until >= now - KEPT}

    def _is_similar(self, row: ImageRow, earlier: Sequence[str]) -> bool:
        """Return whether an image is similar to one of some earlier prompts."""
        try:
            own, *others = self._planner.vectors([row.request.prompt, *earlier])
        except Exception as error:  # only how long others wait depends on it
            check_device(error, [row.id])
            log.warning("The prompt of %s cannot be compared: %s", row.id, first_line(error))
            return False
        return bool((np.stack(others) @ own >= self._planner.threshold).any())
