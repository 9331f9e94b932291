"""OpenAI's Images API: the request, the answer and the events of a stream."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from .sampling import Prompt, Sampling, Text

Ignored = Field(description="Accepted for compatibility; it has no effect.")


class ImagesRequest(Sampling):
    """A request for images of one prompt."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a red apple"},
                {"model": "mini", "prompt": "a red apple", "n": 2, "size": "128x128", "steps": 20, "seed": 7},
            ]
        }
    )

    prompt: Prompt
    response_format: Annotated[
        Literal["b64_json", "url"] | None,
        Field(description="`b64_json` (the default) puts the images into the answer, `url` says where they are."),
    ] = None
    stream: Annotated[
        bool | None, Field(description="Answer with server-sent events: previews, and each image when it is done.")
    ] = None
    background: Annotated[
        Literal["auto", "opaque"] | None, Field(description="Images are opaque; another value is refused.")
    ] = None
    quality: Annotated[Text | None, Ignored] = None
    moderation: Annotated[Text | None, Ignored] = None
    complexity: Annotated[Text | None, Ignored] = None
    style: Annotated[Text | None, Ignored] = None
    user: Annotated[Text | None, Ignored] = None
    safety_identifier: Annotated[Text | None, Ignored] = None


class RowCounts(BaseModel):
    """Denoiser rows: one image through the denoiser once. A row that n images share counts 1/n for each of them."""

    independent: float = Field(description="What the bare pipeline would compute.")
    computed: float = Field(description="What was computed.")
    saved: float = Field(description="The difference.")
    sharing: float = Field(description="Saved because images share steps.")
    skipping: float = Field(description="Saved because outputs were predicted.")
    guidance: float = Field(description="Saved because guidance was off.")
    replay: float = Field(description="Saved because a stored trunk was used.")


class Trunk(BaseModel):
    """The trunk that an image started from."""

    id: str
    seed: int
    steps: int = Field(description="Steps of the trunk.")
    branch: int = Field(description="Steps that this image took from it.")
    hit: bool = Field(description="Whether it was stored already.")


class ImageData(BaseModel):
    """One image."""

    id: str
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: None = Field(default=None, description="Prompts are not revised.")
    seed: int
    width: int
    height: int
    group: str = Field(description="Id of the group in which it was generated.")
    shared_with: list[str] = Field(description="Ids of the images with which it shares steps.")
    trunk: Trunk | None
    rows: RowCounts


class TokenDetails(BaseModel):
    """Tokens, which this service does not count."""

    image_tokens: int = 0
    text_tokens: int = 0


class Usage(BaseModel):
    """The cost of an answer: denoiser rows. Tokens are always 0; they are there because clients read them."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens_details: TokenDetails = TokenDetails()
    rows: RowCounts
    groups: list[str] = Field(description="Ids of the groups in which the images were generated.")
    trunks: list[str] = Field(description="Ids of the trunks that they started from.")
    shared_with: list[str] = Field(description="Ids of the images, other than these, that share steps with them.")


class ImagesAnswer(BaseModel):
    """The images of a request, in the order of their seeds."""

    id: str = Field(description="Id of the job.")
    created: int
    data: list[ImageData]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    quality: Literal["auto"] = "auto"
    size: str
    usage: Usage


class StreamedImage(BaseModel):
    """An event of a stream."""

    b64_json: str
    created_at: int
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    quality: Literal["auto"] = "auto"
    size: str
    image_id: str
    image_index: int = Field(description="Which of the `n` images it is, from 0.")


class PartialImage(StreamedImage):
    """A preview."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int


class CompletedImage(StreamedImage):
    """An image that is done."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    seed: int
    usage: Usage
