"""The ingress: the API application of the service in a replica of Ray Serve, linked to the Dispatcher."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ...service.api.app import make_app
from ...service.api.link import WorkerLink
from ...service.api.server import Serving
from ...service.api.signing import signer_of
from ...service.images import ImageFiles
from ...service.store import Store
from .dispatcher import Report

LOOK_SECONDS = 1.0  # between two turns of the Dispatcher if nothing happens: dead Painters are noticed then
TURN_SECONDS = 120.0  # in which a turn must end; the first one loads the encoder
EVENT_SECONDS = 0.1  # between two looks for events: workers on other machines cannot wake the API
log = logging.getLogger("cotrunk.service")


class DispatcherLink(WorkerLink):
    """What the API knows about the Painters together, in place of one worker.

    A thread lets the Dispatcher take one turn after another. What happens meanwhile is passed on in the next turn.

    Args:
        turn: lets the Dispatcher take a turn, and returns its report.
    """

    def __init__(self, turn: Callable[[Sequence[str]], Report]) -> None:
        super().__init__()
        self._turn = turn
        self._kinds, self._guard, self._news = set[str](), threading.Lock(), threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Begin to let the Dispatcher take turns."""
        self._thread.start()

    def stop(self) -> None:
        """Stop it."""
        self._ended = True
        self._news.set()

    def send(self, kind: str, **data: Any) -> None:
        """Tell the Dispatcher soon. What must not be lost is in the database."""
        with self._guard:
            self._kinds.add(kind)
        self._news.set()

    def _run(self) -> None:
        while not self._ended:
            self._news.clear()
            with self._guard:
                kinds, self._kinds = sorted(self._kinds), set()
            try:
                self.note(self._turn(kinds))
            except Exception as error:  # the Dispatcher is being started again
                log.warning("The Dispatcher does not answer: %s", type(error).__name__)
                self.state = "restarting" if self.state == "ready" else self.state
            self._news.wait(LOOK_SECONDS)

    def note(self, report: Report) -> None:
        """Take note of the state of the Painters."""
        self.facts = report["facts"] or self.facts
        self.rows_per_second, self.restarts = report["rows_per_second"], report["restarts"]
        if report["ready"]:
            self.state = "ready"
        elif self.state == "ready":
            self.state = "restarting"
        if report["more"]:
            self._news.set()
        self.woken()


class Ingress:
    """The API. `serve.ingress` gives it the requests.

    Args:
        asked: what the service is started with.
        dispatcher: Ray's handle of the Dispatcher.
    """

    def __init__(self, asked: Serving, dispatcher: Any) -> None:
        self._store = Store(asked.worker.database)
        self._link = DispatcherLink(lambda kinds: dispatcher.turn.remote(kinds).result(timeout_s=TURN_SECONDS))
        self._app = make_app(
            self._store,
            ImageFiles(asked.worker.images),
            asked.worker.model,
            self._link,
            signer_of(self._store),
            asked.limits,
            logs_prompts=asked.logs_prompts,
            keep_days=asked.keep_days,
            poll_seconds=EVENT_SECONDS,
            has_ids=True,
        )
        self._link.start()

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application that answers."""
        return self._app

    def __del__(self) -> None:
        """Stop: Serve calls this when it stops the replica in good order."""
        link: DispatcherLink | None = vars(self).get("_link")
        if link is not None:
            link.stop()
