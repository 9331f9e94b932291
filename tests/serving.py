"""A service in this process, with a fake worker, for tests of the API."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_worker import FakeWorker
from fastapi.testclient import TestClient

from cotrunk.service.api.app import make_app
from cotrunk.service.api.limits import Limits
from cotrunk.service.api.signing import signer_in
from cotrunk.service.images import ImageFiles
from cotrunk.service.store import Store

GENERATIONS = "/v1/images/generations"


@dataclass
class Serving:
    """A running service.

    Attributes:
        client: sends requests to it.
        store: its jobs.
        worker: its worker.
        app: the application.
    """

    client: Any
    store: Store
    worker: FakeWorker
    app: Any

    def as_owner(self, key: str) -> dict[str, str]:
        """Return the headers of a request with a key."""
        return {"authorization": f"Bearer {key}"}


@contextmanager
def assembled(folder: Path, limits: Limits | None = None, **options: Any) -> Iterator[tuple[Store, FakeWorker, Any]]:
    """Return store, worker and application of a service in a folder.

    Args:
        folder: for its database and its images.
        limits: of requests.
        options: of `FakeWorker` or `make_app`.
    """
    refuse = {name: options.pop(name) for name in ("refuse",) if name in options}
    store = Store(f"sqlite:///{folder}/service.db")
    files = ImageFiles(str(folder / "images"))
    with FakeWorker(store, folder / "images", **refuse) as worker:
        options = {"page": folder / "no-page", **options}
        yield (
            store,
            worker,
            make_app(store, files, "mini", worker.link, signer_in(folder), limits or Limits(), **options),
        )
    store.close()


@contextmanager
def serving(folder: Path, limits: Limits | None = None, **options: Any) -> Iterator[Serving]:
    """Start a service in this process."""
    with (
        assembled(folder, limits, **options) as (store, worker, app),
        TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client,
    ):
        yield Serving(client, store, worker, app)
