"""The file that carries tuned settings to `cotrunk generate --settings`."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

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
    """

    model: str
    lora: str | None
    scheduler: str | None
    guidance: float


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
        settings = Settings.from_json(content.pop("settings"))
        basis = Basis(**content)
        names = [basis.model, basis.lora or "", basis.scheduler or ""]
        if not (all(isinstance(name, str) for name in names) and _is_number(basis.guidance) and settings.steps):
            raise ValueError("an entry of another type")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CotrunkError(f"{path} is not a file of settings: give one that cotrunk tune wrote.") from error
    return settings, basis


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
