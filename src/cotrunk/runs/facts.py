"""What a run leaves to its pipeline: the pipeline as it was loaded, and what "auto" and None stood for."""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any

from pydantic import PlainValidator

from .. import __version__
from ..planning.plan import Findings
from ..planning.tree import Real, Text
from ..settings import Settings, Skipping


def _skipping_from_json(data: Any) -> Skipping | None:
    return Settings.from_json({"skipping": data}).skipping if isinstance(data, dict) else data  # type: ignore[return-value]


@dataclass(frozen=True)
class PipelineFacts:
    """The pipeline as it was loaded: what a job leaves to the model and the machine.

    Attributes:
        scheduler: the class of its scheduler.
        device, dtype: where and in which precision it ran.
        guidance_scale: the scale that was used: the job's, or the pipeline's own. None if it takes none.
        skipping: how images skipped evaluations, after "auto"; None if they did not.
        why_not_skipped: why "auto" skipped nothing, as a clause.
        other_trunk: a sentence about a LoRA that was trained for other trunks than those of the run.
    """

    scheduler: Text
    device: Text
    dtype: Text
    guidance_scale: Real | None = None
    skipping: Annotated[Skipping | None, PlainValidator(_skipping_from_json)] = None
    why_not_skipped: Text | None = None
    other_trunk: Text | None = None


def fallbacks(findings: Findings, pipeline: PipelineFacts) -> tuple[str, ...]:
    """Return a sentence about each "auto" that stands for its second choice, and about a LoRA for other trunks."""
    trunks, not_skipped = findings.fallback, pipeline.why_not_skipped
    skipping = None if not_skipped is None else f"Nothing was skipped: {not_skipped}."
    sentences = (trunks, skipping, pipeline.other_trunk)
    return tuple(sentence for sentence in sentences if sentence is not None)


def versions() -> dict[str, str]:
    """Return the versions that images depend on."""
    return {"cotrunk": __version__, **{name: version(name) for name in ("diffusers", "torch")}}
