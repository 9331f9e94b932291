"""The OpenAPI document: errors of every address, and the limits of this service."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from ... import __version__
from .limits import Limits
from .schemas.errors import ErrorAnswer

Responses = dict[int | str, dict[str, Any]]
SENTENCES = {
    400: "A value is not accepted.",
    401: "The key is missing or unknown.",
    403: "Without keys, the service answers only at localhost, and only to pages of this machine.",
    404: "There is no such thing, or it belongs to another owner.",
    408: "The body has not arrived in time.",
    409: "The Idempotency-Key came with another request before.",
    413: "The body is too large.",
    429: "The queue is full, or the key has sent or has waiting too much; `Retry-After` says when to try again.",
    500: "The image cannot be generated, or the service has failed.",
    503: "The database does not answer, or the worker is not ready.",
    504: "The images were not ready in time.",
}
TAGS = [
    {"name": "images", "description": "OpenAI's Images API."},
    {"name": "batches", "description": "OpenAI's Files and Batches: lists of prompts, where sharing saves most."},
    {"name": "jobs", "description": "What was accepted, its events, cancellation, plans, archives."},
    {"name": "models", "description": "The model of this service."},
    {"name": "health", "description": "For operators."},
    {"name": "web UI", "description": "The part of Stable Diffusion web UI's API that small clients use."},
]


def errors(*statuses: int) -> Responses:
    """Return the documentation of the errors of an address. Those that every address may give come in addition."""
    return {
        status: {"model": ErrorAnswer, "description": SENTENCES[status]}
        for status in sorted({*statuses, 400, 403, 500, 503})
    }


def keyed(*statuses: int) -> Responses:
    """Return the documentation of the errors of an address that needs a key."""
    return errors(401, 429, *statuses)


def document(app: FastAPI, limits: Limits) -> dict[str, Any]:
    """Return the OpenAPI document of a service with these limits."""
    found = get_openapi(
        title="cotrunk",
        version=__version__,
        summary="Images from prompts; similar prompts share their early steps.",
        description="An image depends on its group. `group: alone` gives the image of the bare pipeline.",
        routes=app.routes,
        tags=TAGS,
    )
    for path in found["paths"].values():
        for operation in path.values():
            # the framework adds its own form of errors, which this service never sends
            operation["responses"].pop("422", None)
            for parameter in operation.get("parameters", ()):
                _without_null(parameter)
    schemas = found["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for schema in schemas.values():
        _bound(schema.get("properties", {}), limits)
    return found


def _without_null(parameter: dict[str, Any]) -> None:
    """Say that a header or a part of an address may be left out, but cannot be null."""
    schema = parameter["schema"]
    some = [part for part in schema.pop("anyOf", ()) if part != {"type": "null"}]
    if len(some) == 1:
        parameter["schema"] = {**schema, **some[0]}


def _bound(properties: Mapping[str, Any], limits: Limits) -> None:
    """Write the limits into the properties of a request."""
    for name, key, most in (
        ("n", "maximum", limits.n),
        ("steps", "maximum", limits.steps),
        ("guidance_scale", "maximum", limits.guidance_scale),
        ("wait_ms", "maximum", limits.wait_ms),
        ("prompt", "maxLength", limits.prompt),
        ("negative_prompt", "maxLength", limits.prompt),
        ("prompts", "maxItems", limits.prompts),
        ("cfg_scale", "maximum", limits.guidance_scale),
        ("width", "maximum", limits.side),
        ("height", "maximum", limits.side),
        ("batch_size", "maximum", limits.n),
        ("n_iter", "maximum", limits.n),
    ):
        property = properties.get(name, {})
        for part in (property, *property.get("anyOf", ())):
            if part.get("minimum") is not None or part.get("type") in ("string", "array"):
                part[key] = most
