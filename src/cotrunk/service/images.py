"""The files of images and previews, on a disk or at any URL that fsspec knows."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import suppress

from ..files import PART
from ..storage.files import StoredFiles

NAME = re.compile(r"img_[0-9a-f]{24}(\.[a-z0-9-]{1,20}){1,2}")  # an id of the store, and what kind of file it is


class ImageFiles:
    """A folder of files that are there whole or not at all.

    Args:
        url: a folder, or a URL such as `s3://bucket/folder` or `memory://images`.
        pauses: seconds before each further attempt after an error of the network; none where a request waits.

    Raises:
        CotrunkError: it cannot be written, or fsspec needs another package for it.
    """

    def __init__(self, url: str, pauses: Sequence[float] = ()) -> None:
        self._stored = StoredFiles(url, "--images", pauses)
        self._stored.make()

    def write(self, name: str, content: bytes) -> None:
        """Write a file; one of this name is replaced.

        Args:
            name: the id of the image with a suffix, such as `.png` or `.partial-0.png`.
            content: what it holds.

        Raises:
            CotrunkError: it cannot be written.
        """
        self._stored.put(_checked(name), content)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none, or the name is not one of an image.

        Raises:
            CotrunkError: it cannot be read.
        """
        return self._stored.get(name) if NAME.fullmatch(name) else None

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return [name for name in self._stored.names() if NAME.fullmatch(name)]

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
        self._stored.remove(_checked(name))

    def remove_parts(self, before: float) -> None:
        """Remove temporary files that killed processes left on a disk before a time, in seconds since 1970."""
        if self._stored.folder is None:
            return
        for part in self._stored.folder.glob(f".*{PART}"):
            with suppress(FileNotFoundError):
                if part.stat().st_mtime < before:
                    part.unlink()


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of an image's file")
    return name
