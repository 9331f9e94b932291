"""Read and check what users give to the commands; each error is one clear sentence."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import typer

from ..checks import LARGEST_SEED, number, shown, whole
from ..errors import CotrunkError
from ..files import check_folder
from ..lock import FolderLock, held
from ..planning.prompt_columns import parse_columns
from ..planning.prompt_row import PromptRow, checked
from ..planning.prompts import read_prompts
from ..planning.templates import expanded, first_template
from ..planning.weighted_rows import check_weights, first_weighted
from ..settings import Fidelity, Mode, Noise, Sharing, Skipping
from ..storage.urls import is_url, mended_url, shown_place
from .console import err, say


def prompts_of(
    arguments: Sequence[str] | None,
    file: str | None,
    columns: str | None = None,
    templates: bool = False,
    wildcards: Path | None = None,
    weights: bool | None = None,
    *,
    warns: bool = True,
) -> list[PromptRow]:
    """Return the prompts: the arguments, or the rows of a file.

    Args:
        columns: which columns hold which fields: "prompt=Text,id=Key".
        templates: whether prompts are templates. If they only look like it, a hint is printed.
        wildcards: the folder of the files for templates.
        weights: whether prompts have weights. If they only look like it, a hint is printed; None for no hint.
        warns: name the columns that are not used.

    Raises:
        CotrunkError: both or neither are given, or one of them is unusable.
    """
    if bool(arguments) == (file is not None):
        raise CotrunkError("Give prompts either as arguments or with --prompts FILE.")
    if file is None:
        if columns is not None:
            raise CotrunkError("--columns is for the file of --prompts: leave it out.")
        texts = [checked(text, f"prompt {i}: the prompt") for i, text in enumerate(arguments or ())]
        if not all(texts):
            raise CotrunkError("A prompt is empty: give every prompt some text.")
        for text in texts:  # a file name without --prompts would be used as a prompt, which is not what the user wants
            # os.path.isfile returns False where Path.is_file raises: a prompt may be longer than a file name
            if Path(text).suffix and os.path.isfile(text):  # noqa: PTH113
                raise CotrunkError(f"{text} is a file: give its prompts with --prompts {text}.")
        rows, places = [PromptRow(text) for text in texts], [f"prompt {i}" for i in range(len(texts))]
        return _expanded(rows, places, templates, wildcards, weights)
    found = read_prompts(Path(file), parse_columns(columns))
    counts = ((found.comments, "comment"), (found.blank, "blank line"))
    if skipped := " and ".join(f"{count} {what}{'s' if count > 1 else ''}" for count, what in counts if count):
        err.print(f"{skipped} skipped")
    if found.unused and warns:
        several, named = len(found.unused) > 1, ", ".join(map(repr, found.unused))
        what = f"the columns {named} are" if several else f"the column {named} is"
        say("yellow", "warning", f"{what} not used: --columns FIELD=COLUMN says what a column holds")
    return _expanded(found.rows, [f"{file}, {place}" for place in found.places], templates, wildcards, weights)


def _expanded(
    rows: Sequence[PromptRow], places: Sequence[str], templates: bool, wildcards: Path | None, weights: bool | None
) -> list[PromptRow]:
    """Return the rows, with those of templates in place of each template."""
    if weights:
        check_weights(zip(places, rows, strict=True))
    elif weights is not None and (weighted := first_weighted(rows)) is not None:
        say("yellow", "hint", f"{places[weighted]} looks like a weighted prompt: --weights reads (word:1.3) and BREAK")
    if templates:
        return expanded(rows, places, wildcards)
    if wildcards is not None:
        raise CotrunkError("--wildcards is for templates: add --templates.")
    if (index := first_template(rows)) is not None:
        say("yellow", "hint", f"{places[index]} looks like a template: --templates expands it to all of its prompts")
    return list(rows)


def check_numbers(steps: int | None, guidance: float | None, seed: int, images_per_prompt: int) -> None:
    """Check the numbers that most commands take; errors name the command-line option. None is the pipeline's own.

    Raises:
        CotrunkError: one of them is out of range.
    """
    if steps is not None:
        whole("--steps", steps, 1)
    if guidance is not None:
        number("--guidance", guidance)
    whole("--seed", seed, 0, LARGEST_SEED)
    whole("--images-per-prompt", images_per_prompt, 1)


def check_size(width: int | None, height: int | None) -> None:
    """Check the size of images; errors name the command-line option.

    Raises:
        CotrunkError: it is out of range.
    """
    for name, value in (("--width", width), ("--height", height)):
        if value is not None:
            whole(name, value, 1)


def sharing_of(
    share: float, similarity: str, max_group: int, mode: str, encoder: str, noise: str, trunk_guidance: str
) -> Sharing:
    """Return the sharing settings from the options of the Sharing panel.

    Raises:
        CotrunkError: one of them is out of range.
    """
    whole("--max-group", max_group, 0)
    return Sharing(
        share=share,
        similarity=_number_or_auto("--similarity", similarity, -1),
        max_group=max_group or None,
        mode=cast("Mode", mode),
        encoder=encoder,
        noise=cast("Noise", noise),
        trunk_guidance=_number_or_auto("--trunk-guidance", trunk_guidance, 0),
    )


def _number_or_auto(name: str, value: str, least: int) -> Any:
    if value == "auto":
        return value
    try:
        return float(value)
    except ValueError:
        raise CotrunkError(f"{name} {value!r} is neither auto nor a number from {least} to 1.") from None


def skipping_of(
    skip: bool | None, tolerance: float | None, fidelity: Fidelity | None
) -> Skipping | Literal["auto"] | None:
    """Return the skipping settings from --skip or --no-skip, --tolerance and --fidelity; None without skipping.

    Raises:
        CotrunkError: the tolerance is out of range, or two options contradict each other.
    """
    for name, value in (("--tolerance", tolerance), ("--fidelity", fidelity)):
        if skip is False and value is not None:
            raise CotrunkError(f"--no-skip skips nothing, and {name} says how much to skip: give one of them.")
    if tolerance is not None and fidelity is not None:
        raise CotrunkError("--tolerance and --fidelity both choose the tolerance: give one of them.")
    if fidelity is not None:
        return Skipping.with_fidelity(fidelity)
    if tolerance is not None:
        return Skipping(tolerance=tolerance)
    return "auto" if skip is None else Skipping() if skip else None


def is_given(context: typer.Context, name: str) -> bool:
    """Return whether an option is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def hold(context: typer.Context, folder: Path, *below: str) -> FolderLock:
    """Lock a folder with `lock.held` until the command ends, so that no other command writes to it.

    Raises:
        CotrunkError: another command is writing to it, or it cannot be written.
    """
    lock = context.with_resource(held(folder, *below))
    if not lock.is_kept:
        warn_unlocked(folder)
    return lock


def warn_unlocked(folder: Path) -> None:
    """Warn that nothing keeps two commands from writing to a folder at once."""
    say("yellow", "warning", f"{folder} is on a file system without locks: let no other command write to it")


def out_folder(name: str | None) -> Path:
    """Return the folder that --out names.

    Raises:
        CotrunkError: none is named, or it cannot be written.
    """
    if not name:
        raise CotrunkError("Missing --out DIR: name a folder to write to.")
    if is_url(name):
        place = shown(shown_place(name))
        raise CotrunkError(f"--out {place} is a URL, to which only a run with --ray can write: name a folder.")
    if is_url(url := mended_url(name)):
        folder = shown_place(name)
        raise CotrunkError(
            f"--out {shown(folder)} lacks a slash: write {shown_place(url)}, or ./{folder} for a folder."
        )
    check_folder(Path(name))
    return Path(name)
