"""Models, health and readiness."""

from typing import Literal

from pydantic import BaseModel, Field


class ModelAnswer(BaseModel):
    """The model that the service has loaded. What follows `owned_by` is known once the worker is ready."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["cotrunk"] = "cotrunk"
    pipeline: str | None = Field(default=None, description="The class of the pipeline.")
    size: str | None = Field(default=None, description="Size of the images by default.")
    size_multiple: int | None = Field(default=None, description="Width and height must be multiples of it.")
    steps: int | None = Field(default=None, description="Inference steps by default.")
    guidance_scale: float | None = None
    negative_prompt: bool | None = Field(default=None, description="Whether it takes a negative prompt.")
    note: str | None = Field(default=None, description="Such as why no prompts can share.")


class ModelList(BaseModel):
    """The models of this service."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class Health(BaseModel):
    """The API process is alive."""

    status: Literal["ok"] = "ok"
    version: str


class Readiness(BaseModel):
    """Whether images can be generated now."""

    ready: bool
    model: str
    worker: Literal["starting", "ready", "restarting", "stopped"]
    worker_restarts: int
    database: bool = Field(description="Whether the database answers.")
    queued_images: int
    queued_rows: int
    oldest_seconds: float = Field(description="Age of the oldest image that waits.")
    rows_per_second: float | None = Field(description="Measured speed.")
    needs_key: bool = Field(description="Whether requests need a key.")
