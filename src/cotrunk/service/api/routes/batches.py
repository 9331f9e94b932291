"""OpenAI's Files and Batches."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import StreamingResponse

from ...store import Batch, IdempotencyConflict, TooManyBatches, TooMuchStored
from ...store import File as StoredFile
from ..access import Caller
from ..answers import batch_answer, file_answer
from ..batch_lines import filled, filled_size
from ..clerk import Clerk
from ..documentation import keyed
from ..errors import LIMIT, ApiError, conflicting, missing, wrong
from ..middleware import MEBIBYTE
from ..schemas.files import BatchAnswer, BatchList, BatchRequest, Deleted, FileAnswer, FileList
from ..state import Service, base_of, in_thread, retry_after, service_of
from .parameters import After, BatchId, FileId, Idempotency

router = APIRouter(tags=["batches"])
Limit = Annotated[int, Query(ge=1, le=100, description="Entries per answer.")]
FileLimit = Annotated[int, Query(ge=1, le=10_000, description="Entries per answer.")]
BATCH_RETRY = 60  # seconds after which a client may try again that has too many batches
LONGEST_NAME = 255  # characters of a file name that are kept
Purpose = Annotated[str | None, Query(max_length=40, description="Only files of this purpose.")]


@router.post("/v1/files", summary="Upload a file", responses=keyed(408, 409, 413))
async def upload(
    request: Request,
    owner: Caller,
    file: Annotated[UploadFile, File(description="JSON lines: one request per line.")],
    purpose: Annotated[str, Form(min_length=1, description="What the file is for: `batch`.", examples=["batch"])],
    key: Idempotency = None,
) -> FileAnswer:
    """Upload the requests of a batch: `custom_id`, `method` (POST), `url` (/v1/images/generations) and `body`."""
    service = service_of(request)
    if purpose != "batch":
        raise wrong("purpose", "Files are for batches here: send the purpose `batch`.")
    content = await file.read()
    name = "".join(mark for mark in file.filename or "" if mark.isprintable())[:LONGEST_NAME] or "batch.jsonl"
    most = service.limits.key_files_mib * MEBIBYTE
    try:
        made = await in_thread(service.store.add_file, owner.name, name, "batch", content, most, key)
    except IdempotencyConflict as conflict:
        raise conflicting(conflict) from None
    except TooMuchStored as full:
        raise wrong("file", str(full), "storage_full") from None
    return file_answer(made)


@router.get("/v1/files", summary="List files", responses=keyed())
async def files(
    request: Request, owner: Caller, limit: FileLimit = 100, after: After = None, purpose: Purpose = None
) -> FileList:
    """List the files of the key, newest first."""
    service = service_of(request)
    found = await in_thread(service.store.files, owner.name, limit + 1, after, purpose)
    data = [await _answer(service, request, file) for file in found[:limit]]
    return FileList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


@router.get("/v1/files/{file}", summary="A file", responses=keyed(404))
async def one_file(request: Request, file: FileId, owner: Caller) -> FileAnswer:
    """Return what is known about a file."""
    service = service_of(request)
    return await _answer(service, request, await _file(service, owner.name, file))


@router.get(
    "/v1/files/{file}/content",
    summary="The content of a file",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"application/jsonl": {"schema": {"type": "string", "format": "binary"}}},
            "description": "JSON lines. The answers of a batch contain its images, unless they asked for `url`.",
        },
        **keyed(404),
    },
)
async def file_content(request: Request, file: FileId, owner: Caller) -> StreamingResponse:
    """Return what a file contains."""
    service = service_of(request)
    found = await _file(service, owner.name, file)
    content = await _content(service, found)
    signed = _signed(service, request, owner.name)
    parts = filled(content, service.files, signed) if found.purpose == "batch_output" else iter([content])
    headers = {"content-disposition": f'attachment; filename="{found.id}.jsonl"'}
    return StreamingResponse(parts, media_type="application/jsonl", headers=headers)


@router.delete("/v1/files/{file}", summary="Delete a file", responses=keyed(404))
async def delete(request: Request, file: FileId, owner: Caller) -> Deleted:
    """Delete a file. A batch that is running already goes on."""
    service = service_of(request)
    if not await in_thread(service.store.remove_file, owner.name, file):
        raise missing("file", file)
    return Deleted(id=file)


@router.post("/v1/batches", summary="Run a file of requests", responses=keyed(404, 408, 409, 413))
async def create(request: Request, asked: BatchRequest, owner: Caller, key: Idempotency = None) -> BatchAnswer:
    """Start a batch. Its file is validated first: if a line is wrong, nothing runs, and `errors` names the line."""
    service = service_of(request)
    file = await _file(service, owner.name, asked.input_file_id)
    if file.purpose != "batch":
        raise wrong(
            "input_file_id", "This file is the output of a batch: upload the requests with the purpose `batch`."
        )
    metadata, most = asked.metadata or {}, service.limits.key_batches
    try:
        made = await in_thread(
            service.store.add_batch, owner.name, file.id, asked.endpoint, asked.completion_window, metadata, most, key
        )
    except IdempotencyConflict as conflict:
        raise conflicting(conflict) from None
    except TooManyBatches as many:
        service.metrics.refused.labels("batches").inc()
        headers = retry_after(BATCH_RETRY)
        raise ApiError(429, str(many), "too_many_batches", kind=LIMIT, headers=headers) from None
    clerk: Clerk = request.app.state.clerk
    clerk.look()
    return batch_answer(made)


@router.get("/v1/batches", summary="List batches", responses=keyed())
async def batches(request: Request, owner: Caller, limit: Limit = 20, after: After = None) -> BatchList:
    """List the batches of the key, newest first."""
    service = service_of(request)
    found = await in_thread(service.store.batches, owner.name, limit + 1, after)
    data = [batch_answer(batch) for batch in found[:limit]]
    return BatchList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


@router.get("/v1/batches/{batch}", summary="A batch", responses=keyed(404))
async def one_batch(request: Request, batch: BatchId, owner: Caller) -> BatchAnswer:
    """Return how far a batch is, and the ids of its output files when it has ended."""
    service = service_of(request)
    return batch_answer(_known(batch, await in_thread(service.store.batch, owner.name, batch)))


@router.post("/v1/batches/{batch}/cancel", summary="Cancel a batch", responses=keyed(404))
async def cancel(request: Request, batch: BatchId, owner: Caller) -> BatchAnswer:
    """Cancel what is not done. The output file contains what is."""
    service = service_of(request)
    found = _known(batch, await in_thread(service.store.cancel_batch, owner.name, batch))
    service.link.send("cancel")
    service.hub.wake()
    clerk: Clerk = request.app.state.clerk
    clerk.look()
    return batch_answer(found)


def _known(identifier: str, batch: Batch | None) -> Batch:
    if batch is None:
        raise missing("batch", identifier)
    return batch


async def _file(service: Service, owner: str, identifier: str) -> StoredFile:
    found = await in_thread(service.store.file, owner, identifier)
    if found is None:
        raise missing("file", identifier)
    return found


async def _content(service: Service, file: StoredFile) -> bytes:
    found = await in_thread(service.store.file_content, file.owner, file.id)
    if found is None:
        raise missing("file", file.id)
    return found


def _signed(service: Service, request: Request, owner: str) -> Callable[[str], str]:
    return lambda path: base_of(request) + service.signer.signed(path, owner)


async def _answer(service: Service, request: Request, file: StoredFile) -> FileAnswer:
    if file.purpose != "batch_output":
        return file_answer(file)
    content = await _content(service, file)
    return file_answer(file, await in_thread(filled_size, content, _signed(service, request, file.owner)))
