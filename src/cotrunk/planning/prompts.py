"""Prompts from a file: text, CSV, JSON lines, JSON or parquet, checked line by line."""

import csv
import io
import json
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CotrunkError
from ..files import LIMIT, read_whole

COLUMN = "prompt"  # the default column of a table

# the place of a value in its file ("line 3", "item 2", "row 7"), and the value
_Found = tuple[str, object]


@dataclass(frozen=True)
class PromptFile:
    """The content of a prompt file."""

    prompts: list[str]  # stripped, in file order, duplicates kept
    blank: int  # number of blank lines or empty cells, which were skipped


def read_prompts(path: Path, column: str = COLUMN) -> PromptFile:
    """Read the prompts of one file; its suffix gives the format.

    Args:
        path: `.csv` and `.tsv` with a header line; `.jsonl` (or `.ndjson`) with a string or an object per line;
            `.json` with a list of strings or objects; `.parquet`; anything else is text with one prompt per line.
            `-` is text from standard input. Pipes work too, except for parquet.
        column: the column or key that holds the prompt. Upper and lower case may differ if only one column matches.

    Raises:
        CotrunkError: the file cannot be read, is a device, or is longer than `LIMIT`; it is not UTF-8 text, or is
            damaged (the message gives the line); it lacks the column (the message lists the columns), is a table or
            JSON lines under another suffix, or holds no prompt.
    """
    name = "standard input" if str(path) == "-" else str(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        found = _from_parquet(path, name, column)
    else:
        text = _decode(_read_bytes(path), name)
        if suffix in (".csv", ".tsv"):
            found = _from_table(text, name, column, "\t" if suffix == ".tsv" else ",")
        elif suffix in (".jsonl", ".ndjson"):
            found = _from_json_lines(text, name, column)
        elif suffix == ".json":
            found = _from_json(text, name, column)
        else:
            found = _from_text(text, name, column)

    prompts, blank, length = [], 0, 0
    for where, value in found:
        prompt = checked(value, f"{name}, {where}")
        if prompt:
            prompts.append(prompt)
            length += len(prompt)
            if length > LIMIT:  # a parquet file may unpack to any size
                raise CotrunkError(f"{name} holds more than {LIMIT:,} characters of prompts: divide it.")
        else:
            blank += 1
    if not prompts:
        raise CotrunkError(f"{name} holds no prompt: give a file with at least one.")
    return PromptFile(prompts, blank)


def _read_bytes(path: Path) -> bytearray:
    name = "Standard input" if str(path) == "-" else str(path)
    try:
        if str(path) == "-":
            if sys.stdin is None:
                raise CotrunkError("Standard input is closed: name a file with the prompts.")
            return read_whole(sys.stdin.buffer)
        with path.open("rb") as file:
            return read_whole(file)
    except CotrunkError:
        raise
    except (OSError, ValueError) as error:
        raise CotrunkError(_why_unreadable(name, error)) from error


def _why_unreadable(name: str, error: Exception) -> str:
    if isinstance(error, IsADirectoryError):
        return f"{name} is a folder: name the file with the prompts."
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"There is no file {name}: check the path."
    why = getattr(error, "strerror", None) or error
    remedy = "check its permissions" if isinstance(error, PermissionError) else "name a file with the prompts"
    return f"{name} cannot be read ({why}): {remedy}."


def _decode(data: bytearray, name: str) -> str:
    # spreadsheets write UTF-16 as "Unicode text"; it begins with a byte order mark
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CotrunkError(f"{name} is UTF-16 text: save it as UTF-8.")
    if b"\0" in data:
        raise CotrunkError(f"{name} is binary: give text, CSV, JSON lines, JSON or parquet.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CotrunkError(f"{name} is not UTF-8 (line {line}): save it as UTF-8.") from error


def _lines(text: str) -> list[str]:
    # not str.splitlines: it also splits at form feeds and U+2028, which a prompt may contain
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def checked(value: object, where: str) -> str:
    """Return the prompt without surrounding white space.

    Raises:
        CotrunkError: the value is not a string, or not valid Unicode; the message begins with `where`.
    """
    if not isinstance(value, str):
        kind = "empty" if value is None else f"of type {type(value).__name__}"
        raise CotrunkError(f"{where}: the prompt is {kind}; it must be a string.")
    try:
        value.encode()  # JSON can hold half a surrogate pair, which tokenizers refuse
    except UnicodeEncodeError as error:
        raise CotrunkError(f"{where}: the prompt contains an invalid surrogate; remove it.") from error
    return value.strip()


def _column(available: Sequence[str], column: str, where: str) -> str:
    """Return the column of the file that matches `column`."""
    if list(available).count(column) == 1:
        return column
    if column in available:
        raise CotrunkError(f"{where} has several columns {column!r}: keep one of them.")
    alike = [name for name in available if name.strip().casefold() == column.strip().casefold()]
    if len(alike) == 1:
        return alike[0]
    listed = ", ".join(repr(name) for name in available) or "none"
    raise CotrunkError(f"{where} has no column {column!r}: use one of its columns ({listed}).")


def _from_text(text: str, name: str, column: str) -> Iterator[_Found]:
    if column != COLUMN:
        raise CotrunkError(f"{name} is text, which has no column {column!r}: omit the column.")
    lines = _lines(text)
    first = lines[0].strip() if lines else ""
    remedy = "save it as" if name == "standard input" else "rename it to"
    cells = [cell.strip().strip('"').casefold() for cell in re.split("[,;\t]", first)]
    if column.strip().casefold() in cells:  # otherwise each line, the header included, would become an image
        raise CotrunkError(f"{name} looks like a table, its first line names {column!r}: {remedy} .csv or .tsv.")
    if first.startswith("{") and _is_object(first):
        raise CotrunkError(f"{name} looks like JSON lines: {remedy} .jsonl.")
    for number, line in enumerate(lines, 1):
        yield f"line {number}", line


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _from_table(text: str, name: str, column: str, delimiter: str) -> Iterator[_Found]:
    # strict: otherwise an unclosed quote would swallow the lines after it
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1  # where the current row begins
    try:
        header = next(reader, [])
        if not header:
            raise CotrunkError(f"{name} holds no header line: give a table whose first line names the columns.")
        index = header.index(_column(header, column, name))
        named = max(i for i, cell in enumerate(header, 1) if cell.strip())  # spreadsheets add unnamed columns
        line = reader.line_num + 1
        for row in reader:
            if row and index >= len(row):
                have = f"{len(row)} of {len(header)} columns"
                raise CotrunkError(f"{name}, line {line}: the row has {have} and lacks the prompt; correct that line.")
            if any(cell.strip() for cell in row[named:]):
                kind = "tab" if delimiter == "\t" else "comma"
                raise CotrunkError(
                    f"{name}, line {line}: the row has more cells than the header ({named}); put cells that "
                    f"contain a {kind} in double quotes."
                )
            yield f"line {line}", row[index] if row else ""
            line = reader.line_num + 1
    except csv.Error as error:
        why = "a quote is never closed" if "unexpected end" in str(error) else error
        raise CotrunkError(f"{name}, line {line}: damaged table ({why}); correct that line.") from error


def _from_record(record: object, name: str, where: str, column: str) -> object:
    """Return the prompt of one JSON value: the value itself, or its entry under the column's name."""
    return record[_column(list(record), column, f"{name}, {where},")] if isinstance(record, dict) else record


def _parse(text: str, name: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise CotrunkError(f"{name}, line {line}: invalid JSON ({error.msg}); correct that line.") from error
    except ValueError as error:  # a number with thousands of digits
        raise CotrunkError(f"{name}, line {first_line}: invalid JSON ({error}); correct that line.") from error
    except RecursionError as error:
        raise CotrunkError(
            f"{name}, line {first_line}: JSON nested too deeply; give strings or flat objects."
        ) from error


def _from_json_lines(text: str, name: str, column: str) -> Iterator[_Found]:
    for number, line in enumerate(_lines(text), 1):
        where = f"line {number}"
        yield where, _from_record(_parse(line, name, number), name, where, column) if line.strip() else ""


def _from_json(text: str, name: str, column: str) -> Iterator[_Found]:
    if not text.strip():
        return
    records = _parse(text, name, 1)
    if not isinstance(records, list):
        raise CotrunkError(f"{name} is not a JSON list: give a list of strings or of objects.")
    for number, record in enumerate(records, 1):
        where = f"item {number}"
        yield where, _from_record(record, name, where, column)


def _from_parquet(path: Path, name: str, column: str) -> Iterator[_Found]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise CotrunkError(f"{name} needs pyarrow: pip install 'cotrunk[parquet]'.") from error
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise CotrunkError(_why_unreadable(name, error)) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise CotrunkError(f"{name} is a pipe or a device: parquet needs a file.")
    row = 0
    try:
        with path.open("rb") as opened:
            file = parquet.ParquetFile(opened)
            wanted = _column(file.schema_arrow.names, column, name)
            for batch in file.iter_batches(columns=[wanted]):
                for value in batch.column(0):
                    row += 1
                    yield f"row {row}", value.as_py()
    except UnicodeDecodeError as error:
        raise CotrunkError(f"{name}, row {row}: the prompt is not UTF-8; correct it.") from error
    except (IsADirectoryError, PermissionError) as error:
        raise CotrunkError(_why_unreadable(name, error)) from error
    except (ArrowException, OSError) as error:
        raise CotrunkError(f"{name} is not a readable parquet file: write it again.") from error
