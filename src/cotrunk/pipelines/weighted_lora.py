"""A LoRA and its weight, as users name them: `style`, `style:0.8`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..checks import number, shown, text
from ..errors import CotrunkError

LARGEST_WEIGHT = 10.0  # beyond it, the weights of a denoiser are noise


@dataclass(frozen=True)
class WeightedLora:
    """A LoRA and its weight.

    Attributes:
        name: a folder that `cotrunk train` wrote, a file, or an id on the hub.
        weight: from -10 to 10; 1 is the LoRA as it was trained.

    Raises:
        CotrunkError: the name is empty, or the weight is out of range.
    """

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        text("lora", self.name)
        weight = number(f"The weight of the LoRA {self.name},", self.weight, -LARGEST_WEIGHT, LARGEST_WEIGHT)
        object.__setattr__(self, "weight", weight)

    @classmethod
    def parse(cls, value: str) -> Self:
        """Return the LoRA that `NAME` or `NAME:WEIGHT` means. A path may contain a colon.

        Raises:
            CotrunkError: the name is empty, or the weight is not a number from -10 to 10.
        """
        text("lora", value)
        name, colon, weight = value.rpartition(":")
        if not colon or _exists(value):
            return cls(value)
        try:
            found = float(weight)
        except ValueError:
            if _exists(name):
                raise CotrunkError(
                    f"The weight of the LoRA {name}, {weight!r}, is not a number: use NAME:WEIGHT, such as {name}:0.8."
                ) from None
            return cls(value)  # the colon belongs to the name
        return cls(name, found)

    def __str__(self) -> str:
        return self.name if self.weight == 1 else f"{self.name}:{self.weight:g}"


def loras_of(value: Any) -> tuple[WeightedLora, ...]:
    """Return LoRAs from any form in which they are given.

    Args:
        value: None, one LoRA, or a list; each one a text as for `WeightedLora.parse`, a path, a `WeightedLora`, or its
            JSON (`{"name": "style", "weight": 0.8}`).

    Raises:
        CotrunkError: another value.
    """
    if value is None:
        return ()
    if isinstance(value, str | Path | WeightedLora | Mapping):
        value = [value]
    if not isinstance(value, Iterable):
        raise CotrunkError(f"lora {shown(value)} is not a LoRA: use a path, a hub id, or a list of them.")
    return tuple(map(_lora_of, value))


def _lora_of(value: Any) -> WeightedLora:
    if isinstance(value, WeightedLora):
        return value
    if isinstance(value, Path):
        return WeightedLora(str(value))
    if isinstance(value, str):
        return WeightedLora.parse(value)
    if isinstance(value, Mapping) and "name" in value and value.keys() <= {"name", "weight"}:
        return WeightedLora(**value)
    raise CotrunkError(f"lora {shown(value)} is not a LoRA: use a path, a hub id, or a name and a weight.")


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long for a path, or with a null character
        return False
