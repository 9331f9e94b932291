"""The formats of prompt files: each gives a place in the file, and the values of the columns there."""

import csv
import io
import json
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CotrunkError
from ..files import read_whole
from .prompt_columns import Columns

# a place in the file ("line 3", "item 2", "row 7"), and the values there; None for a comment
Found = tuple[str, dict[str, object] | None]


def read_values(path: Path, columns: Columns) -> Iterator[Found]:
    """Yield the values of each row of a prompt file; its suffix gives the format.

    Raises:
        CotrunkError: as `prompts.read_prompts`.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _from_parquet(path, columns)
    text = _decode(_read_bytes(path), columns.file)
    if suffix in (".csv", ".tsv"):
        return _from_table(text, columns, "\t" if suffix == ".tsv" else ",")
    if suffix in (".jsonl", ".ndjson"):
        return _from_json_lines(text, columns)
    return _from_json(text, columns) if suffix == ".json" else _from_text(text, columns)


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


def _from_text(text: str, columns: Columns) -> Iterator[Found]:
    name = columns.file
    if columns.asked:
        named = next(iter(columns.asked.values()))
        raise CotrunkError(f"{name} is text, which has no column {named!r}: omit the columns.")
    lines = _lines(text)
    first = lines[0].strip() if lines else ""
    remedy = "save it as" if name == "standard input" else "rename it to"
    cells = [cell.strip().strip('"').casefold() for cell in re.split("[,;\t]", first)]
    if "prompt" in cells:  # otherwise each line, the header included, would become an image
        raise CotrunkError(f"{name} looks like a table, its first line names 'prompt': {remedy} .csv or .tsv.")
    if first.startswith("{") and _is_object(first):
        raise CotrunkError(f"{name} looks like JSON lines: {remedy} .jsonl.")
    for number, line in enumerate(lines, 1):
        prompt = line.strip()
        if prompt.startswith("#"):
            yield f"line {number}", None
        else:
            yield f"line {number}", {"prompt": prompt[1:] if prompt.startswith("\\#") else prompt}


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _from_table(text: str, columns: Columns, delimiter: str) -> Iterator[Found]:
    # strict: otherwise an unclosed quote would swallow the lines after it
    is_plain = delimiter == "\t" and _has_plain_quotes(text)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if is_plain else csv.QUOTE_MINIMAL,
        strict=True,
    )
    name, line = columns.file, 1  # where the current row begins
    try:
        header = next(reader, [])
        if not header:
            raise CotrunkError(f"{name} holds no header line: give a table whose first line names the columns.")
        index = {field: header.index(column) for field, column in columns.choose(header, name).items()}
        named = max(i for i, cell in enumerate(header, 1) if cell.strip())  # spreadsheets add unnamed columns
        line = reader.line_num + 1
        for row in reader:
            if row and index["prompt"] >= len(row):
                have = f"{len(row)} of {len(header)} columns"
                raise CotrunkError(f"{name}, line {line}: the row has {have} and lacks the prompt; correct that line.")
            if any(cell.strip() for cell in row[named:]):
                kind = "tab" if delimiter == "\t" else "comma"
                raise CotrunkError(
                    f"{name}, line {line}: the row has more cells than the header ({named}); put cells that "
                    f"contain a {kind} in double quotes."
                )
            yield f"line {line}", {field: row[i] for field, i in index.items() if i < len(row)}
            line = reader.line_num + 1
    except csv.Error as error:
        why = "a quote is never closed" if "unexpected end" in str(error) else error
        raise CotrunkError(f"{name}, line {line}: damaged table ({why}); correct that line.") from error


def _has_plain_quotes(text: str) -> bool:
    """Return whether the quotes of a tab-separated table are text: read as quoting, they would damage it.

    Spreadsheets quote cells of such tables, and other programs (that of PartiPrompts.tsv, for example) do not.
    """
    try:
        for _ in csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True):
            pass
    except csv.Error:
        return len({line.count("\t") for line in text.splitlines() if line}) == 1
    return False


def _from_record(record: object, columns: Columns, where: str) -> dict[str, object]:
    """Return the values of one JSON value: a prompt alone, or an object."""
    if not isinstance(record, dict):
        return {"prompt": record}
    chosen = columns.choose(tuple(record), f"{columns.file}, {where},", is_whole=False)
    return {field: record[column] for field, column in chosen.items()}


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


def _from_json_lines(text: str, columns: Columns) -> Iterator[Found]:
    for number, line in enumerate(_lines(text), 1):
        where = f"line {number}"
        record = _parse(line, columns.file, number) if line.strip() else ""
        yield where, _from_record(record, columns, where)
    columns.check_all_found()


def _from_json(text: str, columns: Columns) -> Iterator[Found]:
    if not text.strip():
        return
    records = _parse(text, columns.file, 1)
    if not isinstance(records, list):
        raise CotrunkError(f"{columns.file} is not a JSON list: give a list of strings or of objects.")
    for number, record in enumerate(records, 1):
        where = f"item {number}"
        yield where, _from_record(record, columns, where)
    columns.check_all_found()


def _from_parquet(path: Path, columns: Columns) -> Iterator[Found]:
    name = columns.file
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
            wanted = columns.choose(file.schema_arrow.names, name)
            for batch in file.iter_batches(columns=list(wanted.values())):
                for values in zip(*(batch[column] for column in wanted.values()), strict=True):
                    row += 1
                    yield f"row {row}", {field: value.as_py() for field, value in zip(wanted, values, strict=True)}
    except UnicodeDecodeError as error:
        raise CotrunkError(f"{name}, row {row}: a text is not UTF-8; correct it.") from error
    except (IsADirectoryError, PermissionError) as error:
        raise CotrunkError(_why_unreadable(name, error)) from error
    except (ArrowException, OSError) as error:
        raise CotrunkError(f"{name} is not a readable parquet file: write it again.") from error
