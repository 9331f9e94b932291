"""A setting of `cotrunk generate`: steps, sharing, skipping, guidance; and the file that carries it there."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from ..errors import CotrunkError
from ..files import write_text
from ..pipelines.loading import EMBEDDED
from ..settings import Settings, Sharing, Skipping

LEAST = 4  # prompts to compare settings on


@dataclass(frozen=True)
class Setting:
    """What `cotrunk generate --settings` takes.

    Attributes:
        steps: of the solver.
        share: part of them that groups share; 0 for independent sampling.
        similarity: at least this similar; None for the encoder's own threshold.
        tolerance: of skipping; None for none.
        guidance_interval: fractions of the steps between which guidance is on; None for all.
    """

    steps: int
    share: float = 0.0
    similarity: float | None = None
    tolerance: float | None = None
    guidance_interval: tuple[float, float] | None = None

    @property
    def family(self) -> str:
        """Its line in the figure."""
        parts = [f"shared {self.share:.0%}" if self.share else "independent"]
        parts += [f"similarity {self.similarity:g}"] if self.similarity is not None else []
        parts += ["skipping"] if self.tolerance is not None else []
        parts += ["guided in part"] if self.guidance_interval is not None else []
        return ", ".join(parts)

    def settings(self) -> Settings:
        """Return it as `cotrunk.generate` takes it."""
        similarity: float | Literal["auto"] = "auto" if self.similarity is None else self.similarity
        return Settings(
            sharing=Sharing(share=self.share, similarity=similarity) if self.share else None,
            skipping=None if self.tolerance is None else Skipping(tolerance=self.tolerance),
            guidance_interval=self.guidance_interval,
            steps=self.steps,
        )


@dataclass(frozen=True)
class Basis:
    """What a setting was tuned on: with another of these, other settings may suit.

    Attributes:
        model, lora, scheduler: as on the command line; None for no LoRA, and for the model's own scheduler.
        guidance: the guidance scale.
    """

    model: str
    lora: str | None
    scheduler: str | None
    guidance: float


def write_settings(setting: Setting, basis: Basis, path: Path) -> None:
    """A file for `cotrunk generate --settings`, in whatever folder that is called."""
    places = {"model": _lasting(basis.model), "lora": basis.lora and _lasting(basis.lora)}
    write_text(path, json.dumps(asdict(setting) | asdict(basis) | places, indent=1) + "\n")


def _lasting(name: str) -> str:
    """The whole path of a folder or file; another name as it is."""
    return name if name in EMBEDDED or not Path(name).exists() else str(Path(name).resolve())


def read_settings(path: Path) -> tuple[Setting, Basis]:
    """What `write_settings` wrote.

    Raises:
        CotrunkError: no such file, or one with other entries.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        basis = Basis(**{field.name: entries.pop(field.name) for field in fields(Basis)})
        if entries.get("guidance_interval") is not None:
            start, stop = map(float, entries["guidance_interval"])
            entries["guidance_interval"] = (start, stop)
        setting = Setting(**entries)
        numbers = [
            setting.share,
            setting.similarity,
            setting.tolerance,
            *(setting.guidance_interval or ()),
            basis.guidance,
        ]
        names = [basis.model, basis.lora, basis.scheduler]
        if not (
            type(setting.steps) is int
            and setting.steps > 0
            and all(_is_number(number) for number in numbers if number is not None)
            and all(isinstance(name, str) for name in names if name is not None)
            and None not in (setting.share, basis.guidance, basis.model)
        ):
            raise ValueError("an entry of another type")
        setting.settings()  # or a number out of its range would be noticed later, in other words
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CotrunkError(f"{path} is not a file of settings: give one that cotrunk tune wrote.") from error
    return setting, basis


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
