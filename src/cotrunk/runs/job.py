"""A job: one run as a user asks for it. Frozen, checked when made, JSON in and out; `runner.run_job` runs it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from ..checks import LARGEST_SEED, entries_of, flag, number, one_of, shown, text, whole
from ..errors import CotrunkError
from ..pipelines.offload import OFFLOADS
from ..pipelines.source import Source
from ..pipelines.weighted_lora import WeightedLora, loras_of
from ..planning.prompt_row import PromptRow, check_ids, checked
from ..settings import DEFAULT_SETTINGS, Settings
from .large import is_large
from .naming import FOLDERS, NUMBERED, ImageFacts, check_names
from .output import DEFAULT_OUTPUT, Output
from .shard import Shard

# Where and how a run is computed. It may differ when a run resumes: images change only by rounding.
MACHINE = ("device", "compiled", "offload", "settings.batching", "trunks")


@dataclass(frozen=True)
class Job:
    """A run as a user asks for it. Its JSON is what run.json keeps and what a service takes as a request.

    Attributes:
        prompts: the prompts, with the settings that each has alone. A text is a row with nothing else.
        settings: sharing, skipping, guidance interval, steps, batching. None for the steps means the pipeline's own.
        model: "mini", "mini-dit", a folder that `save_pretrained` wrote, a `.safetensors` file, or an id on the hub.
        lora: LoRAs for the model, whose weighted sum is used. Given as `loras_of` takes them: a name (a folder that
            `cotrunk train` wrote, a file, or an id on the hub), a name and a weight ("style:0.8"), or a list.
        scheduler: a short name ("ddim", "dpm++2m", ...) or a class of diffusers; None for the model's own.
        guidance_scale: 1 or less turns guidance off; None for the pipeline's own.
        negative_prompt: for all images; None for no negative prompt.
        seed: the same seed gives the same images.
        images_per_prompt: images of one prompt do not share with each other.
        width, height: of the images, in pixels; None for the model's own.
        weights: read weights such as (word:1.3) and BREAK in the prompts, and prompts of any length, by compel.
        compare: also generate the images independently, once with the same number of steps and once at equal cost.
        device: "auto", "cpu", "cuda", "cuda:1", "mps", ...
        dtype: "auto", "float32", "float16" or "bfloat16".
        compiled: compile the denoiser.
        output: the format and the names of the image files, and what they hold besides the image.
        config: of a single file: the folder or hub id that has its configuration; None if diffusers knows it.
        revision: of a model on the hub: a branch, tag or commit.
        variant: of the weights, such as "fp16".
        offload: keep weights on the CPU until they are needed: "model", "sequential" or "group".
        vae_tiling: decode and encode large images tile by tile.
        image, mask_image: files of input images for all prompts.
        control_image: a file per ControlNet, for all prompts.
        controlnet: ControlNets for the model: folders, or ids on the hub.
        strength: how far an input image is changed, 0 to 1; None for the pipeline's default.
        digests: of the input images, by file: filled in by a run, which refuses other files.
        shard: the share of the run that this process generates; None for all of it.
        trunks: folder of a trunk cache, for prompts that are planned now. The images of a plan do not depend on it.

    Raises:
        CotrunkError: a value of another type, or out of its range.
    """

    prompts: tuple[PromptRow, ...]
    settings: Settings = DEFAULT_SETTINGS
    model: str = "mini"
    lora: tuple[WeightedLora, ...] = ()
    scheduler: str | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    seed: int = 0
    images_per_prompt: int = 1
    width: int | None = None
    height: int | None = None
    weights: bool = False
    compare: bool = False
    device: str = "auto"
    dtype: str = "auto"
    compiled: bool = False
    output: Output = DEFAULT_OUTPUT
    config: str | None = None
    revision: str | None = None
    variant: str | None = None
    offload: str | None = None
    vae_tiling: bool = False
    image: str | None = None
    mask_image: str | None = None
    control_image: tuple[str, ...] = ()
    controlnet: tuple[str, ...] = ()
    strength: float | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    shard: Shard | None = None
    trunks: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompts, list | tuple) or not self.prompts:
            raise CotrunkError("A job has no prompts: give a list with at least one text.")
        if not isinstance(self.settings, Settings):
            raise CotrunkError(f"settings is a {type(self.settings).__name__}: give Settings(sharing=..., steps=...).")
        if not isinstance(self.output, Output):
            raise CotrunkError(f"output is a {type(self.output).__name__}: give Output(format=..., name=...).")
        rows = tuple(_row(i, prompt) for i, prompt in enumerate(self.prompts))
        check_ids((f"prompt {i}", row) for i, row in enumerate(rows))
        values: dict[str, Any] = {
            "prompts": rows,
            "seed": whole("seed", self.seed, 0, LARGEST_SEED),
            "images_per_prompt": whole("images_per_prompt", self.images_per_prompt),
            "lora": loras_of(self.lora),
        }
        for name in ("control_image", "controlnet"):
            values[name] = _texts(name, getattr(self, name))
        if self.strength is not None:
            values["strength"] = number("strength", self.strength, 0, 1)
        for name in ("image", "mask_image"):
            if getattr(self, name) is not None:
                text(name, getattr(self, name))
        if not isinstance(self.digests, Mapping) or not all(isinstance(each, str) for each in self.digests.values()):
            raise CotrunkError("digests is not an object with a text per file: leave it out.")
        if isinstance(self.shard, dict):
            values["shard"] = Shard.from_json(self.shard)
        elif not isinstance(self.shard, Shard | None):
            raise CotrunkError(f"shard is a {type(self.shard).__name__}: give Shard(1, 16), or None for the whole run.")
        if self.shard is not None and self.compare:
            raise CotrunkError("A share of a run cannot be compared: leave out shard or compare.")
        if self.trunks is not None:
            text("trunks", self.trunks)
        for name in ("width", "height"):
            if (value := getattr(self, name)) is not None:
                values[name] = whole(name, value)
        if self.guidance_scale is not None:
            values["guidance_scale"] = number("guidance_scale", self.guidance_scale)
        if self.negative_prompt is not None:
            checked(self.negative_prompt, "negative_prompt")
        for name, value in values.items():
            object.__setattr__(self, name, value)
        for name in ("weights", "compare", "compiled", "vae_tiling"):
            flag(name, getattr(self, name))
        for name in ("device", "dtype"):
            text(name, getattr(self, name))
        if self.scheduler is not None:
            text("scheduler", self.scheduler)
        if self.offload is not None:
            one_of("offload", self.offload, OFFLOADS)
        _ = self.source  # checks its names

    @property
    def source(self) -> Source:
        """Where the model comes from."""
        return Source(self.model, self.config, self.revision, self.variant)

    @property
    def texts(self) -> list[str]:
        """The text of each prompt."""
        return [row.prompt for row in self.prompts]

    def negative_of(self, row: PromptRow) -> str | None:
        """Return the negative prompt of one of the prompts: its own, or the one for all images."""
        return self.negative_prompt if row.negative_prompt is None else row.negative_prompt

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON values, which `from_json` reads."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["prompts"] = [row.to_json() for row in self.prompts]
        values["lora"] = [asdict(lora) for lora in self.lora]
        values |= {name: list(getattr(self, name)) for name in ("control_image", "controlnet")}
        values["digests"] = dict(self.digests)
        values["shard"] = None if self.shard is None else asdict(self.shard)
        values["output"] = {**asdict(self.output), "records": list(self.output.records)}
        return {**values, "settings": self.settings.to_json()}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Return the job from JSON values. Absent keys take their defaults.

        Raises:
            CotrunkError: an unknown key, a value of another type, or one out of its range.
        """
        entries = entries_of("The job", data, cls)
        settings = Settings.from_json(entries["settings"]) if "settings" in entries else DEFAULT_SETTINGS
        output = Output.from_json(entries["output"]) if "output" in entries else DEFAULT_OUTPUT
        return cls(**{"prompts": (), **entries, "settings": settings, "output": output})

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the prompts, which name their files; empty if they have none."""
        return tuple(row.id for row in self.prompts if row.id is not None)

    @property
    def naming(self) -> Output:
        """The output, with the names that ids give unless it has another name."""
        if self.output.name != NUMBERED or not self.ids:
            return self.output
        is_one = all((row.images or self.images_per_prompt) == 1 for row in self.prompts)
        return replace(self.output, name="{id}" if is_one else "{id}_{copy}")

    def in_folders(self) -> Self:
        """Return the job as a new run: the default names of a large one are in folders."""
        images = sum(row.images or self.images_per_prompt for row in self.prompts)
        return self.named(FOLDERS) if is_large(images) and self.output.name == NUMBERED else self

    def named(self, prefix: str) -> Self:
        """Return the job with a template before its names."""
        return replace(self, output=replace(self.output, name=prefix + self.naming.name))

    def check_files(self) -> None:
        """Check the names of all image files of the run.

        Raises:
            CotrunkError: two images would have one name, or a name leaves the folder, is too long, or is not allowed.
        """
        records = self.output.records
        if records and len(records) != len(self.prompts):
            raise CotrunkError(f"{len(records)} records for {len(self.prompts)} prompts: give one per prompt, or none.")
        places = (
            (i, copy) for i, row in enumerate(self.prompts) for copy in range(row.images or self.images_per_prompt)
        )
        images = (
            ImageFacts(image, index, copy, self.prompts[index].prompt, self.prompts[index].id)
            for image, (index, copy) in enumerate(places)
        )
        check_names(self.naming.name, self.naming.path, images)

    def differences(self, other: "Job") -> Iterator[tuple[str, Any, Any]]:
        """Yield the name and both values of each setting that differs from another job, except those of `MACHINE`."""
        one, two = (
            {
                **job.to_json(),
                "lora": " + ".join(map(str, job.lora)) or None,
                "shard": None if job.shard is None else str(job.shard),
            }
            for job in (self, other)
        )
        del one["digests"], two["digests"]  # appended prompts may have further images
        yield from _differences("", one, two)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """Return one text, or a list of them, as a tuple."""
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, list | tuple):
        raise CotrunkError(f"{name} {shown(value)} is not a list: give one text, or a list of them.")
    return tuple(text(name, each) for each in values)


def _row(number: int, prompt: Any) -> PromptRow:
    """Return a prompt as a row, from its text or from JSON values."""
    try:
        return prompt if isinstance(prompt, PromptRow) else PromptRow.from_json(prompt)
    except CotrunkError as error:
        raise CotrunkError(f"prompt {number}: {error}") from None


def _differences(prefix: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one:
            if prefix + name not in MACHINE:
                yield from _differences(f"{prefix}{name}.", one[name], other[name])
    elif one != other:
        yield prefix.rstrip("."), one, other
