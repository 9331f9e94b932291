"""The model of this service."""

from fastapi import APIRouter, Request

from ..access import Caller
from ..documentation import keyed
from ..errors import ApiError
from ..schemas.models import ModelAnswer, ModelList
from ..state import Service, service_of
from .parameters import ModelName

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List the models", responses=keyed())
async def listed(request: Request, owner: Caller) -> ModelList:
    """List the models: the one that is loaded."""
    return ModelList(data=[_answer(service_of(request), request.app.state.started)])


@router.get("/v1/models/{model:path}", summary="A model", responses=keyed(404))
async def one(request: Request, model: ModelName, owner: Caller) -> ModelAnswer:
    """Return the model of this name."""
    service = service_of(request)
    if model != service.model:
        sentence = f"The model {model!r} is not loaded here: use {service.model!r}."
        raise ApiError(404, sentence, "model_not_found", param="model")
    return _answer(service, request.app.state.started)


def _answer(service: Service, started: float) -> ModelAnswer:
    facts = service.link.facts
    if facts is None:
        return ModelAnswer(id=service.model, created=int(started))
    return ModelAnswer(
        id=service.model,
        created=int(started),
        pipeline=facts["pipeline"],
        size=f"{facts['width']}x{facts['height']}",
        size_multiple=facts["multiple"],
        steps=facts["steps"],
        guidance_scale=facts["guidance_scale"],
        negative_prompt=facts["negative_prompt"],
        note=facts.get("note"),
    )
