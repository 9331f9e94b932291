"""What happens if the index of a trunk cache fails: a run goes on without it, and a command says what is wrong."""

import functools
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from ..errors import CotrunkError

BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
PAUSE = 0.01  # seconds between two attempts


class _Warns(Protocol):
    has_warned: bool


P = ParamSpec("P")
S = TypeVar("S", bound=_Warns)
R = TypeVar("R")


def missing_on_failure(otherwise: Any) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Return a decorator of methods of a store: if the index or a file fails, they warn once and return `otherwise`."""

    def decorated(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(method)
        def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return method(self, *args, **kwargs)
            except (CotrunkError, OSError, sqlite3.Error) as error:
                if not self.has_warned:
                    warnings.warn(f"The trunk cache is not used where it fails: {error}", stacklevel=2)
                self.has_warned = True
                return cast(R, otherwise)

        return guarded

    return decorated


@contextmanager
def as_sentence(path: Path | None) -> Iterator[None]:
    """Raise `CotrunkError` with the remedy if the index at a path fails."""
    try:
        yield
    except sqlite3.Error as error:
        if is_busy(error):
            raise CotrunkError(
                f"The index {path} is in use: another process keeps it locked. Wait until that process has ended, or "
                "choose another folder."
            ) from None
        raise CotrunkError(
            f"The index {path} cannot be used ({error}): delete the folder, which loses only time."
        ) from None


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether another process holds a lock."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in BUSY  # the low byte of an extended code


def retried(execute: Callable[[], Any], seconds: float) -> None:
    """Execute a statement that does not wait for locks by itself, again and again while another process holds one."""
    until = time.monotonic() + seconds
    while True:
        try:
            execute()
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > until:
                raise
        time.sleep(PAUSE)
