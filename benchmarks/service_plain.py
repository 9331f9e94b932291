"""The service that one would write first: FastAPI around a loop that calls the pipeline for one prompt after another.

    python benchmarks/service_plain.py --port 8100

It speaks as much of OpenAI's Images API as `benchmarks/service.py` needs.
"""

import argparse
import asyncio
import base64
import io
import time
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from cotrunk.pipelines.loading import load_pipeline
from cotrunk.pipelines.own_defaults import own_guidance, own_steps


def app_of(pipe: Any) -> FastAPI:
    """Return the application."""
    app, device = FastAPI(), asyncio.Lock()
    steps, guidance = own_steps(pipe), own_guidance(pipe)

    def image(body: dict[str, Any]) -> str:
        generator = torch.Generator().manual_seed(body.get("seed", 0))
        scale = body.get("guidance_scale", guidance)
        found = pipe(body["prompt"], num_inference_steps=steps, guidance_scale=scale, generator=generator).images[0]
        buffer = io.BytesIO()
        found.save(buffer, format="PNG")
        return base64.b64encode(buffer.getvalue()).decode()

    @app.get("/readyz")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/images/generations")
    async def generate(body: dict[str, Any]) -> dict[str, Any]:
        async with device:
            content = await asyncio.to_thread(image, body)
        return {"created": int(time.time()), "data": [{"b64_json": content}]}

    return app


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="mini")
    given = parser.parse_args()
    uvicorn.run(app_of(load_pipeline(given.model)), port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
