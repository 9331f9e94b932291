"""The file that carries tuned settings to `cotrunk generate --settings`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..checks import number, text
from ..errors import CotrunkError
from ..files import read_json, write_text
from ..pipelines.loading import EMBEDDED
from ..settings import Settings


@dataclass(frozen=True)
class Basis:
    """What settings were tuned on. For another basis, other settings may be better.

    Attributes:
        model, lora, scheduler: as on the command line. None for no LoRA, and for the model's own scheduler.
        guidance: the guidance scale.

    Raises:
        CotrunkError: a value of another type, or out of its range.
    """

    model: str
    lora: str | None
    scheduler: str | None
    guidance: float

    def __post_init__(self) -> None:
        text("model", self.model)
        for name, value in (("lora", self.lora), ("scheduler", self.scheduler)):
            if value is not None:
                text(name, value)
        number("guidance", self.guidance)


def write_settings(settings: Settings, basis: Basis, path: Path) -> None:
    """Write settings and their basis. The file can be used from any folder, because paths in it are absolute."""
    paths = {"model": _absolute(basis.model), "lora": basis.lora and _absolute(basis.lora)}
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
