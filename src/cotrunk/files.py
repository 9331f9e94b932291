"""Files that are whole or absent: written under a temporary name, then renamed; and files that are read whole."""

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import CotrunkError

PART = ".cotrunk-part"  # how the temporary names end, and no file of a user's
LIMIT = 2**30  # bytes of a file that is read whole; ten times the prompts, or the plan, of a million images


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` (no space, no permission, ...) into one sentence."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise CotrunkError(f"Cannot write {path}: {why}. Make room or choose another place.") from error


def read_whole(file: BinaryIO) -> bytearray:
    """The content of an open file, pipe or terminal, up to `LIMIT` bytes: some never end.

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
    """The content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON as its standard has it: broken, nested too deeply, with Infinity or NaN.
    """
    with path.open("rb") as file:
        text = read_whole(file).decode("utf-8")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def check_folder(path: Path) -> None:
    """That a folder is there to be written to, or can be made; it is not made.

    Raises:
        CotrunkError: it cannot be written.
    """
    try:
        there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        why = error.strerror or error
        raise CotrunkError(f"Cannot write to {path}: {why}. Choose another --out.") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a log in JSON lines. A line that a kill or a power cut has torn is left out, and so is any other
    that does not hold an object."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def write_bytes(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a killed run leaves no half file.

    Raises:
        CotrunkError: the file cannot be written, or is a folder.
    """
    if os.path.isdir(path):  # noqa: PTH112 (Path's own raises where the name is too long)
        raise CotrunkError(f"{path} is a folder: name a file.")
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    with writing(path):
        try:
            with part.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())  # or a power cut may leave the new name on old or empty blocks
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that a killed run left in this folder (and not below it)."""
    for part in folder.glob(f".*{PART}"):
        with suppress(OSError):
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8. Half a surrogate pair, as in names of files that are not UTF-8, becomes its escape, which is
    the one that JSON has for it."""
    write_bytes(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))
