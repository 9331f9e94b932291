"""Files that are whole or absent: written under a temporary name, then renamed."""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import CotrunkError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` (no space, no permission, ...) into one sentence."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise CotrunkError(f"Cannot write {path}: {why}. Make room or choose another place.") from error


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
    """The lines of a log in JSON. One that a kill or a power cut has torn is passed over."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def write_bytes(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a killed run leaves no half file.

    Raises:
        CotrunkError: the file cannot be written, or is a folder.
    """
    if path.is_dir():
        raise CotrunkError(f"{path} is a folder: name a file.")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
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
    for part in folder.glob(".*.part"):
        if re.fullmatch(r"\..+\.\d+\.part", part.name):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, lambda file: file.write(text.encode("utf-8")))
