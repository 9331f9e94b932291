"""OpenAI's Images API."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

from anyio import CancelScope
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent

from ...store import ImageRow, Job
from ...store.records import ENDED
from ..access import Caller, TokenCaller
from ..answers import image_data, size_of, usage_of
from ..documentation import keyed
from ..errors import FINAL, SERVER, ApiError, body_of, missing
from ..schemas.images import CompletedImage, ImagesAnswer, ImagesRequest, PartialImage
from ..state import Service, in_thread, service_of
from ..waiting import GoneError, ended, follow
from .parameters import Idempotency, ImageId, PartialIndex

router = APIRouter(tags=["images"])
GRACE_SECONDS = 8  # in which a stream may end when the service stops; uvicorn cancels requests 2 seconds later
CLIENT_GONE = 499  # for the log: the client does not read the answer
TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
STREAM: dict[str, Any] = {"text/event-stream": {}}


@router.post(
    "/v1/images/generations",
    summary="Generate images of a prompt",
    response_model=ImagesAnswer,
    responses={
        200: {"content": STREAM, "description": "The images; with `stream`, server-sent events."},
        **keyed(404, 408, 409, 413, 504),
    },
)
async def generate(request: Request, asked: ImagesRequest, owner: Caller, key: Idempotency = None) -> Any:
    """Generate images, and answer when they are done. The job is cancelled when the client goes away before, unless the
    request has an Idempotency-Key: then it goes on, and the same request gives its images later.
    """
    service = service_of(request)
    images = await in_thread(service.reader.images, asked, asked.prompt)
    # the drawn seed is not part of it: a request that is sent again is the same request
    body = asked.model_dump(mode="json", exclude_none=True)
    job, _ = await service.accept(owner, "images", images, body, key)
    if asked.stream:
        events = _events(service, owner.name, job, stays=key is not None)
        return EventSourceResponse(events, ping=15, send_timeout=60, shutdown_grace_period=GRACE_SECONDS)
    try:
        job = await ended(service, request, owner.name, job.id)
    except GoneError:
        if key is None:
            await service.leave(owner.name, job.id)
        return Response(status_code=CLIENT_GONE)
    except TimeoutError:
        raise await late(service, owner.name, job.id, stays=key is not None) from None
    rows = await in_thread(service.store.images, owner.name, job.id)
    check_done(rows)
    return JSONResponse(
        (await answer(service, request, job, rows, as_url=asked.response_format == "url")).model_dump(mode="json")
    )


async def late(service: Service, owner: str, job: str, *, stays: bool) -> ApiError:
    """Return the error for a job that takes too long; it is cancelled unless it stays."""
    seconds = service.limits.timeout
    if not stays:
        await service.cancel(owner, job)
    rest = f"the job {job} goes on" if stays else "the job was cancelled; /v1/batches takes long ones"
    sentence = f"The images were not ready within {seconds:g} seconds: {rest}."
    return ApiError(504, sentence, "timeout", kind=SERVER, headers=FINAL)


def check_done(rows: list[ImageRow]) -> None:
    """Check that all images of a job are done.

    Raises:
        ApiError: one has failed or was cancelled.
    """
    for row in rows:
        if row.state == "failed":
            sentence = f"The image {row.id} cannot be generated: {row.reason}"
            raise ApiError(500, sentence, "image_failed", kind=SERVER, headers=FINAL)
        if row.state != "done":
            sentence = f"The job {row.job} was cancelled: send the request again."
            raise ApiError(409, sentence, "job_cancelled", headers=FINAL)


async def answer(
    service: Service, request: Request | None, job: Job, rows: list[ImageRow], *, as_url: bool
) -> ImagesAnswer:
    """Return the answer with the images of a job that are done.

    Args:
        service: the state of the process.
        request: for the addresses; None for relative ones.
        job: the job.
        rows: its images.
        as_url: whether it has addresses in place of the images themselves.
    """
    data = []
    for row in rows:
        content = None if as_url else await content_of(service, row)
        url = service.url(request, row.id, row.owner) if as_url and request is not None else None
        data.append(image_data(row, content, url))
    results = [row.result for row in rows if row.result]
    return ImagesAnswer(
        id=job.id,
        created=int(job.finished or job.created),
        data=data,
        output_format=rows[0].request.settings["output"]["format"],
        size=size_of(rows[0]),
        usage=usage_of(results, [row.id for row in rows]),
    )


async def content_of(service: Service, row: ImageRow) -> str:
    """Return the file of an image in base64.

    Raises:
        ApiError: the file is gone.
    """
    assert row.result is not None
    name = row.result["file"]
    content = await in_thread(service.files.read, name)
    if content is None:
        raise ApiError(404, f"The file of the image {row.id} was removed: generate it again.", "file_removed")
    return base64.b64encode(content).decode("ascii")


async def _events(service: Service, owner: str, job: Job, *, stays: bool) -> AsyncIterator[ServerSentEvent]:
    """Yield the events of a stream. The job is cancelled if the client goes away, unless it stays."""
    try:
        async for event in follow(service, owner, job.id):
            if event.kind == "partial":
                row = await _row(service, owner, event.data["image"])
                name = event.data["file"]
                content = await in_thread(service.files.read, name)
                if content is None:  # removed when its image was done
                    continue
                shown = PartialImage(
                    b64_json=base64.b64encode(content).decode("ascii"),
                    partial_image_index=event.data["index"],
                    output_format="png",
                    **_common(row, event.created),
                )
                yield ServerSentEvent(shown.model_dump_json(), event=shown.type)
            elif event.kind == "done" and "image" in event.data:
                row = await _row(service, owner, event.data["image"])
                assert row.result is not None
                done = CompletedImage(
                    b64_json=await content_of(service, row),
                    output_format=row.request.settings["output"]["format"],
                    seed=row.result["seed"],
                    usage=usage_of([row.result], [row.id]),
                    **_common(row, event.created),
                )
                yield ServerSentEvent(done.model_dump_json(), event=done.type)
            elif event.kind in ("failed", "cancelled"):
                reason = event.data.get("reason", "the job was cancelled")
                code = "image_failed" if event.kind == "failed" else "job_cancelled"
                error = body_of(f"The image cannot be generated: {reason}", SERVER, None, code)
                yield ServerSentEvent(json.dumps(error), event="error")
                return
        yield ServerSentEvent("[DONE]")
    except ApiError as error:
        yield ServerSentEvent(json.dumps(body_of(error.message, error.kind, error.param, error.code)), event="error")
    finally:
        with CancelScope(shield=True):
            found = await in_thread(service.store.job, owner, job.id)
            if found is not None and found.state not in ENDED and not stays:
                await service.leave(owner, job.id)


async def _row(service: Service, owner: str, image: str) -> ImageRow:
    row = await in_thread(service.store.image, owner, image)
    if row is None:
        raise missing("image", image)
    return row


def _common(row: ImageRow, created: float) -> dict[str, Any]:
    return {"created_at": int(created), "size": size_of(row), "image_id": row.id, "image_index": row.number}


@router.get(
    "/v1/images/{image}/content",
    summary="The file of an image",
    response_class=Response,
    responses={
        200: {
            "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in TYPES.values()},
            "description": "The file.",
        },
        **keyed(404),
    },
)
async def content(request: Request, image: ImageId, owner: TokenCaller) -> Response:
    """Return the file of an image that is done. With a signed address from an answer, no key is needed."""
    service = service_of(request)
    row = await in_thread(service.store.image, owner.name, image)
    if row is None or row.state != "done" or row.result is None:
        raise missing("image", image)
    name = row.result["file"]
    found = await in_thread(service.files.read, name)
    if found is None:
        raise missing("image", image)
    headers = {"cache-control": "private, max-age=3600, immutable", "etag": f'"{row.id}"'}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(found, media_type=TYPES[row.request.settings["output"]["format"]], headers=headers)


@router.get(
    "/v1/images/{image}/partials/{index}",
    summary="A preview of an image",
    response_class=Response,
    responses={
        200: {
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
            "description": "The preview.",
        },
        **keyed(404),
    },
)
async def partial(request: Request, image: ImageId, index: PartialIndex, owner: TokenCaller) -> Response:
    """Return a preview, which the event `partial` of the job has announced."""
    service = service_of(request)
    row = await in_thread(service.store.image, owner.name, image)
    found = None if row is None else await in_thread(service.files.read, f"{image}.partial-{index}.png")
    if found is None:
        raise missing("image", image)
    return Response(found, media_type="image/png", headers={"cache-control": "private, max-age=3600"})
