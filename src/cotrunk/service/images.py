"""The files of images and previews, on a disk or at any URL that fsspec knows."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..errors import CotrunkError, first_line
from ..files import PART, check_folder, write_bytes, writing

NAME = re.compile(r"img_[0-9a-f]{24}(\.[a-z0-9-]{1,20}){1,2}")  # an id of the store, and what kind of file it is


class ImageFiles:
    """A folder of files that are there whole or not at all.

    Args:
        url: a folder, or a URL such as `s3://bucket/folder` or `memory://images`.

    Raises:
        CotrunkError: it cannot be written, or fsspec needs another package for it.
    """

    def __init__(self, url: str) -> None:
        try:
            self._system, self._root = fsspec.core.url_to_fs(url)
        except Exception as error:  # the packages of the file systems raise errors of their own
            raise CotrunkError(
                f"Images cannot be kept at {url}: {first_line(error)}. Install what it needs, or name a folder."
            ) from None
        self._is_local = isinstance(self._system, LocalFileSystem)
        if self._is_local:
            check_folder(Path(self._root))
            with writing(Path(self._root)):
                Path(self._root).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """Write a file; one of this name is replaced.

        Args:
            name: the id of the image with a suffix, such as `.png` or `.partial-0.png`.
            content: what it holds.

        Raises:
            CotrunkError: it cannot be written.
        """
        path = self._path(name)
        if self._is_local:
            write_bytes(Path(path), lambda file: file.write(content))
            return
        try:
            self._system.pipe_file(path, content)  # one put, which object stores show whole or not at all
        except Exception as error:
            raise CotrunkError(f"Cannot write {path}: {first_line(error)}. Is the storage reachable?") from error

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none, or the name is not one of an image."""
        if not NAME.fullmatch(name):
            return None
        try:
            content: bytes = self._system.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return content

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        self._system.invalidate_cache()
        found = self._system.ls(self._root, detail=False) if self._system.exists(self._root) else ()
        return sorted(name for name in (entry.rpartition("/")[2] for entry in found) if NAME.fullmatch(name))

    def remove(self, images: Iterable[str], names: Sequence[str] | None = None) -> None:
        """Remove all files of some images.

        Args:
            images: their ids.
            names: of all files, sorted; None looks for them.
        """
        names = self.names() if names is None else names
        for image in images:
            for place in range(bisect_left(names, f"{image}."), len(names)):
                if not names[place].startswith(f"{image}."):
                    break
                self.remove_file(names[place])

    def remove_file(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def remove_parts(self, before: float) -> None:
        """Remove temporary files that killed processes left on a disk before a time, in seconds since 1970."""
        if not self._is_local:
            return
        for part in Path(self._root).glob(f".*{PART}"):
            with suppress(FileNotFoundError):
                if part.stat().st_mtime < before:
                    part.unlink()

    def _path(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of an image's file")
        return f"{self._root}/{name}"
