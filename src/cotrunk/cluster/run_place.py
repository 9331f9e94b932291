"""Where a run on a cluster is kept: in a folder that all machines see, or at a URL.

At a URL, painters write images and parts of the manifest. The driver's own files (plan, journal, report, page) grow, or
are written more than once. It keeps them in a temporary folder of its machine, and copies to the URL what has changed.
A part of the manifest is removed only when a copy of the journal holds its lines. So nothing depends on the machine of
the driver: the run can be resumed from another one.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import CotrunkError
from ..lock import NAME as LOCK
from ..lock import FolderLock, held
from ..runs.folder import WRITTEN, RunFolder
from ..runs.journal import NAME as JOURNAL
from ..runs.report_files import NAME as REPORT
from ..runs.report_files import PROMPTS
from ..storage.files import StoredFiles
from ..storage.mirror import Mirror
from ..storage.urls import is_url, shown_place

OFTEN = 30.0  # seconds between two copies of the driver's files to a URL
PART = 20.0  # the same in durations of the last copy: a large journal takes longer to copy, and is copied less often
READ = (REPORT, PROMPTS, "plan.json", JOURNAL)  # what a resumed run reads


@dataclass
class RunPlace:
    """Where a run is kept.

    Attributes:
        folder: of the run; at a URL, the driver's files of it.
        files: where painters write.
        lock: of the folder.
    """

    folder: RunFolder
    files: StoredFiles
    lock: FolderLock | None = None
    _mirror: Mirror | None = None
    _token: bytes = b""
    _kept: float = 0.0  # when files were last copied
    _took: float = 0.0

    @contextmanager
    def held(self, *below: str) -> Iterator[FolderLock]:
        """Keep other commands away until the block ends.

        Of two commands at one URL, the first one stops: nothing there tells whether it is still alive.

        Args:
            below: folders in which a killed run may have left temporary files, as for `lock.held`.

        Raises:
            CotrunkError: another command writes to the folder, or it cannot be written.
        """
        is_new = not self.folder.path.exists()
        try:
            with held(self.folder.path, *WRITTEN, *below) as self.lock:
                if self._mirror is None:
                    yield self.lock
                    return
                try:
                    yield self.lock
                finally:
                    if self._token and self._is_own():
                        self.keep(at_once=True)
                        self.files.remove(LOCK)
        except CotrunkError:
            if is_new:  # nothing was written yet, or it stays
                with suppress(OSError):
                    self.folder.path.rmdir()
            raise

    def take(self) -> None:
        """Take over the URL, with what another command has written there since it was read.

        That comes after all checks: a command that is refused does not stop the one that is running.

        Raises:
            CotrunkError: it cannot be written.
        """
        if self._mirror is None:
            return
        token = uuid.uuid4().hex.encode()
        self.files.put(LOCK, token)
        self._token = token
        self._mirror.pull((JOURNAL,))

    def check(self) -> None:
        """Check that no other command writes here.

        Raises:
            CotrunkError: one does, or the folder was removed.
        """
        if self.lock is not None:
            self.lock.check()
        if self._mirror is not None and not self._is_own():
            raise CotrunkError(
                f"Another cotrunk has taken over the run in {shown_place(self.files.place)}, so this one stops: let "
                "only one write there, or choose another --out."
            )

    def keep(self, *, at_once: bool = False) -> bool:
        """Copy the driver's files to the URL, unless that was done not long ago. Return whether all are there now.

        Args:
            at_once: whether to copy them in any case.

        Raises:
            CotrunkError: they cannot be written.
        """
        if self._mirror is None:
            return True
        begin = time.monotonic()
        if not at_once and begin - self._kept < max(OFTEN, PART * self._took):
            return False
        self.check()  # the files of a run that another command took over are not written
        self._mirror.push()
        self._kept = time.monotonic()
        self._took = self._kept - begin
        return True

    def _is_own(self) -> bool:
        return self.files.get(LOCK) == self._token


@contextmanager
def placed(out: str | Path) -> Iterator[RunPlace]:
    """Return the place that --out names, with what a resumed run reads. Nothing is written there.

    Args:
        out: a folder or a URL.

    Raises:
        CotrunkError: it cannot be read.
    """
    files = StoredFiles(f"{out}" if is_url(f"{out}") else f"{Path(out).absolute()}")
    if files.folder is not None:
        yield RunPlace(RunFolder(files.folder), files)
        return
    with TemporaryDirectory(prefix="cotrunk-", ignore_cleanup_errors=True) as own:
        mirror = Mirror(Path(own), files)
        mirror.pull(READ)
        yield RunPlace(RunFolder(Path(own), files), files, _mirror=mirror)
