"""The part of Stable Diffusion web UI's API that small clients use."""

import json
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError

from ...store.records import ENDED
from ..access import Caller
from ..documentation import keyed
from ..errors import of_validation, wrong
from ..schemas.images import ImagesRequest
from ..schemas.sdapi import SdModel, SdOptions, SdProgress, SdSampler, Txt2Img, Txt2ImgAnswer
from ..state import in_thread, service_of
from ..waiting import GoneError, ended
from .images import check_done, content_of, late
from .parameters import Idempotency

router = APIRouter(tags=["web UI"])


@router.post("/sdapi/v1/txt2img", summary="Generate images of a prompt", responses=keyed(404, 408, 409, 413, 504))
async def txt2img(request: Request, asked: Txt2Img, owner: Caller, key: Idempotency = None) -> Txt2ImgAnswer:
    """Generate images, and answer when they are done. The scheduler is the model's own."""
    service = service_of(request)
    facts = service.link.facts
    if (asked.width is None) != (asked.height is None) and facts is not None:
        sides = asked.width or facts["width"], asked.height or facts["height"]
    elif asked.width is None or asked.height is None:
        sides = None
    else:
        sides = asked.width, asked.height
    count = (asked.batch_size or 1) * (asked.n_iter or 1)
    if count > service.limits.n:
        most = service.limits.n
        raise wrong("batch_size", f"batch_size times n_iter is too large: this service takes {most} at most.")
    try:
        same = ImagesRequest(
            prompt=asked.prompt,
            n=count,
            size=None if sides is None else "x".join(map(str, sides)),
            steps=asked.steps,
            seed=None if asked.seed is None or asked.seed < 0 else asked.seed,
            negative_prompt=asked.negative_prompt,
            guidance_scale=asked.cfg_scale,
        )
    except ValidationError as error:  # such as a width with a hundred digits
        raise of_validation([{**found, "loc": ("body", *found["loc"])} for found in error.errors()]) from None
    images = await in_thread(service.reader.images, same, same.prompt)
    job, _ = await service.accept(owner, "images", images, same.model_dump(mode="json", exclude_none=True), key)
    try:
        await ended(service, request, owner.name, job.id)
    except GoneError:
        if key is None:
            await service.leave(owner.name, job.id)
        return Txt2ImgAnswer(images=[], parameters={}, info="{}")
    except TimeoutError:
        raise await late(service, owner.name, job.id, stays=key is not None) from None
    rows = await in_thread(service.store.images, owner.name, job.id)
    check_done(rows)
    results = [row.result or {} for row in rows]
    info: dict[str, Any] = {
        "prompt": asked.prompt,
        "all_prompts": [asked.prompt] * len(rows),
        "negative_prompt": asked.negative_prompt or "",
        "seed": results[0]["seed"],
        "all_seeds": [result["seed"] for result in results],
        "width": results[0]["width"],
        "height": results[0]["height"],
        "steps": results[0]["steps"],
        "cfg_scale": results[0]["guidance_scale"],
        "sd_model_name": service.model,
    }
    return Txt2ImgAnswer(
        images=[await content_of(service, row) for row in rows],
        parameters=asked.model_dump(mode="json"),
        info=json.dumps(info),
    )


@router.get("/sdapi/v1/sd-models", summary="List the models", responses=keyed())
async def models(request: Request, owner: Caller) -> list[SdModel]:
    """List the models: the one that is loaded."""
    name = service_of(request).model
    return [SdModel(title=name, model_name=name, filename=name)]


@router.get("/sdapi/v1/samplers", summary="List the samplers", responses=keyed())
async def samplers(request: Request, owner: Caller) -> list[SdSampler]:
    """List the samplers: the scheduler of the model."""
    return [SdSampler(name="Automatic", aliases=["automatic"], options={})]


@router.get("/sdapi/v1/options", summary="Read the options", responses=keyed())
async def options(request: Request, owner: Caller) -> SdOptions:
    """Return the options that clients read first."""
    return SdOptions(sd_model_checkpoint=service_of(request).model)


@router.get("/sdapi/v1/progress", summary="How far the jobs of the key are", responses=keyed())
async def progress(request: Request, owner: Caller) -> SdProgress:
    """Return the part of the images of unfinished jobs that is done."""
    service = service_of(request)
    found = await in_thread(service.store.jobs, owner.name, 100)
    unfinished = [job for job in found if job.state not in ENDED]
    total = sum(job.images for job in unfinished)
    done = sum(job.counts[state] for job in unfinished for state in ENDED)
    return SdProgress(
        progress=done / total if total else 0.0,
        eta_relative=0.0,
        state={"job_count": total, "job_no": done, "job": unfinished[-1].id if unfinished else ""},
    )
