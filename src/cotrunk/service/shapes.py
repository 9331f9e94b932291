"""The JSON that the API process and the worker leave for each other in the database."""

from typing import Any, NotRequired, TypedDict


class Output(TypedDict):
    """How an image is delivered. It changes no image, so images with different outputs may share."""

    format: str  # "png", "jpeg" or "webp"
    quality: int | None  # 1 to 100 for jpeg and webp; None for the default of `runs/images.py`
    partials: int  # previews to write while the image is generated, 0 to 3


class ImageSettings(TypedDict):
    """`ImageRequest.settings`. The bucket of an image is the digest of all of it but `output`, and of group and owner.

    None stands for the default of the pipeline.
    """

    model: str
    width: int | None
    height: int | None
    steps: int | None
    guidance_scale: float | None
    negative_prompt: str | None
    output: Output


class Rows(TypedDict):
    """Denoiser rows of one image. A row that n images share counts 1/n for each of them."""

    independent: float  # what the bare pipeline would compute
    computed: float
    sharing: float  # rows saved, by way
    skipping: float
    guidance: float
    replay: float


class TrunkUse(TypedDict):
    """The trunk of an image's group."""

    id: str
    seed: int
    steps: int  # of the trunk
    branch: int  # steps that this image took from it
    hit: bool  # whether the cache had it


class ImageResult(TypedDict):
    """`ImageRow.result` of an image that is done."""

    file: str  # below the folder (or URL) of images: "<image id>.<format>"
    bytes: int
    width: int
    height: int
    seed: int
    steps: int
    guidance_scale: float | None
    group: str  # id of the group
    shared_with: list[str]  # ids of the other images of its group that share at least one step with it
    rows: Rows
    trunk: TrunkUse | None
    waited: float  # seconds from acceptance until the group was formed
    seconds: float  # from then until the image was written
    flagged: NotRequired[bool]  # whether the pipeline's safety checker replaced the image by a black one


class PartialEvent(TypedDict):
    """Data of the event `partial`: the preview lies in the folder of images, under `file`."""

    image: str
    index: int  # from 0
    step: int
    file: str  # "<image id>.partial-<index>.png"


class StepEvent(TypedDict):
    """Data of the event `step`."""

    images: list[str]
    step: int  # steps that are done
    steps: int


class GroupedEvent(TypedDict):
    """Data of the event `grouped`. Images of other jobs of the same owner are named by their ids."""

    group: str
    images: list[str]  # those of this job
    shared_with: list[str]  # all that are generated now
    members: list[str]  # all of the group's plan
    tree: dict[str, Any]  # `Branch` as JSON, over indices into `members`
    trunk: TrunkUse | None


class DoneEvent(TypedDict):
    """Data of the event `done`. Those of `failed` and `cancelled` have `image`, and `reason`."""

    image: str
    result: ImageResult


class PlannedGroup(TypedDict):
    """One group of a plan preview."""

    images: list[int]  # numbers of the job's images
    tree: dict[str, Any]  # `Branch` as JSON, over numbers of the job's images
    similarity: float
    steps_shared: int
    rows: Rows


class PlanResult(TypedDict):
    """What `finish_plan` records."""

    groups: list[PlannedGroup]  # largest saving first; images in no group are generated alone
    steps: int
    rows: Rows
    seconds: float | None  # expected, at the measured speed


class ModelFacts(TypedDict):
    """What the worker says about its model when it is ready."""

    model: str
    pipeline: str  # name of the class
    width: int
    height: int
    multiple: int  # width and height must be multiples of it
    steps: int
    guidance_scale: float | None
    negative_prompt: bool  # whether the pipeline takes one
    device: str
    dtype: str
    note: NotRequired[str]  # one sentence, such as why nothing can be shared
