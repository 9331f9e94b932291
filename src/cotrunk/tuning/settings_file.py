"""The file that carries tuned settings to `cotrunk generate --settings`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checks import number, text
from ..errors import CotrunkError
from ..files import read_json, write_text
from ..pipelines.source import EMBEDDED, Source
from ..pipelines.weighted_lora import WeightedLora, loras_of
from ..settings import Settings


@dataclass(frozen=True)
class Basis:
    """What settings were tuned on. For another basis, other settings may be better.

    Attributes:
        model, scheduler: as on the command line. None for the model's own scheduler.
        lora: in any form that `loras_of` takes.
        guidance: the guidance scale; None for the pipeline's own.
        config, revision, variant: as in `Source`.

    Raises:
        CotrunkError: a value of another type, or out of its range.
    """

    model: str
    lora: tuple[WeightedLora, ...]
    scheduler: str | None
    guidance: float | None
    config: str | None = None
    revision: str | None = None
    variant: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lora", loras_of(self.lora))
        _ = self.source  # checks its names
        if self.scheduler is not None:
            text("scheduler", self.scheduler)
        if self.guidance is not None:
            number("guidance", self.guidance)

    @property
    def source(self) -> Source:
        """Where the model comes from."""
        return Source(self.model, self.config, self.revision, self.variant)


def write_settings(settings: Settings, basis: Basis, path: Path) -> None:
    """Write settings and their basis. The file can be used from any folder, because paths in it are absolute."""
    paths: dict[str, Any] = {"model": _absolute(basis.model), "config": basis.config and _absolute(basis.config)}
    paths["lora"] = [{"name": _absolute(lora.name), "weight": lora.weight} for lora in basis.lora]
    write_text(path, json.dumps({**asdict(basis), **paths, "settings": settings.to_json()}, indent=1) + "\n")


def _absolute(name: str) -> str:
    """Return the absolute path of a file or folder, and any other name unchanged."""
    return name if name in EMBEDDED or not Path(name).exists() else str(Path(name).resolve())


def read_settings(path: Path) -> tuple[Settings, Basis]:
    """Read what `write_settings` wrote.

    Raises:
        CotrunkError: there is no such file, or it has other entries.
    """
    try:
        content = dict(read_json(path))
        settings, basis = Settings.from_json(content.pop("settings")), Basis(**content)
    except CotrunkError as error:
        raise CotrunkError(f"{path}: {error}") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CotrunkError(f"{path} is not a file of settings: give one that cotrunk tune wrote.") from error
    if settings.steps is None:
        raise CotrunkError(f"{path} gives no number of steps: give a file that cotrunk tune wrote.")
    return settings, basis
