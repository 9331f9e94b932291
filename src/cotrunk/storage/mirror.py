"""Copies of the files of a folder at another place: for files that grow, which object stores do not have."""

from collections.abc import Iterable
from pathlib import Path

from ..files import write_bytes
from .files import StoredFiles


class Mirror:
    """Puts the files of a folder at a place, each again when it has changed. Hidden files are left out.

    Args:
        folder: of this machine.
        files: the place.
    """

    def __init__(self, folder: Path, files: StoredFiles) -> None:
        self._folder, self._files = folder, files
        self._states: dict[Path, tuple[int, int]] = {}  # as they were last copied

    def pull(self, names: Iterable[str]) -> None:
        """Copy files from the place that are there and differ from those of the folder.

        Raises:
            CotrunkError: one cannot be read or written.
        """
        for name in names:
            path = self._folder / name
            content = self._files.get(name)
            if content is not None and not (path.exists() and path.read_bytes() == content):
                write_bytes(path, lambda file, content=content: file.write(content))  # type: ignore[misc]
                self._states[path] = _state(path)

    def push(self) -> None:
        """Copy files that have changed to the place, in the order in which they were written.

        Raises:
            CotrunkError: one cannot be read or written.
        """
        states = {path: _state(path) for path in self._folder.rglob("*") if path.is_file() and path.name[0] != "."}
        for path, state in sorted(states.items(), key=lambda entry: entry[1]):
            if self._states.get(path) != state:
                self._files.put(path.relative_to(self._folder).as_posix(), path.read_bytes())
                self._states[path] = state


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
