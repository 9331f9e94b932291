"""The part of a request that says how images are sampled. Requests for images, jobs and plans have it in common."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ....checks import LARGEST_SEED

SIZE = r"^(auto|[1-9][0-9]{0,5}x[1-9][0-9]{0,5})$"
NAME = r"^[A-Za-z0-9._:/@+-]{1,200}$"  # of models and groups


def _printable(text: str) -> str:
    # a NUL ends a text in databases and in the metadata of PNG files
    if "\0" in text:
        raise ValueError("it contains a NUL character: remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it contains half of a surrogate pair, which is not a character: remove it") from None
    return text


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty: say what the image shows")
    return text


def _whole(value: object) -> object:
    # 20.0 is a whole number in JSON
    return int(value) if isinstance(value, float) and value.is_integer() else value


INTEGRAL = BeforeValidator(_whole)
Text = Annotated[str, AfterValidator(_printable)]
Prompt = Annotated[
    str,
    AfterValidator(_printable),
    AfterValidator(_said),
    Field(min_length=1, description="What the image shows.", examples=["a red apple"]),
]
Negative = Annotated[
    Text | None, Field(description="What the image must not show. Not every model takes one.", examples=["blurry"])
]
Size = Annotated[
    Annotated[str, Field(pattern=SIZE)] | None,
    Field(description="Width and height, such as `512x768`; `auto` is the size of the model.", examples=["auto"]),
]
Steps = Annotated[
    Annotated[int, Field(ge=1), INTEGRAL] | None,
    Field(description="Inference steps; by default the model's own.", examples=[20]),
]
Guidance = Annotated[
    Annotated[float, Field(ge=0, allow_inf_nan=False)] | None,
    Field(description="Guidance scale; 1 or less turns guidance off. By default the model's own.", examples=[5.0]),
]
Seed = Annotated[
    Annotated[int, Field(ge=0, le=LARGEST_SEED), INTEGRAL] | None,
    Field(
        description="Seed of the first image; further images count up from it. Without one, it is drawn.", examples=[7]
    ),
]
Count = Annotated[
    Annotated[int, Field(ge=1), INTEGRAL] | None, Field(description="Images per prompt; 1 by default.", examples=[1])
]
Metadata = Annotated[
    dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]] | None,
    Field(max_length=16, description="Up to 16 notes of the client's own, which answers repeat."),
]


class Strict(BaseModel):
    """A request: unknown names are refused, and numbers are not read from texts."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Sampling(Strict):
    """How the images of a request are sampled and delivered."""

    model: Annotated[
        Annotated[str, Field(pattern=NAME)] | None,
        Field(description="The model that this service has loaded, or none.", examples=["mini"]),
    ] = None
    n: Count = None
    size: Size = None
    steps: Steps = None
    seed: Seed = None
    negative_prompt: Negative = None
    guidance_scale: Guidance = None
    group: Annotated[
        Annotated[str, Field(pattern=NAME)] | None,
        Field(
            description="Only images of the same group name share steps. `alone` shares with no other image, and gives "
            "the image of the bare pipeline. Without a name, all similar prompts may share.",
            examples=["alone"],
        ),
    ] = None
    wait_ms: Annotated[
        Annotated[int, Field(ge=0), INTEGRAL] | None,
        Field(description="How long an image waits for similar prompts at most.", examples=[200]),
    ] = None
    output_format: Annotated[
        Literal["png", "jpeg", "webp"] | None,
        Field(description="Format of the images; png by default.", examples=["jpeg"]),
    ] = None
    output_compression: Annotated[
        Annotated[int, Field(ge=0, le=100), INTEGRAL] | None,
        Field(description="Quality of jpeg and webp in percent; png does not have one.", examples=[90]),
    ] = None
    partial_images: Annotated[
        Annotated[int, Field(ge=0, le=3), INTEGRAL] | None,
        Field(description="Previews of each image while it is generated.", examples=[2]),
    ] = None
