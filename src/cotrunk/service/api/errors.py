"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`, whatever went wrong."""

import logging
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from ...checks import shown
from ...errors import CotrunkError
from ...storage.files import StorageError
from ..store import IdempotencyConflict
from .schemas.jobs import OBJECT, TEXT

log = logging.getLogger("cotrunk.service")
INVALID, SERVER, LIMIT = "invalid_request_error", "server_error", "rate_limit_error"
# clients try again after 409, 429 and 5xx unless this header says otherwise
FINAL = {"x-should-retry": "false"}
OF_STATUS = {  # what Starlette reports without our help: status -> code, sentence
    400: ("invalid_request", "The body cannot be read: send JSON, or a form for /v1/files."),
    404: ("not_found", "There is nothing at this address: /openapi.json lists all addresses."),
    405: ("method_not_allowed", "This address does not take this method: /openapi.json says which it takes."),
}


class ApiError(Exception):
    """An answer with a status of 400 or more.

    Attributes:
        status: the HTTP status.
        message: one sentence that names the thing and the remedy.
        kind: OpenAI's type of the error.
        param: the parameter that is wrong.
        code: a word for programs.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.kind, self.param, self.headers = kind, param, dict(headers or {})


def wrong(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """Return the error for a value that the service does not accept."""
    return ApiError(400, message, code, param=param)


def missing(what: str, identifier: str) -> ApiError:
    """Return the error for something that does not exist, or that belongs to another owner."""
    return ApiError(404, f"There is no {what} {shown(identifier)} of this key: check the id.", f"{what}_not_found")


def conflicting(conflict: IdempotencyConflict) -> ApiError:
    """Return the error for an idempotency key that came with another request before."""
    return ApiError(409, str(conflict), "idempotency_conflict", headers=FINAL)


def described(error: BaseException) -> str:
    """Return kind and place of an error for the log; its message may contain prompts."""
    places = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at " + " < ".join(
        f"{Path(place.filename).name}:{place.lineno}" for place in reversed(places[-6:])
    )


def body_of(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """Return the JSON of an error. Half surrogate pairs, which UTF-8 does not have, are spelled out."""
    text = message.encode("utf-8", "backslashreplace").decode()
    param = None if param is None else param.encode("utf-8", "backslashreplace").decode()[:200]
    return {"error": {"message": text, "type": kind, "param": param, "code": code}}


def answer_of(error: ApiError) -> JSONResponse:
    """Return the answer that tells a client of an error."""
    return JSONResponse(body_of(error.message, error.kind, error.param, error.code), error.status, error.headers)


def add_handlers(app: FastAPI) -> None:
    """Let every error of an app have OpenAI's form."""

    @app.exception_handler(ApiError)
    async def of_api(request: Request, error: ApiError) -> JSONResponse:
        return answer_of(error)

    @app.exception_handler(CotrunkError)
    async def of_value(request: Request, error: CotrunkError) -> JSONResponse:
        return answer_of(wrong(None, str(error)))

    @app.exception_handler(StorageError)
    async def of_storage(request: Request, error: StorageError) -> JSONResponse:
        log.error("storage of images: %s", error)
        sentence = "The storage of images does not answer: try again in a moment."
        return answer_of(ApiError(503, sentence, "storage_error", kind=SERVER, headers={"retry-after": "2"}))

    @app.exception_handler(RequestValidationError)
    async def of_request(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer_of(of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def of_status(request: Request, error: HTTPException) -> JSONResponse:
        code, sentence = OF_STATUS.get(error.status_code, ("http_error", str(error.detail)))
        headers = error.headers
        if error.status_code == 405:  # the framework names the methods of the first of several routes only
            headers = {"allow": ", ".join(_methods(app, request))}
        return answer_of(ApiError(error.status_code, sentence, code, headers=headers))

    @app.exception_handler(SQLAlchemyError)
    async def of_database(request: Request, error: SQLAlchemyError) -> JSONResponse:
        log.error("database: %s", type(error).__name__, exc_info=error)
        sentence = "The database does not answer: try again in a moment."
        return answer_of(ApiError(503, sentence, "database_error", kind=SERVER, headers={"retry-after": "2"}))

    @app.exception_handler(Exception)
    async def of_fault(request: Request, error: Exception) -> JSONResponse:
        sentence = "The service has failed; its log says why, under the id of this request."
        return answer_of(ApiError(500, sentence, "internal_error", kind=SERVER))


def _methods(app: FastAPI, request: Request) -> list[str]:
    """Return the methods that an address takes."""
    paths: Mapping[str, Mapping[str, Any]] = app.openapi()["paths"]
    for template, operations in paths.items():
        if compile_path(template)[0].match(request.url.path):
            return sorted(name.upper() for name in operations)
    return []


def of_validation(problems: Any) -> ApiError:
    """Return the error for the first of pydantic's findings."""
    first = problems[0]
    kind, place = first["type"], [str(part) for part in first["loc"]]
    # a prompt of a list may be a text or an object: pydantic also names the kind that it found
    param = ".".join(part for part in place[1:] if part not in (TEXT, OBJECT)) or None
    if kind == "json_invalid":
        return wrong(None, f"The body is not JSON ({first['ctx']['error']}): send a JSON object.", "invalid_json")
    if param is None:
        return wrong(None, f"The body is not what this address takes: {_sentence(first)}", "invalid_body")
    if place[0] == "path":
        return ApiError(404, f"There is nothing named {shown(first['input'])}: check the id.", "not_found")
    if kind == "missing":
        sentence = f"Missing required parameter {param!r}: add it."
        return ApiError(400, sentence, "missing_required_parameter", param=param)
    if kind == "extra_forbidden":
        return wrong(param, f"Unknown parameter {shown(param)}: leave it out.", "unknown_parameter")
    return wrong(param, f"{param} {shown(first['input'])} is not accepted: {_sentence(first)}")


def _sentence(problem: Mapping[str, Any]) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    return f"{text[:1].lower()}{text[1:].rstrip('.')}."
