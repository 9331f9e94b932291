"""Write files whole or not at all, by renaming a temporary file; read files up to a limit on their size."""

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from .errors import CotrunkError

PART = ".cotrunk-part"  # suffix of the temporary names; no file of a user has it
LIMIT = 2**30  # largest file that is read, in bytes: ten times the prompts, or the plan, of a million images


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` (no space, no permission, ...) into a `CotrunkError`."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise CotrunkError(f"Cannot write {path}: {why}. Free some space or choose another path.") from error


def read_whole(file: BinaryIO) -> bytearray:
    """Return the content of an open file, pipe or terminal, up to `LIMIT` bytes: some never end.

    Raises:
        ValueError: it is a device such as /dev/zero, or longer than the limit.
        OSError: it cannot be read.
    """
    mode = os.fstat(file.fileno()).st_mode if _has_descriptor(file) else 0
    if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not file.isatty()):
        raise ValueError("it is a device, not a file or a pipe")
    content = bytearray()
    while chunk := file.read(2**20):
        content += chunk
        if len(content) > LIMIT:
            raise ValueError(f"it is longer than {LIMIT // 2**20:,} MiB")
    return content


def _has_descriptor(file: BinaryIO) -> bool:
    try:
        file.fileno()
    except (OSError, AttributeError):  # a file in memory
        return False
    return True


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not standard JSON: damaged, nested too deeply, or with Infinity or NaN.
    """
    with path.open("rb") as file:
        text = read_whole(file).decode("utf-8")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def check_folder(path: Path, option: str = "--out") -> None:
    """Check that a folder is writable or can be created, without creating it.

    Args:
        option: the one that names it, for messages.

    Raises:
        CotrunkError: it cannot be written.
    """
    try:
        existing = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        why = error.strerror or error
        raise CotrunkError(f"Cannot write to {path}: {why}. Choose another {option}.") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a log in JSON lines. Incomplete lines are ignored: a killed process may leave one."""
    return lines_of(path.read_bytes())


def lines_of(content: bytes) -> list[dict[str, Any]]:
    """Return the objects in the content of a log in JSON lines, as `read_lines` does."""
    lines = []
    for text in content.decode("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def read_entries(path: Path, count: int) -> list[Any]:
    """Return the first entries of a file with one JSON value per line.

    Raises:
        OSError: it cannot be read.
        ValueError: one of these lines is not standard JSON, or there are fewer lines.
    """
    with path.open("rb") as file:
        lines = read_whole(file).split(b"\n")[:count]
    if len(lines) < count or (count and not lines[-1]):
        raise ValueError(f"{path.name} has fewer than {count:,} lines")
    try:
        entries = json.loads(b"[" + b",".join(lines) + b"]", parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    if len(entries) != count:
        raise ValueError(f"{path.name} does not have one value per line")
    return entries


def write_entries(path: Path, entries: Iterable[Any], default: Callable[[Any], Any] | None = None) -> None:
    """Write one JSON value per line, whole or not at all.

    Args:
        default: returns the JSON values of an object of another type.

    Raises:
        CotrunkError: the file cannot be written, or is a folder.
    """
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=default).encode

    def write(file: BinaryIO) -> None:
        for entry in entries:
            file.write(encode(entry).encode("utf-8", "backslashreplace") + b"\n")

    write_bytes(path, write)


def write_bytes(path: Path, write: Callable[[BinaryIO], object], mode: int = 0o666) -> None:
    """Let `write` fill a temporary file next to `path`, then rename it: a killed run leaves no half file.

    Args:
        mode: the permissions of the file, from which the process's umask is taken away.

    Raises:
        CotrunkError: the file cannot be written, or is a folder.
    """
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises if the name is too long)
        raise CotrunkError(f"{path} is a folder: name a file.")
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    with writing(path):
        try:
            with open(part, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())  # otherwise a power cut may leave the new name on old or empty blocks
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that a killed run left in this folder, but not below it."""
    for part in folder.glob(f".*{PART}"):
        with suppress(OSError):
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8. Half a surrogate pair, from a file name that is not UTF-8, becomes the escape of JSON."""
    write_bytes(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def write_json(path: Path, values: Mapping[str, Any], depth: int) -> None:
    """Write JSON values piece by piece, so that the text is never whole in memory. Iterators are written as lists.

    Args:
        path: of the file.
        values: the values.
        depth: to how many levels each entry has a line of its own.
    """
    pieces = chain(_pieces(values, depth, 0), ["\n"])
    write_bytes(path, lambda file: file.writelines(piece.encode() for piece in pieces))


def _pieces(value: Any, depth: int, level: int) -> Iterator[str]:
    is_object = isinstance(value, Mapping)
    if depth == level or not value or not (is_object or isinstance(value, list | tuple | Iterator)):
        yield json.dumps(value)
        return
    line, opening = "\n" + " " * (level + 1), "{" if is_object else "["
    for entry in value.items() if is_object else value:
        yield opening + line
        if is_object:
            yield f"{json.dumps(entry[0])}: "
            yield from _pieces(entry[1], depth, level + 1)
        elif depth == level + 1:
            yield json.dumps(entry)
        else:
            yield from _pieces(entry, depth, level + 1)
        opening = ","
    if opening == "[":  # an iterator without an entry
        yield "["
    yield line[:-1] + ("}" if is_object else "]")
