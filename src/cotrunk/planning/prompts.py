"""Prompts from a file: text, CSV, JSON lines, JSON or parquet, checked row by row."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..checks import shown
from ..errors import CotrunkError
from ..files import LIMIT
from ..pipelines.hub import is_file, is_folder
from ..pipelines.weighted_lora import loras_of
from .prompt_columns import Columns
from .prompt_formats import read_values
from .prompt_row import FILES, PromptRow, check_ids

NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
_WHOLE = ("seed", "images", "width", "height", "steps")
_REAL = ("guidance_scale", "strength")


@dataclass(frozen=True)
class PromptFile:
    """The content of a prompt file.

    Attributes:
        rows: in file order, duplicates kept.
        places: where each row stands: "line 3".
        blank: number of blank lines and rows, which were skipped.
        comments: number of comments in a text file.
        unused: names of columns that nothing uses.
    """

    rows: tuple[PromptRow, ...]
    places: tuple[str, ...]
    blank: int = 0
    comments: int = 0
    unused: tuple[str, ...] = ()

    @property
    def prompts(self) -> list[str]:
        """The texts alone."""
        return [row.prompt for row in self.rows]


def read_prompts(path: Path, columns: Mapping[str, str] = NO_COLUMNS) -> PromptFile:
    """Read the rows of one prompt file; its suffix gives the format.

    Args:
        path: `.csv` and `.tsv` with a header line; `.jsonl` (or `.ndjson`) with a string or an object per line;
            `.json` with a list of strings or objects; `.parquet`; anything else is text with one prompt per line, in
            which lines that begin with `#` are comments.
            `-` is text from standard input. Pipes work too, except for parquet.
        columns: field of a row -> its column or key in the file, where that has another name.

    Raises:
        CotrunkError: the file cannot be read, is a device, or is longer than `LIMIT`; it is not UTF-8 text, or is
            damaged (the message gives the line); it lacks a column (the message lists the columns), is a table or
            JSON lines under another suffix, or holds no prompt; or a value is not usable (the message gives the line).
    """
    name = "standard input" if str(path) == "-" else str(path)
    known = Columns(name, columns)
    rows, places, blank, comments, length = list[PromptRow](), list[str](), 0, 0, 0
    for place, values in read_values(path, known):
        if values is None:
            comments += 1
        elif all(isinstance(value, str) and not value.strip() for value in values.values()):
            blank += 1
        else:
            rows.append(_row(values, f"{name}, {place}", path.parent))
            places.append(place)
            length += len(rows[-1].prompt)
            if length > LIMIT:  # a parquet file may unpack to any size
                raise CotrunkError(f"{name} holds more than {LIMIT:,} characters of prompts: divide it.")
    if not rows:
        raise CotrunkError(f"{name} holds no prompt: give a file with at least one.")
    check_ids((f"{name}, {place}", row) for place, row in zip(places, rows, strict=True))
    return PromptFile(tuple(rows), tuple(places), blank, comments, tuple(known.unused))


def _row(values: Mapping[str, object], where: str, folder: Path) -> PromptRow:
    """Return the row with these values; a message of an error begins with `where`."""
    given: dict[str, Any] = {
        field: value for field, value in values.items() if field == "prompt" or not _is_empty(value)
    }
    try:
        for field in given.keys() & {*_WHOLE, *_REAL}:
            given[field] = _number(field, given[field])
        if isinstance(given.get("id"), int | float) and not isinstance(given["id"], bool):
            given["id"] = str(_number("id", given["id"]))
        for field in given.keys() & {*FILES, "lora"}:
            given[field] = _path(field, given[field], folder)
        loras_of(given.get("lora"))
        row = PromptRow(**given)
    except CotrunkError as error:
        raise CotrunkError(f"{where}: {error}") from None
    if not row.prompt:
        raise CotrunkError(f"{where}: the prompt is empty; give it some text, or delete the row.")
    if "id" in values and row.id is None:
        raise CotrunkError(f"{where}: the id is empty; give each row an id.")
    return row


def _is_empty(value: object) -> bool:
    """Return whether a cell is empty; parquet files that pandas wrote hold NaN for it."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def _number(field: str, value: object) -> object:
    """Return the number in a cell, whole where it can be."""
    if isinstance(value, str):
        try:
            value = float(value) if not value.strip().lstrip("+-").isdigit() else int(value)
        except ValueError:
            raise CotrunkError(f"{field} {shown(value)} is not a number; correct it.") from None
    is_whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
    return int(value) if is_whole else value  # type: ignore[call-overload]


def _path(field: str, value: object, folder: Path) -> object:
    """Return the path of a file from a cell, relative to the folder of the prompt file, as an absolute one.

    A LoRA may also be an id on the hub, which stays as it is.
    """
    if not isinstance(value, str):
        return value
    try:
        path = (folder / value.strip()).resolve()
        if path.exists():
            return str(path)
    except (OSError, ValueError):  # too long for a path, or with a null character
        pass
    if field == "lora":
        name, colon, weight = value.strip().rpartition(":")
        if colon and (is_folder(str(folder / name)) or is_file(str(folder / name))):
            return f"{(folder / name).resolve()}:{weight}"
        return value.strip()
    raise CotrunkError(f"there is no {field} {shown(value)}; give a path relative to the prompt file.")
