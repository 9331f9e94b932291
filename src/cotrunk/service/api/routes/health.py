"""Health, readiness and metrics, for operators. They need no key: they name no prompts and no owners."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError

from .... import __version__
from ...store import Queue
from ..documentation import errors
from ..schemas.models import Health, Readiness
from ..state import in_thread, service_of

router = APIRouter(tags=["health"])
NOTHING = Queue(0, 0, 0.0, 0, 0)


@router.get("/healthz", summary="Whether the API process is alive", responses=errors())
async def alive() -> Health:
    """Answer that this process is alive."""
    return Health(version=__version__)


@router.get(
    "/readyz",
    summary="Whether images can be generated now",
    response_model=Readiness,
    responses={**errors(), 503: {"model": Readiness, "description": "The worker or the database is not ready."}},
)
async def ready(request: Request) -> JSONResponse:
    """Return the state of the worker, the queue and the database. The status is 503 while images would have to wait."""
    service = service_of(request)
    queue, has_database = NOTHING, True
    try:
        queue = await in_thread(service.store.queue)
    except SQLAlchemyError:
        has_database = False
    link = service.link
    is_ready = has_database and link.state == "ready"
    found = Readiness(
        ready=is_ready,
        model=service.model,
        worker=link.state,
        worker_restarts=link.restarts,
        database=has_database,
        queued_images=queue.images,
        queued_rows=queue.rows,
        oldest_seconds=round(queue.oldest, 3),
        rows_per_second=link.rows_per_second,
        needs_key=request.app.state.access.needs_key,
    )
    return JSONResponse(found.model_dump(mode="json"), 200 if is_ready else 503)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Metrics."}, **errors()},
)
async def metrics(request: Request) -> Response:
    """Return rows by source, queue, waits, latencies, group sizes, uses of trunks and the state of the worker."""
    service = service_of(request)
    queue = await in_thread(service.store.queue)
    return Response(service.metrics.text(queue, service.link), media_type=CONTENT_TYPE_LATEST)
