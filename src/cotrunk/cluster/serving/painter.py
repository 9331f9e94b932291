"""A Painter: a replica that keeps one worker process running, and gives it its images."""

import asyncio
import threading
from typing import Any, TypedDict

from ...errors import CotrunkError
from ...service.api.link import State, WorkerLink
from ...service.api.supervisor import Supervisor
from ...service.launch import WorkerSettings
from ...service.shapes import ModelFacts
from ...service.store import Store
from .machine import Probe, why_not

DEATHS = 3  # of the worker before it has been ready once: then the replica is given up


class PainterReport(TypedDict):
    """What a Painter says about itself."""

    worker: str | None
    state: State
    facts: ModelFacts | None
    rows_per_second: float | None
    restarts: int


class Painter:
    """Supervises a worker, which has the device of this replica for itself.

    The worker is the process of `cotrunk serve`, with the same supervision. It may die without ending the replica, so
    the routes of the replica stay its own.

    Args:
        settings: of the worker.
        probe: what this machine must see.

    Raises:
        CotrunkError: this machine cannot run the worker, or the worker refuses its settings.
    """

    def __init__(self, settings: WorkerSettings, probe: Probe) -> None:
        if reason := why_not(settings, probe):
            raise CotrunkError(reason)
        self._store, self._link = Store(settings.database), WorkerLink()
        changed = threading.Event()
        self._link.woken = changed.set
        self._supervisor = Supervisor(settings, self._link)
        self._supervisor.start()
        while self._link.state != "ready" and self._supervisor.refusal is None and self._link.restarts < DEATHS:
            changed.wait(1.0)
            changed.clear()
        if self._link.state != "ready":
            self._supervisor.stop()
            raise CotrunkError(
                self._supervisor.refusal or "The worker dies while it starts; its messages are in the log."
            )

    async def assign(self, route: str, images: list[str]) -> bool:
        """Take images of a route. Return False while there is no worker that can have them.

        Args:
            route: of the images.
            images: their ids.
        """
        worker = self._link.worker
        if worker is None or self._link.state != "ready":
            return False
        await asyncio.to_thread(self._store.assign, worker, route, images)
        self._link.send("work")
        return True

    async def notify(self, kind: str) -> None:
        """Wake the worker: there is "work", or images were cancelled ("cancel")."""
        self._link.send(kind)

    async def report(self) -> PainterReport:
        """Return the state of this replica."""
        link = self._link
        return {
            "worker": link.worker,
            "state": link.state,
            "facts": link.facts,
            "rows_per_second": link.rows_per_second,
            "restarts": link.restarts,
        }

    def check_health(self) -> None:
        """Tell Serve whether this replica is of use.

        Raises:
            CotrunkError: its worker refuses to run.
        """
        if self._supervisor.refusal is not None:
            raise CotrunkError(self._supervisor.refusal)

    def __del__(self) -> None:
        """Stop the worker: Serve calls this when it stops the replica in good order."""
        supervisor: Any = vars(self).pop("_supervisor", None)
        if supervisor is not None:
            supervisor.stop()
