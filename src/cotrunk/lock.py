"""Locks on folders, so that only one command at a time writes to a folder.

The operating system locks an open file in the folder, and releases the lock when the process ends, however it ends. The
file itself has no meaning: it is removed with the lock, and one that a killed process left behind is used again.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import CotrunkError
from .files import remove_parts, writing

NAME = ".cotrunk.lock"
TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@dataclass(frozen=True)
class FolderLock:
    """A lock that is held.

    Attributes:
        folder: the folder that it protects.
        is_kept: whether it keeps other processes away; False if the file system does not support locks.
    """

    folder: Path
    is_kept: bool
    _descriptor: int

    def check(self) -> None:
        """Raise `CotrunkError` if the folder was removed, or replaced by another, since it was locked."""
        if not _is_open(self._descriptor, self.folder / NAME):
            raise CotrunkError(
                f"{self.folder} or its {NAME} was removed while this command wrote to it: run the command again, and "
                "do not delete files there meanwhile."
            )


@contextmanager
def locked(folder: Path) -> Iterator[FolderLock]:
    """Make the folder if it does not exist, and keep other commands away from it until the block ends.

    Raises:
        CotrunkError: another command writes to it, or it cannot be written.
    """
    file = folder / NAME
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, is_kept = _open(file)
    try:
        yield FolderLock(folder, is_kept, descriptor)
    finally:
        if sys.platform != "win32" and _is_open(descriptor, file):
            with suppress(OSError):  # before the lock is released, so that a waiting process sees that the file is gone
                file.unlink()
        os.close(descriptor)
        if sys.platform == "win32":  # an open file cannot be removed there
            with suppress(OSError):
                file.unlink()


@contextmanager
def held(folder: Path, *below: str) -> Iterator[FolderLock]:
    """Lock a folder, and remove the temporary files that a killed command left in it and in the folders `below` it.

    Raises:
        CotrunkError: another command writes to it, or it cannot be written.
    """
    with locked(folder) as lock:
        if lock.is_kept:  # otherwise the temporary files may belong to a running command
            for place in (folder, *(found for name in below for found in folder.glob(name))):
                remove_parts(place)
        yield lock


def _open(file: Path) -> tuple[int, bool]:
    """Open and lock the file. Return its descriptor, and whether the file system has locks."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno not in TAKEN:  # some network file systems
                return descriptor, False
            os.close(descriptor)
            raise CotrunkError(
                f"Another cotrunk is writing to {file.parent}: wait until it is done, or choose another --out."
            ) from None
        if _is_open(descriptor, file):
            return descriptor, True
        os.close(descriptor)  # another process removed the file after it was opened here


def _is_open(descriptor: int, file: Path) -> bool:
    """Return whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:
        return False
