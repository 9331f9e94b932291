"""Images that are written while the next ones are generated: at a URL, each takes a request, and a GPU would wait."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from ..storage.files import StoredFiles

THREADS = 8  # files that are written at a time: at 50 ms each, 160 per second
MOST = 64  # files that are not written yet, so that a slow place does not fill the memory


class Uploads:
    """Writes the files of a wave; at a URL, several at a time in threads of its own.

    The block in which it is used ends when all files are written. After an error, those that have not begun are not.

    Args:
        store: of the run.

    Raises:
        CotrunkError: at the end of the block, a file cannot be written.
    """

    def __init__(self, store: StoredFiles) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(THREADS, "upload") if store.takes_threads else None
        self._left = deque[Future[None]]()

    def __enter__(self) -> "Uploads":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            while self._left and kind is None:
                self._left.popleft().result()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)

    def put(self, name: str, content: bytes) -> None:
        """Begin to write a file; with too many others, wait for the first of them.

        Raises:
            CotrunkError: it, or one before it, cannot be written.
        """
        if self._pool is None:
            self._store.put(name, content)
            return
        while self._left and (len(self._left) == MOST or self._left[0].done()):
            self._left.popleft().result()
        self._left.append(self._pool.submit(self._store.put, name, content))
