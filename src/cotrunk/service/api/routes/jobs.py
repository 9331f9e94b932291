"""Jobs, their events, plans and archives: what the page needs."""

import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from sse_starlette import EventSourceResponse, ServerSentEvent

from ...store import ImageRow, Job
from ...store.records import ENDED
from ..access import Caller, TokenCaller
from ..answers import job_answer, job_summary, rows_of
from ..archive import archive_of
from ..documentation import keyed
from ..errors import FINAL, SERVER, ApiError, missing
from ..schemas.jobs import JobAnswer, JobList, JobRequest, PlanAnswer, PlannedGroup
from ..state import Service, base_of, in_thread, service_of
from ..waiting import GoneError, ended, follow
from .parameters import After, Idempotency, JobId

router = APIRouter(tags=["jobs"])
Limit = Annotated[int, Query(ge=1, le=100, description="Entries per answer.")]
LAST_EVENT = 2**62  # event ids of databases are below
EVENTS = """Server-sent events with the id, kind and data of each event: `accepted`, `grouped` (images that run
together, with their tree), `step`, `partial` (a preview), `done` and `failed` (an image), `cancelled`, and at the end
`finished` with the job. A browser resumes with `Last-Event-ID`; after `finished`, the answer is 204, which ends it."""


@router.post(
    "/v1/jobs",
    summary="Generate images of a list of prompts",
    status_code=202,
    response_model=JobAnswer,
    responses=keyed(404, 408, 409, 413),
)
async def create(request: Request, asked: JobRequest, owner: Caller, key: Idempotency = None) -> Response:
    """Accept a list of prompts as one job, and answer at once."""
    service = service_of(request)
    images = await in_thread(service.reader.job, asked)
    body = await in_thread(lambda: asked.model_dump(mode="json", exclude_none=True))
    job, _ = await service.accept(owner, "images", images, body, key, asked.metadata)
    return await _answer(service, request, job, 202)


@router.get("/v1/jobs", summary="List jobs", responses=keyed())
async def listed(request: Request, owner: Caller, limit: Limit = 20, after: After = None) -> JobList:
    """List the jobs of the key, newest first, without their images."""
    service = service_of(request)
    found = await in_thread(service.store.jobs, owner.name, limit + 1, after)
    data = [job_summary(job) for job in found[:limit]]
    return JobList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


@router.get("/v1/jobs/{job}", summary="A job with its images", response_model=JobAnswer, responses=keyed(404))
async def one(request: Request, job: JobId, owner: Caller) -> Response:
    """Return a job and all of its images."""
    service = service_of(request)
    return await _answer(service, request, await _found(service, owner.name, job))


@router.post("/v1/jobs/{job}/cancel", summary="Cancel a job", response_model=JobAnswer, responses=keyed(404))
async def cancel(request: Request, job: JobId, owner: Caller) -> Response:
    """Cancel what is not done. Images that are being generated stop at the next step; images that are done stay."""
    service = service_of(request)
    found = await service.cancel(owner.name, job)
    if found is None:
        raise missing("job", job)
    return await _answer(service, request, found)


@router.get(
    "/v1/jobs/{job}/events",
    summary="Events of a job",
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": EVENTS},
        204: {"description": "The job has ended, and the client has seen its last event."},
        **keyed(404),
    },
)
async def events(
    request: Request,
    job: JobId,
    owner: TokenCaller,
    last: Annotated[
        int | None, Header(alias="Last-Event-ID", ge=0, le=LAST_EVENT, description="Go on after this event.")
    ] = None,
) -> Response:
    """Follow a job from its first event, or from the one after `Last-Event-ID`, until it has ended."""
    service = service_of(request)
    found = await _found(service, owner.name, job)
    after = last or 0
    has_seen_all = found.state in ENDED and last is not None
    if has_seen_all and not await in_thread(service.store.events, owner.name, job, after):
        return Response(status_code=204)
    return EventSourceResponse(_events(service, request, found, after), ping=15, send_timeout=60)


