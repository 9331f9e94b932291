"""What the commands are given: read and checked, one clear sentence where it is wrong."""

import inspect
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from ..errors import CotrunkError
from ..files import check_folder, remove_parts
from ..lock import FolderLock, locked
from ..pipelines.class_tables import IMAGE_OPTIONAL
from ..planning.prompts import checked, read_prompts
from .console import err, say

if TYPE_CHECKING:
    from ..settings import Mode, Sharing


def prompts_of(arguments: Sequence[str] | None, file: str | None, column: str) -> list[str]:
    if bool(arguments) == (file is not None):
        raise CotrunkError("Give prompts either as arguments or with --prompts FILE.")
    if file is None:
        texts = [checked(text, f"prompt {i}") for i, text in enumerate(arguments or ())]
        if not all(texts):
            raise CotrunkError("A prompt is empty: give every prompt some text.")
        for text in texts:  # drawn, its name would be a picture that nobody asked for
            # os's answer is no where Path's is an error: a prompt may be longer than a file's name
            if Path(text).suffix and os.path.isfile(text):  # noqa: PTH113
                raise CotrunkError(f"{text} is a file: give its prompts with --prompts {text}.")
        return texts
    found = read_prompts(Path(file), column)
    if found.blank:
        err.print(f"{found.blank} blank line{'s' if found.blank > 1 else ''} skipped")
    return found.prompts


def check_draws_from_text(pipe: Any) -> None:
    """A command has texts alone to give, and makes pictures."""
    kind = type(pipe).__name__
    for part, product in (("vocoder", "sound"), ("video_processor", "video")):
        if hasattr(pipe, part):
            raise CotrunkError(f"{kind} makes {product}: use cotrunk.generate in Python.")
    takes = inspect.signature(pipe.__call__).parameters
    for name in ("image", "control_image", "mask_image"):
        if name in takes and not kind.startswith(IMAGE_OPTIONAL):
            raise CotrunkError(f"{kind} draws from a picture too ({name}): use cotrunk.generate in Python.")


def check_numbers(steps: int, guidance: float, seed: int, images_per_prompt: int) -> None:
    check_whole("--steps", steps, 1)
    if not math.isfinite(guidance) or guidance < 0:
        raise CotrunkError(f"--guidance {guidance} is out of range: use 0 or more.")
    check_whole("--seed", seed, 0, 2**63 - 1)
    check_whole("--images-per-prompt", images_per_prompt, 1)


def sharing_of(share: float, similarity: str, max_group: int, mode: str, encoder: str) -> "Sharing":
    from ..settings import Sharing

    check_whole("--max-group", max_group, 0)
    value: Any = "auto"
    if similarity != "auto":
        try:
            value = float(similarity)
        except ValueError:
            raise CotrunkError(f"--similarity {similarity!r} is neither auto nor a number from -1 to 1.") from None
    return Sharing(share=share, similarity=value, max_group=max_group or None, mode=cast("Mode", mode), encoder=encoder)


def check_whole(option: str, value: int, least: int, most: int | None = None) -> None:
    if value < least or (most is not None and value > most):
        use = f"{least} or more" if most is None else f"{least} to {most}"
        raise CotrunkError(f"{option} {value} is out of range: use {use}.")


def hold(context: typer.Context, folder: Path, *below: str) -> FolderLock:
    """Keep other commands away from a folder until this one ends, and remove the half files that a killed one left in
    it and in those `below` it.

    Raises:
        CotrunkError: another command writes to it, or it cannot be written.
    """
    lock = context.with_resource(locked(folder))
    if not lock.is_kept:
        say("yellow", "warning", f"{folder} is on a file system without locks: let no other command write to it")
        return lock
    for place in (folder, *(found for name in below for found in folder.glob(name))):
        remove_parts(place)
    return lock


def out_folder(name: str | None) -> Path:
    if not name:
        raise CotrunkError("Where to? Name a folder with --out DIR.")
    check_folder(Path(name))
    return Path(name)
