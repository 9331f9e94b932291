"""The Dispatcher: finds the route of waiting images, and hands them to Painters.

It keeps nothing that would be missed. An image without a living worker is found in the database again and again until a
Painter has taken it. So lost messages and dead Painters need no further care, nor does the death of the Dispatcher.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, TypedDict

from ...service.launch import WorkerSettings
from ...service.shapes import ModelFacts
from ...service.store import ImageRow, Store
from .encoder import FIXED, encoder_for, name_of
from .painter import PainterReport
from .routes import Routes

BATCH = 256  # images that are handed over at once
REPORT_SECONDS = 1.0  # between two questions to all Painters
ANSWER_SECONDS = 5.0  # in which a Painter must answer; calls to one that has just died may never end
log = logging.getLogger("cotrunk.service")


class Report(TypedDict):
    """What the API must know about the Painters."""

    ready: int  # Painters with a worker that is ready
    facts: ModelFacts | None
    rows_per_second: float | None  # of all of them together
    restarts: int
    more: bool  # whether images are still to be handed over


class Dispatcher:
    """Hands waiting images to Painters.

    Args:
        settings: of the workers.
        painters: Ray's handle of the Painters.

    Raises:
        CotrunkError: the encoder of the prompts does not load.
    """

    def __init__(self, settings: WorkerSettings, painters: Any) -> None:
        self._store, self._painters = Store(settings.database), painters
        self._routes = Routes(encoder_for(settings), FIXED, self._store.settled, name_of(settings))
        self._report: Report = {"ready": 0, "facts": None, "rows_per_second": None, "restarts": 0, "more": False}
        self._asked = -REPORT_SECONDS
        self._lock = asyncio.Lock()

    async def turn(self, kinds: Sequence[str]) -> Report:
        """Hand over images that wait for no living worker, pass on what happened, and return the state of the Painters.

        Args:
            kinds: what has happened since the last turn: "work", "cancel".
        """
        async with self._lock:
            rows = await asyncio.to_thread(self._store.unassigned, BATCH)
            taken = await self.hand_over(rows) if rows else 0
            for kind in {*kinds}:
                if kind != "work" or not rows:  # "work" without images: somebody asks for a plan
                    await self._broadcast("notify", kind)
            if time.monotonic() - self._asked >= REPORT_SECONDS:
                self._asked = time.monotonic()
                self._report = summary(await self._broadcast("report"))
            return {**self._report, "more": taken == BATCH}

    async def hand_over(self, rows: Sequence[ImageRow]) -> int:
        """Hand images to the Painters of their routes; return how many were taken."""
        routes: dict[str, list[str]] = {}
        for row, route in zip(rows, await asyncio.to_thread(self._routes.of, rows), strict=True):
            routes.setdefault(route, []).append(row.id)
        answers = await asyncio.gather(*(self._assign(route, images) for route, images in routes.items()))
        return sum(len(images) for images, is_taken in zip(routes.values(), answers, strict=True) if is_taken)

    async def _assign(self, route: str, images: list[str]) -> bool:
        # Ray's router sends equal session ids to the same replica as long as it lives
        answer = self._painters.options(session_id=route).assign.remote(route, images)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return bool(await answer)
        except Exception as error:  # the replica has died; the images are found again at the next turn
            answer.cancel()
            log.warning("A Painter did not take %d images: %s", len(images), type(error).__name__)
            return False

    async def _broadcast(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of all Painters, and return the answers of those that live."""
        try:
            call = self._painters.broadcast(method, *arguments)
            answers = await call.results_async(timeout_s=ANSWER_SECONDS, return_exceptions=True)
        except Exception as error:  # there is no Painter now
            log.warning("No Painter answers: %s", type(error).__name__)
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]


def summary(reports: Sequence[PainterReport]) -> Report:
    """Return the state of all Painters together. One whose speed is not measured counts as the mean of the others."""
    ready = [report for report in reports if report["state"] == "ready"]
    speeds = [report["rows_per_second"] for report in ready if report["rows_per_second"] is not None]
    return {
        "ready": len(ready),
        "facts": next((report["facts"] for report in ready if report["facts"] is not None), None),
        "rows_per_second": sum(speeds) / len(speeds) * len(ready) if speeds else None,
        "restarts": sum(report["restarts"] for report in reports),
        "more": False,
    }
