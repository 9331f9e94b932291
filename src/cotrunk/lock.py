"""A folder that one command at a time writes to.

The lock is the operating system's, on an open file in the folder: it is gone when its process is, however that ends.
The file itself means nothing. It is removed with the lock, and one that a kill left behind is used again.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import CotrunkError
from .files import writing

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
        folder: what it is for.
        is_kept: whether others are kept away; False where the file system has no locks.
    """

    folder: Path
    is_kept: bool
    _descriptor: int

    def check(self) -> None:
        """Raise `CotrunkError` if the folder was removed, or replaced by another, since it was locked."""
        if not _is_open(self._descriptor, self.folder / NAME):
            raise CotrunkError(
                f"{self.folder} was removed, or its {NAME} was, while this command wrote to it: start again, with "
                "nothing else that cleans up there."
            )


@contextmanager
def locked(folder: Path) -> Iterator[FolderLock]:
    """Make the folder if it is not there, and keep other commands away from it until the block ends.

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
            with suppress(OSError):  # while the lock is held: who has opened the same file sees that it is gone
                file.unlink()
        os.close(descriptor)
        if sys.platform == "win32":  # where an open file cannot be removed, by this process or the next
            with suppress(OSError):
                file.unlink()


def _open(file: Path) -> tuple[int, bool]:
    """A descriptor of the file with its lock, and whether there is such a thing as a lock."""
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
        os.close(descriptor)  # its holder removed it after it was opened here


def _is_open(descriptor: int, file: Path) -> bool:
    """Whether this name still stands for this file."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:
        return False
