"""Jobs: what was accepted, how far it is, and lists of prompts as one job."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from .images import RowCounts, Trunk
from .sampling import Count, Guidance, Metadata, Negative, Prompt, Sampling, Seed, Size, Steps, Strict, Text

TEXT, OBJECT = "<text>", "<object>"  # kinds of entries of a list of prompts; never names of parameters
State = Literal["waiting", "running", "done", "failed", "cancelled"]


class PromptItem(Strict):
    """A prompt with settings of its own, which go before those of the list."""

    prompt: Prompt
    custom_id: Annotated[Annotated[Text, Field(min_length=1, max_length=256)] | None, Field()] = None
    n: Count = None
    size: Size = None
    steps: Steps = None
    seed: Seed = None
    negative_prompt: Negative = None
    guidance_scale: Guidance = None


def _kind(value: Any) -> str:
    return TEXT if isinstance(value, str) else OBJECT


Entry = Annotated[
    Annotated[Prompt, Tag(TEXT)] | Annotated[PromptItem, Tag(OBJECT)],
    # without it, errors of objects would be about texts
    Discriminator(_kind),
]


class JobRequest(Sampling):
    """A list of prompts as one job. A whole list is where sharing saves most."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompts": ["a red apple", {"prompt": "a green apple", "seed": 7}], "steps": 20}]
        }
    )

    prompts: Annotated[list[Entry], Field(min_length=1, description="Prompts, or objects with one.")]
    metadata: Metadata = None


class Counts(BaseModel):
    """Images by state."""

    total: int
    waiting: int
    running: int
    done: int
    failed: int
    cancelled: int


class JobImage(BaseModel):
    """An image of a job."""

    id: str
    number: int = Field(description="Its place in the job, from 0.")
    state: State
    prompt: str
    custom_id: str | None
    seed: int | None
    size: str | None
    steps: int | None
    guidance_scale: float | None
    negative_prompt: str | None
    attempts: int = Field(description="How often a worker has started it.")
    group: str | None
    shared_with: list[str]
    trunk: Trunk | None
    rows: RowCounts | None
    url: str | None = Field(description="Where the image is, for an hour, if it is done.")
    waited: float | None = Field(description="Seconds until its group was formed.")
    seconds: float | None = Field(description="Seconds from then until it was done.")
    reason: str | None = Field(description="Why it failed.")


class JobSummary(BaseModel):
    """A job without its images."""

    id: str
    object: Literal["job"] = "job"
    kind: Literal["images", "batch", "plan"]
    state: State
    created_at: int
    finished_at: int | None
    model: str
    counts: Counts
    metadata: dict[str, Any]
    reason: str | None = Field(description="Why the job as a whole failed.")


class JobLinks(BaseModel):
    """Addresses that need no key for an hour, for browsers, which cannot send one with every request."""

    events: str
    archive: str


class JobAnswer(JobSummary):
    """A job with its images."""

    images: list[JobImage]
    rows: RowCounts = Field(description="Of the images that are done.")
    links: JobLinks


class JobList(BaseModel):
    """Jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobSummary]
    first_id: str | None
    last_id: str | None
    has_more: bool


class PlannedGroup(BaseModel):
    """Prompts that would share steps."""

    images: list[int] = Field(description="Numbers of the images, in the order of the prompts and their copies.")
    tree: dict[str, Any] = Field(description="`stop` and `images` or `children` of the trunk, and of each branch.")
    similarity: float = Field(description="The smallest cosine between two of its prompts.")
    steps_shared: int
    rows: RowCounts


class PlanAnswer(BaseModel):
    """What a job would share and save. Nothing is generated."""

    id: str
    object: Literal["plan"] = "plan"
    images: int
    steps: int
    groups: list[PlannedGroup] = Field(description="Largest saving first. Other images are generated alone.")
    rows: RowCounts
    seconds: float | None = Field(description="How long it would take, at the measured speed.")