async def _events(service: Service, request: Request, job: Job, after: int) -> AsyncIterator[ServerSentEvent]:
    async for event in follow(service, job.owner, job.id, after):
        after = event.id
        data = {**event.data, "created": event.created}
        if event.kind == "done" and "image" in event.data:
            data["url"] = service.url(request, event.data["image"], job.owner)
        elif event.kind == "partial":
            path = f"/v1/images/{event.data['image']}/partials/{event.data['index']}"
            data["url"] = base_of(request) + service.signer.signed(path, job.owner)
        yield ServerSentEvent(json.dumps(data), event=event.kind, id=str(event.id))
    found = await in_thread(service.store.job, job.owner, job.id)
    if found is not None:
        yield ServerSentEvent(job_summary(found).model_dump_json(), event="finished", id=str(after))


@router.get(
    "/v1/jobs/{job}/archive",
    summary="All images of a job in one file",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
            "description": "A zip file with the images that are done, and `images.jsonl` with their settings.",
        },
        **keyed(404),
    },
)
async def archive(request: Request, job: JobId, owner: TokenCaller) -> StreamingResponse:
    """Return the images that are done, as a zip file."""
    service = service_of(request)
    found = await _found(service, owner.name, job)
    images, lines = await in_thread(_lines, service, request, found)
    return StreamingResponse(
        archive_of(service.files, images, lines),
        media_type="application/zip",
        headers={"content-disposition": f'attachment; filename="{job}.zip"'},
    )


def _lines(service: Service, request: Request, job: Job) -> tuple[list[ImageRow], dict[str, str]]:
    """Return the images of a job, and the line of each in the archive."""
    images = service.store.images(job.owner, job.id)
    answers = job_answer(job, images, service.signer, base_of(request)).images
    return images, {image.id: one.model_dump_json() for image, one in zip(images, answers, strict=True)}


@router.post("/v1/plans", summary="See what a job would share and save", responses=keyed(404, 408, 413, 504))
async def plan(request: Request, asked: JobRequest, owner: Caller) -> PlanAnswer:
    """Group the prompts of a job as if nothing else were waiting, and generate nothing."""
    service = service_of(request)
    images = await in_thread(service.reader.job, asked)
    job, _ = await service.accept(owner, "plan", images, {"prompts": len(asked.prompts)})
    try:
        found = await ended(service, request, owner.name, job.id)
    except GoneError:
        await service.leave(owner.name, job.id)
        return PlanAnswer(id=job.id, images=len(images), steps=0, groups=[], rows=rows_of([]), seconds=None)
    except TimeoutError:
        await service.cancel(owner.name, job.id)
        sentence = f"The plan was not ready within {service.limits.timeout:g} seconds: ask for fewer prompts."
        raise ApiError(504, sentence, "timeout", kind=SERVER, headers=FINAL) from None
    if found.state != "done":
        raise ApiError(500, f"The plan cannot be made: {found.reason}", "plan_failed", kind=SERVER, headers=FINAL)
    whole = await in_thread(lambda: service.store.job(owner.name, job.id, whole=True))
    result = (whole or found).result
    return PlanAnswer(
        id=job.id,
        images=len(images),
        steps=result["steps"],
        groups=[PlannedGroup(**{**group, "rows": rows_of([group])}) for group in result["groups"]],
        rows=rows_of([result]),
        seconds=result["seconds"],
    )


async def _found(service: Service, owner: str, job: str) -> Job:
    found = await in_thread(service.store.job, owner, job)
    if found is None:
        raise missing("job", job)
    return found


async def _answer(service: Service, request: Request, job: Job, status: int = 200) -> Response:
    """Return a job and its images. A thread makes the JSON: a job may have ten thousand images."""

    def made() -> str:
        images = service.store.images(job.owner, job.id)
        return job_answer(job, images, service.signer, base_of(request)).model_dump_json()

    return Response(await in_thread(made), status, media_type="application/json")
