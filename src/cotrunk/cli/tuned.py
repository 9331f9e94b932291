"""The file of settings that `cotrunk tune` wrote, as an option of other commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import CotrunkError
from ..settings import Settings
from .console import say
from .inputs import is_given

if TYPE_CHECKING:
    from ..pipelines.weighted_lora import WeightedLora
    from ..tuning.settings_file import Basis

SHARING_OPTIONS = ("share", "similarity", "max_group", "mode", "encoder", "noise", "trunk_guidance")
TUNED = ("steps", *SHARING_OPTIONS, "exact", "skip", "tolerance", "fidelity", "guidance_interval")


def tuned(context: typer.Context, path: Path) -> tuple[Settings, "Basis"]:
    """Read a file of `cotrunk tune`, and refuse options that would contradict its settings."""
    from ..tuning.settings_file import read_settings

    for name in TUNED:
        if is_given(context, name):
            raise CotrunkError(f"--settings and --{name.replace('_', '-')} are both given: give one of them.")
    return read_settings(path)


def warn_if_tuned_for_another(basis: "Basis", model: str, loras: "Sequence[WeightedLora]") -> None:
    """Warn if the settings were tuned for another model or another LoRA, because they may not suit this one."""
    tuned_with, used_with = (" + ".join(str(lora) for lora in some) for some in (basis.lora, loras))
    is_same_lora = len(basis.lora) == len(loras) and all(
        one.weight == other.weight and is_same(one.name, other.name)
        for one, other in zip(basis.lora, loras, strict=True)
    )
    for what, is_equal, before, used in (
        ("model", is_same(basis.model, model), basis.model, model),
        ("LoRA", is_same_lora, tuned_with, used_with),
    ):
        if not is_equal:
            text = f"the settings were tuned with another {what} ({before or 'none'}, not {used or 'none'})"
            say("yellow", "warning", f"{text}: cotrunk tune finds those that suit this one")


def is_same(one: str, other: str) -> bool:
    # different paths may name the same folder
    return one == other or Path(one).resolve() == Path(other).resolve()
