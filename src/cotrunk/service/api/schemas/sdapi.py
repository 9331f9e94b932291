"""The part of Stable Diffusion web UI's API that small clients use."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ....checks import LARGEST_SEED
from .sampling import INTEGRAL, Prompt, Text


class Txt2Img(BaseModel):
    """A request. Fields that are not listed here are ignored, because clients send all that their forms hold."""

    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        json_schema_extra={"examples": [{"prompt": "a red apple", "steps": 20, "width": 128, "height": 128}]},
    )

    prompt: Prompt
    negative_prompt: Text | None = None
    seed: Annotated[int, Field(ge=-1, le=LARGEST_SEED, description="-1 draws one."), INTEGRAL] | None = -1
    steps: Annotated[int, Field(ge=1), INTEGRAL] | None = None
    cfg_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    width: Annotated[int, Field(ge=1), INTEGRAL] | None = None
    height: Annotated[int, Field(ge=1), INTEGRAL] | None = None
    batch_size: Annotated[int, Field(ge=1), INTEGRAL] | None = None
    n_iter: Annotated[int, Field(ge=1), INTEGRAL] | None = None


class Txt2ImgAnswer(BaseModel):
    """The images in base64; `info` is JSON in a text, as clients expect."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class SdModel(BaseModel):
    """A model."""

    title: str
    model_name: str
    hash: None = None
    sha256: None = None
    filename: str
    config: None = None


class SdOptions(BaseModel):
    """The options that clients read."""

    sd_model_checkpoint: str
    samples_format: str = "png"


class SdSampler(BaseModel):
    """A sampler: the scheduler of the model."""

    name: str
    aliases: list[str]
    options: dict[str, str]


class SdProgress(BaseModel):
    """How far the owner's jobs are."""

    progress: float
    eta_relative: float
    state: dict[str, Any]
    current_image: None = None
    textinfo: str | None = None
