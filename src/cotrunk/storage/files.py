"""Files in a folder, or at any URL that fsspec knows, such as s3://bucket/run."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import CotrunkError, first_line
from ..files import check_folder, write_bytes, writing


class StorageError(CotrunkError):
    """A file of a URL, or of a shared folder, cannot be written, read, listed or removed."""


WILDCARDS = frozenset("*?[")  # to fsspec's `rm`, also in the name of a run
# a scheme such as s3://, perhaps after others (simplecache::s3://); one letter is a drive of Windows
URL = re.compile(r"([a-z][a-z0-9+.-]+::)*[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def is_url(place: str) -> bool:
    """Return whether this is a URL, and not the path of a folder."""
    return URL.match(place) is not None


def shown_place(place: str) -> str:
    """Return a folder or URL for messages and logs: without the user and password of a URL."""
    return re.sub(r"://[^/@]*@", "://", place)


class StoredFiles:
    """Files that are there whole or not at all, under names relative to one folder.

    Args:
        place: the folder, or its URL.
        option: the one that names it, for messages.

    Attributes:
        folder: the folder, if it is one of this machine's file system; None elsewhere.
        system: the file system of fsspec to which the other URLs belong; None for a folder.
        root: the path of the place in that file system.

    Raises:
        CotrunkError: fsspec is missing, does not know the URL, or needs another package for it.
    """

    def __init__(self, place: str, option: str = "--out") -> None:
        self.place, self.option = place, option
        self.folder: Path | None = Path(place).expanduser()
        self.system: Any = None
        self.root = place
        if not is_url(place):
            return
        try:
            import fsspec
            from fsspec.implementations.local import LocalFileSystem

            self.system, self.root = fsspec.core.url_to_fs(place)
        except Exception as error:  # the packages of the file systems raise errors of their own
            raise CotrunkError(
                f"{shown_place(place)} cannot be used: {first_line(error)}. Install what it needs, or name a folder "
                f"with {option}."
            ) from None
        self.folder = None
        if isinstance(self.system, LocalFileSystem):
            self.folder, self.system = Path(self.root), None

    def path_of(self, name: str) -> str:
        """Return the path of a file in its file system."""
        return f"{self.root}/{name}" if name else self.root

    def make(self) -> None:
        """Make the folder if it does not exist; the places of URLs need none.

        Raises:
            CotrunkError: it cannot be written.
        """
        if self.folder is not None:
            check_folder(self.folder, self.option)
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, content: bytes) -> None:
        """Write a file; one of this name is replaced.

        Raises:
            CotrunkError: it cannot be written; `StorageError` if it is at a URL.
        """
        if self.folder is None:  # one put, which object stores show whole or not at all
            self._write(name, content)
            return
        path = self.folder / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, lambda file: file.write(content))

    def get(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none.

        Raises:
            StorageError: it cannot be read.
        """
        if self.folder is None:
            content: bytes | None = self._do("read", name, lambda files, path: files.cat_file(path))
            return content
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failure("read", name, error.strerror or error) from error

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the files in a folder, without temporary ones; none if there is no such folder.

        Raises:
            StorageError: they cannot be listed.
        """
        if self.folder is None:
            self.system.invalidate_cache()
            found = self._do("list", folder, lambda files, path: files.ls(path, detail=False)) or []
        else:
            try:
                found = os.listdir(self.folder / folder)  # noqa: PTH208 (names only)
            except FileNotFoundError:
                found = []
            except OSError as error:
                raise self._failure("list", folder, error.strerror or error) from error
        names = (name.rstrip("/").rpartition("/")[2] for name in found)
        return sorted(f"{folder}/{name}" if folder else name for name in names if not name.startswith("."))

    def remove(self, name: str) -> None:
        """Remove a file if it is there.

        Raises:
            StorageError: it cannot be removed.
        """
        if self.folder is None:
            self._do("remove", name, lambda files, path: files.rm_file(path))
            return
        try:
            with suppress(FileNotFoundError):
                (self.folder / name).unlink()
        except OSError as error:
            raise self._failure("remove", name, error.strerror or error) from error

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it, as far as that is possible."""
        if self.folder is not None:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            return
        with suppress(StorageError):
            self.system.invalidate_cache()
            if not WILDCARDS.intersection(self.path_of(name)):
                self._do("remove", name, lambda files, path: files.rm(path, recursive=True))
                return
            for path in self._do("list", name, lambda files, path: files.find(path)) or []:
                self._do("remove", name, lambda files, _, path=path: files.rm_file(path))

    def _write(self, name: str, content: bytes) -> None:
        """Write a file of the URL, and the folder in which it lies where the file system has folders."""
        path = self.path_of(name)
        try:
            try:
                self.system.pipe_file(path, content)
            except FileNotFoundError:
                self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
                self.system.pipe_file(path, content)
        except Exception as error:  # the packages of the file systems raise errors of their own
            raise self._failure("write", name, first_line(error)) from error

    def _do(self, verb: str, name: str, work: Any) -> Any:
        """Do something with a file of the URL; return None if it is not there."""
        try:
            return work(self.system, self.path_of(name))
        except FileNotFoundError:
            return None
        except Exception as error:  # the packages of the file systems raise errors of their own
            raise self._failure(verb, name, first_line(error)) from error

    def _failure(self, verb: str, name: str, why: object) -> StorageError:
        place = shown_place(self.place)
        where = f"{name} in {place}" if name else place
        return StorageError(
            f"Cannot {verb} {where}: {why}. Check that it can be reached, or name another place with {self.option}."
        )
