"""Where painters write: a folder that all machines see, or a URL that fsspec knows, such as s3://bucket/run."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import CotrunkError, first_line
from ..files import write_bytes, writing


def is_url(place: str) -> bool:
    """Return whether this is a URL, and not the path of a folder."""
    return "://" in place


class Store:
    """Files that are there whole or not at all, under names relative to one folder.

    Args:
        place: the folder, or its URL.

    Raises:
        CotrunkError: fsspec does not know the URL, or needs another package for it.
    """

    def __init__(self, place: str) -> None:
        self.place, self._files = place, None
        if not is_url(place):
            return
        try:
            import fsspec

            self._files, self._root = fsspec.core.url_to_fs(place)
        except Exception as error:  # the packages of the file systems raise errors of their own
            raise CotrunkError(
                f"{place} cannot be used: {first_line(error)}. Install what it needs, or name a folder."
            ) from None

    def put(self, name: str, content: bytes) -> None:
        """Write a file; one of this name is replaced.

        Raises:
            CotrunkError: it cannot be written.
        """
        if self._files is None:
            path = Path(self.place, name)
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, lambda file: file.write(content))
            return
        self._do("write", name, lambda files, path: files.pipe_file(path, content))

    def get(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none.

        Raises:
            CotrunkError: it cannot be read.
        """
        if self._files is None:
            try:
                return Path(self.place, name).read_bytes()
            except FileNotFoundError:
                return None
            except OSError as error:
                raise CotrunkError(f"Cannot read {name} in {self.place}: {error.strerror or error}.") from error
        return self._do("read", name, lambda files, path: files.cat_file(path))

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, without temporary ones; none if there is no such folder."""
        if self._files is None:
            try:
                found = os.listdir(Path(self.place, folder))  # noqa: PTH208 (names only)
            except FileNotFoundError:
                found = []
        else:
            self._files.invalidate_cache()
            found = self._do("list", folder, lambda files, path: files.ls(path, detail=False)) or []
        names = (name.rstrip("/").rpartition("/")[2] for name in found)
        return sorted(f"{folder}/{name}" for name in names if not name.startswith("."))

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        if self._files is None:
            with suppress(FileNotFoundError):
                Path(self.place, name).unlink()
        else:
            self._do("remove", name, lambda files, path: files.rm_file(path))

    def _do(self, verb: str, name: str, work: Any) -> Any:
        """Do something with a file of the URL; return None if it is not there."""
        try:
            return work(self._files, f"{self._root}/{name}")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise CotrunkError(
                f"Cannot {verb} {name} in {self.place}: {first_line(error)}. Is the storage reachable?"
            ) from error
