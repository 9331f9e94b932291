"""The FastAPI application."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles

from ... import __version__
from ..images import ImageFiles
from ..store import Store
from .access import Access
from .clerk import Clerk
from .documentation import document
from .errors import add_handlers
from .hub import POLL_SECONDS, Hub
from .limits import Limits
from .link import WorkerLink
from .metrics import Metrics
from .middleware import Requests
from .routes import batches, health, images, jobs, models, webui
from .signing import Signer
from .state import Service

PAGE = Path(__file__).parents[1] / "static"  # the built page; `page/` in the repository has its sources
NO_PAGE = "The page is not built: run `make page`. The API is described at /docs and /openapi.json.\n"
FORMS: Any = {"max_files": 1, "max_fields": 10, "max_part_size": 65_536}


def make_app(
    store: Store,
    files: ImageFiles,
    model: str,
    link: WorkerLink,
    signer: Signer,
    limits: Limits,
    *,
    logs_prompts: bool = False,
    keep_days: float = 0,
    page: Path = PAGE,
    poll_seconds: float = POLL_SECONDS,
    has_ids: bool = False,
) -> FastAPI:
    """Return the application.

    Args:
        store: the jobs.
        files: of the images.
        model: the name of the model.
        link: to the worker.
        signer: of addresses that work without a key.
        limits: of requests.
        logs_prompts: write prompts to the log.
        keep_days: remove jobs, images and files so many days after they have ended; 0 keeps them.
        page: folder of the built page.
        poll_seconds: between two looks for events of workers that cannot wake this process.
        has_ids: whether a proxy in front gives each request an id, and puts it into the answer.
    """
    metrics = Metrics()
    hub = Hub(store, metrics.event, poll_seconds)
    access = Access(store, limits.requests_per_minute)
    service = Service(
        store, files, limits, model, link, signer, metrics, hub, logs_prompts, needs_key=lambda: access.needs_key
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        clerk = app.state.clerk = Clerk(service, keep_days)
        tasks = [asyncio.create_task(each.run()) for each in (hub, access, clerk)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    app = FastAPI(title="cotrunk", version=__version__, lifespan=lifespan, redoc_url=None, form_limits=FORMS)
    app.state.service, app.state.access, app.state.started = service, access, time.time()
    add_handlers(app)
    for routes in (images, batches, jobs, models, health, webui):
        app.include_router(routes.router)
    _add_page(app, page)
    app.add_middleware(
        Requests,
        body_mib=limits.body_mib,
        file_mib=limits.file_mib,
        needs_key=lambda: access.needs_key,
        finished=metrics.request,
        has_ids=has_ids,
    )

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app, limits)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _add_page(app: FastAPI, page: Path) -> None:
    """Serve the built page, or say that it is not built."""
    if (page / "index.html").is_file():
        app.mount("/", StaticFiles(directory=page, html=True), name="page")
        return

    @app.get("/", include_in_schema=False)
    async def no_page() -> PlainTextResponse:
        return PlainTextResponse(NO_PAGE)
