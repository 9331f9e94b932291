"""The report of a run: what run.json holds, and what the page, the console and a service read."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import PlainValidator, TypeAdapter, ValidationError

from ..errors import CotrunkError
from ..files import write_text
from ..planning.plan import Cost, sharing_from_json
from ..planning.replayed import Replayed
from ..planning.tree import Amount, Branch, Real, Steps, Text, Whole
from ..settings import Sharing
from .arm import Compared
from .facts import PipelineFacts
from .job import Job
from .journal import StepLetters
from .large import is_large
from .report_figures import Comparison, Distance, FailedGroup, Rows, Seconds
from .report_files import FORMAT, NAME, read_report, write_divided

Status = Literal["running", "done", "failed images", "flagged images"]


@dataclass(frozen=True, slots=True)
class ImageReport:
    """One image.

    Attributes:
        file: its path, relative to the folder of the run.
        prompt: the index of its prompt in `Job.prompts`.
        group: the index of its group in `RunReport.groups`.
        rows: denoiser rows that it took; a row that a group shares is divided equally among its images.
        steps: one letter per timestep, as in `execution.Batch`; empty before the image is finished.
        failed: whether it has no file, because it contains NaN, or because its group could not be generated.
        flagged: whether the model's safety checker replaced it by a black image.
        retries: how often it was generated again with a new seed; the other values are those of the last time.
    """

    file: Text
    prompt: Whole
    seed: Whole
    group: Whole
    rows: Amount
    steps: StepLetters
    failed: bool
    flagged: bool
    retries: Whole = 0


@dataclass(frozen=True, slots=True)
class GroupReport:
    """Images that share a trunk, or one image alone.

    Attributes:
        prompts: the index of each image's prompt.
        branch_step: the timestep at which the group first branches; 0 where nothing is shared.
        similarity: smallest cosine between two of its prompts.
        rows: those of its images, used and with independent sampling.
        tree: its trunk and branches.
        part: the index of its part in `RunReport.parts`.
        replaced: those of its images that had failed and were generated again, in another group.
        trunk: what its images replay; None if nothing.
    """

    prompts: tuple[Whole, ...]
    images: tuple[Whole, ...]
    branch_step: Whole
    similarity: Real
    rows: Cost
    tree: Branch
    part: Whole = 0
    replaced: tuple[Whole, ...] = ()
    trunk: Replayed | None = None


@dataclass(frozen=True)
class PartReport:
    """Prompts with the same size, steps and guidance that were planned together.

    Attributes:
        prompts: their indices.
        compare: inference steps of each arm for comparison.
        is_retry: whether its images had failed and were generated again; `prompts` then has one entry per image.
    """

    prompts: tuple[Whole, ...]
    steps: Steps
    timesteps: Steps
    guidance_scale: Real | None
    width: Whole | None
    height: Whole | None
    compare: dict[Compared, Steps]
    is_retry: bool = False


@dataclass(frozen=True)
class RunReport:
    """Everything about a run, as run.json holds it.

    Attributes:
        status: "running" until every image of every arm is finished, or has failed.
        job: what was asked for.
        pipeline: the pipeline as it was loaded.
        sharing: how prompts shared, after "auto"; None for independent sampling.
        fallbacks: sentences about each "auto" that stands for its second choice.
        threshold: the smallest similarity at which prompts shared; None for independent sampling.
        steps, timesteps: inference steps, and the denoiser evaluations that they take; of the first part if there are
            several.
        images, groups: in their order.
        why_nothing_shared: the reason, as a clause for the page; None if something was shared.
        rows, seconds: of the run itself, without its comparisons.
        versions: of cotrunk, diffusers and torch.
        compare: name of the arm -> its figures; empty without a comparison.
        distances: name of an arm -> how far the images of the run are from it. From "all_steps" it is what skipping
            alone changed.
        parts: the parts of a run whose prompts differ in size, steps or guidance, were appended later, or were
            generated again; empty if there is one.
        failures: groups that could not be generated.
    """

    status: Status
    job: Annotated[Job, PlainValidator(Job.from_json)]
    pipeline: PipelineFacts
    sharing: Annotated[Sharing | None, PlainValidator(sharing_from_json)]
    fallbacks: tuple[Text, ...]
    threshold: Real | None
    steps: Steps
    timesteps: Steps
    images: tuple[ImageReport, ...]
    groups: tuple[GroupReport, ...]
    why_nothing_shared: Text | None
    rows: Rows
    seconds: Seconds
    versions: dict[Text, Text]
    compare: dict[Compared, Comparison] = field(default_factory=dict)
    distances: dict[Compared, Distance] = field(default_factory=dict)
    parts: tuple[PartReport, ...] = ()
    failures: tuple[FailedGroup, ...] = ()

    def steps_of_run(self) -> str:
        """Return the steps as words, from fewest to most if its parts differ."""
        return _range([part.steps for part in self.parts] or [self.steps])

    def steps_of_arm(self, name: Compared) -> str:
        """Return the steps of an arm for comparison as words, from fewest to most if its parts differ."""
        return _range([part.compare[name] for part in self.parts] or [self.compare[name].steps])

    def guidance_of_run(self) -> str:
        """Return the guidance scale as words, from smallest to largest if its parts differ."""
        own = [part.guidance_scale for part in self.parts] or [self.pipeline.guidance_scale]
        return _range([scale for scale in own if scale is not None])

    def steps_of(self, group: GroupReport) -> tuple[int, int]:
        """Return the inference steps of a group, and the denoiser evaluations that they take."""
        part = self.parts[group.part] if self.parts else self
        return part.steps, part.timesteps

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"format": FORMAT, **asdict(self), "job": self.job.to_json()}

    def to_text(self) -> str:
        """Return the whole report as text: the content of run.json unless the run is large."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"

    def save(self, folder: Path) -> None:
        """Write run.json into the folder of the run, and for a large run the files of its lists."""
        if is_large(len(self.images)):
            write_divided(folder, replace(self, groups=(), images=()).to_json(), self.groups, self.images)
        else:
            write_text(folder / NAME, self.to_text())

    @staticmethod
    def from_json(data: Any) -> "RunReport":
        """Return the report from JSON values.

        Raises:
            CotrunkError: they are not those of a report.
        """
        try:
            if not isinstance(data, dict) or data.get("format") != FORMAT:
                raise ValueError("its format is of another version")
            return _REPORT.validate_python({name: value for name, value in data.items() if name != "format"})
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, found["loc"][-4:]))
            raise CotrunkError(
                f"This is not the report of a run: {where}: {found['msg']}. Run the job again."
            ) from None
        except (RecursionError, ValueError) as error:
            why = str(error)
        raise CotrunkError(f"This is not the report of a run ({why}): run the job again.")

    @staticmethod
    def load(folder: str | Path) -> "RunReport":
        """Read the report in the folder of a run.

        Raises:
            CotrunkError: there is no run.json, or it is damaged.
        """
        try:
            return RunReport.from_json(read_report(Path(folder)))
        except CotrunkError:
            raise
        except (OSError, ValueError) as error:
            raise CotrunkError(f"{folder} holds no readable run.json ({error}): name the folder of a run.") from None


def _range(values: Sequence[float]) -> str:
    """Return one value, or the smallest and the largest of several; "none" if there is none."""
    if not values:
        return "none"
    return f"{values[0]}" if len(set(values)) == 1 else f"{min(values)} to {max(values)}"


_REPORT = TypeAdapter(RunReport)
