"""What a job leaves to the model and the machine."""

from dataclasses import dataclass
from importlib.metadata import version

from .. import __version__
from ..planning.tree import Text


@dataclass(frozen=True)
class PipelineFacts:
    """The pipeline as it was loaded.

    Attributes:
        scheduler: the class of its scheduler.
        device, dtype: where and in which precision it ran.
    """

    scheduler: Text
    device: Text
    dtype: Text


def versions() -> dict[str, str]:
    """Return the versions that images depend on."""
    return {"cotrunk": __version__, **{name: version(name) for name in ("diffusers", "torch")}}
