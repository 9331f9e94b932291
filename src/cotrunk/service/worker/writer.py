"""The thread that writes files and the database while the device goes on."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ...errors import first_line


class WriterError(Exception):
    """Something could not be written, so the worker must end. It says nothing about the call that runs now."""


class Writer:
    """Does one thing after another, in the order in which they are given."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._waiting: deque[Future[Any]] = deque()

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be written."""
        self._check()
        return bool(self._waiting)

    def do(self, act: Callable[..., Any], *arguments: Any) -> None:
        """Do something soon.

        Raises:
            WriterError: something earlier has failed.
        """
        self._check()
        self._waiting.append(self._pool.submit(act, *arguments))

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            WriterError: something has failed.
        """
        while self._waiting:
            self._take()

    def _check(self) -> None:
        while self._waiting and self._waiting[0].done():
            self._take()

    def _take(self) -> None:
        try:
            self._waiting.popleft().result()
        except Exception as error:
            raise WriterError(f"{type(error).__name__}: {first_line(error)}") from error
