"""Files in a folder, or at any URL that fsspec knows, such as s3://bucket/run."""

import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import CotrunkError, first_line
from ..files import check_folder, write_bytes, writing
from .transient import PAUSES, is_transient
from .urls import SECRET, is_url, shown_place, without_secrets

log = logging.getLogger("cotrunk.storage")


class StorageError(CotrunkError):
    """A file of a URL, or of a shared folder, cannot be written, read, listed or removed."""


WILDCARDS = frozenset("*?[")  # to fsspec's `rm`, also in the name of a run
LONGEST = 200  # characters that are quoted of an error


class StoredFiles:
    """Files that are there whole or not at all, under names relative to one folder.

    What fails because of the network or a busy server is tried again, with a line in the log. The same is done in a
    folder, which may be a mounted bucket or on a network file system.

    Args:
        place: the folder, or its URL.
        option: the one that names it, for messages.
        pauses: seconds before each further attempt.
        is_private: whether folders and files of a file system are only for the user who runs cotrunk.

    Attributes:
        folder: the folder, if it is one of this machine's file system; None elsewhere.
        system: the file system of fsspec to which the other URLs belong; None for a folder.
        root: the path of the place in that file system.

    Raises:
        CotrunkError: fsspec is missing, does not know the URL, or needs another package for it.
    """

    def __init__(
        self, place: str, option: str = "--out", pauses: Sequence[float] = PAUSES, *, is_private: bool = False
    ) -> None:
        self.place, self.option, self._pauses = place, option, pauses
        self._folder_mode, self._file_mode = (0o700, 0o600) if is_private else (0o777, 0o666)
        self.folder: Path | None = Path(place).expanduser()
        self.system: Any = None
        self.root = place
        if not is_url(place):
            return
        if place.rstrip("/").endswith(":"):
            raise CotrunkError(f"{place} names no bucket: write {place.rstrip('/')}//BUCKET/FOLDER with {option}.")
        try:
            import fsspec
            from fsspec.implementations.local import LocalFileSystem

            self.system, self.root = fsspec.core.url_to_fs(place)
        except Exception as error:  # the packages of the file systems raise errors of their own
            raise CotrunkError(
                f"{shown_place(place)} cannot be used: {without_secrets(first_line(error), place)}. Install what it "
                f"needs, or name a folder with {option}."
            ) from None
        if any(secret in self.root for secret in SECRET.findall(place)):  # it would be part of the bucket's name
            raise CotrunkError(
                f"{shown_place(place)} is given with a user and a password, which URLs of this kind cannot hold: leave "
                f"them out of {option}, and set them as the package for the URL asks for (for S3, in "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)."
            )
        if hasattr(self.system, "split_path"):  # into bucket and key: s3:///bucket is taken for s3://bucket
            self.root = self.root.lstrip("/")
        self.folder = None
        if isinstance(self.system, LocalFileSystem):
            self.folder, self.system = Path(self.root), None

    @property
    def takes_threads(self) -> bool:
        """Return whether several threads may write to the URL at the same time: some systems have one connection."""
        return self.system is not None and bool(self.system.async_impl)

    def path_of(self, name: str) -> str:
        """Return the path of a file in its file system."""
        return f"{self.root}/{name}" if name else self.root

    def make(self) -> None:
        """Make the folder if it does not exist. The place of a URL needs none: check that it can be written.

        Raises:
            CotrunkError: it cannot be written.
        """
        if self.folder is not None:
            check_folder(self.folder, self.option)
            with writing(self.folder):
                self.folder.mkdir(self._folder_mode, parents=True, exist_ok=True)
            return
        name = f".cotrunk-{uuid.uuid4().hex}"
        self.put(name, b"")
        self.remove(name)

    def put(self, name: str, content: bytes) -> None:
        """Write a file; one of this name is replaced.

        Raises:
            CotrunkError: it cannot be written; `StorageError` if it is at a URL.
        """
        self._do("write", name, lambda: self._write(name, content))

    def get(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none.

        Raises:
            StorageError: it cannot be read.
        """
        if self.folder is None:
            content: bytes | None = self._do("read", name, lambda: self.system.cat_file(self.path_of(name)))
        else:
            content = self._do("read", name, (self.folder / name).read_bytes)
        return content

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the files in a folder, without temporary ones; none if there is no such folder.

        Raises:
            StorageError: they cannot be listed.
        """
        if self.folder is None:
            found = self._listed(folder, lambda path: self.system.ls(path, detail=False))
        else:
            root = self.folder / folder
            found = self._do("list", folder, lambda: os.listdir(root))  # noqa: PTH208 (names only)
        below = (name.rstrip("/").rpartition("/")[2] for name in found or ())
        return _named(folder, below)

    def names_below(self, folder: str = "") -> list[str]:
        """Return the names of the files in a folder and in those below it, without temporary ones.

        Object stores need one request per 1,000 files, whatever folders they are in.

        Raises:
            StorageError: they cannot be listed.
        """
        if self.folder is None:
            top = self.path_of(folder).strip("/")
            found = self._listed(folder, lambda path: _files_at(self.system, path)) or ()
            below = [path.lstrip("/").removeprefix(top).lstrip("/") for path in found]
        else:
            root = self.folder / folder
            below = self._do("list", folder, lambda: _files_in(root))
        return _named(folder, (name for name in below if name and name[-1] != "/"))

    def remove(self, name: str) -> None:
        """Remove a file if it is there.

        Raises:
            StorageError: it cannot be removed.
        """
        if self.folder is None:
            self._do("remove", name, lambda: self.system.rm_file(self.path_of(name)))
        else:
            self._do("remove", name, (self.folder / name).unlink)

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it, as far as that is possible."""
        if self.folder is not None:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            return
        with suppress(StorageError):
            if not WILDCARDS.intersection(self.path_of(name)):
                self.system.invalidate_cache()
                self._do("remove", name, lambda: self.system.rm(self.path_of(name), recursive=True))
                return
            for path in self._listed(name, self.system.find) or ():
                self._do("remove", name, lambda path=path: self.system.rm_file(path))  # type: ignore[misc]

    def _write(self, name: str, content: bytes) -> None:
        """Write a file, and the folder in which it lies where the file system has folders."""
        if self.folder is not None:
            path = self.folder / name
            with writing(path):
                path.parent.mkdir(self._folder_mode, parents=True, exist_ok=True)
            write_bytes(path, lambda file: file.write(content), self._file_mode)
            return
        at = self.path_of(name)  # one put, which object stores show whole or not at all
        try:
            self.system.pipe_file(at, content)
        except FileNotFoundError:
            self._make_folders(at.rpartition("/")[0])
            self.system.pipe_file(at, content)

    def _make_folders(self, folder: str) -> None:
        """Make a folder where the file system has folders, but never a bucket, whose name may be mistyped."""
        if folder.startswith("/"):  # the paths of object stores begin with their bucket
            self.system.makedirs(folder, exist_ok=True)
            return
        parts = folder.split("/")
        for end in range(2, len(parts) + 1):
            with suppress(FileExistsError):
                self.system.mkdir("/".join(parts[:end]), create_parents=False)

    def _listed(self, folder: str, work: Callable[[str], Any]) -> Any:
        """List a folder of the URL as it is now. Return None if it is not there."""
        self.system.invalidate_cache()
        found = self._do("list", folder, lambda: work(self.path_of(folder)))
        self.system.invalidate_cache()  # it would hold a record of a kilobyte per file
        return found

    def _do(self, verb: str, name: str, work: Callable[[], Any]) -> Any:
        """Do something with a file, again if an error is transient. Return None if there is nothing to read or remove.

        Raises:
            CotrunkError: it cannot be done.
        """
        pauses = iter(self._pauses)
        while True:
            try:
                return work()
            except Exception as error:  # the packages of the file systems raise errors of their own
                if isinstance(error, FileNotFoundError) and verb != "write":
                    return None
                pause = next(pauses, None) if is_transient(error) else None
                if pause is None and isinstance(error, CotrunkError):  # a folder cannot be written
                    raise
                said = self._said(verb, name, error)
                if pause is None:
                    is_refused = self.folder is None and (isinstance(error, PermissionError) or "redentials" in said)
                    check = "the credentials and what they allow" if is_refused else "that it can be reached"
                    raise StorageError(f"{said}. Check {check}, or name another place with {self.option}.") from error
            log.warning("%s; trying again in %g s", said, pause)
            time.sleep(pause)

    def _said(self, verb: str, name: str, error: Exception) -> str:
        """Return what is the matter, without the remedy."""
        place, cause = shown_place(self.place), error.__cause__ if isinstance(error, CotrunkError) else error
        why = without_secrets(getattr(cause, "strerror", None) or first_line(error), self.place)
        why = why if len(why) <= LONGEST else f"{why[:LONGEST]}..."
        return f"Cannot {verb} {f'{name} in ' if name else ''}{place}: {why.rstrip('.')}"


def _named(folder: str, below: Iterable[str]) -> list[str]:
    """Return names below a folder as they are below the place, sorted, without temporary files and hidden folders."""
    return sorted(f"{folder}/{name}" if folder else name for name in below if "/." not in f"/{name}")


def _files_in(folder: Path) -> list[str]:
    """Return the files in a folder of this machine and in those below it, by their paths below it."""
    return [
        "/".join((*Path(at).relative_to(folder).parts, name))
        for at, _, names in os.walk(folder, onerror=_unless_gone)
        for name in names
    ]


def _files_at(system: Any, path: str) -> list[str]:
    """Return the paths of the files at a path of a file system of fsspec and in the folders below it."""
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    own = type(system)
    has_own = own._find is not AsyncFileSystem._find if system.async_impl else own.find is not AbstractFileSystem.find
    if has_own:  # as of all object stores
        whole: list[str] = system.find(path)
        return whole
    found, folders = list[str](), [path]  # `find` of fsspec itself leaves out folders that cannot be listed
    while folders:
        folder = folders.pop()
        with suppress(FileNotFoundError):  # removed meanwhile
            for entry in system.ls(folder, detail=True):
                name = entry["name"].rstrip("/")
                if entry["type"] != "directory":
                    found.append(name)
                elif name != folder:
                    folders.append(name)
    return found


def _unless_gone(error: OSError) -> None:
    """Raise an error of `os.walk`, unless the folder was removed meanwhile."""
    if not isinstance(error, FileNotFoundError):
        raise error
