"""What happens if the index or a file of a trunk cache fails: a run goes on without it."""

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from ..errors import CotrunkError


class _Warns(Protocol):
    has_warned: bool
    rest: float  # seconds after a failure in which nothing is tried
    rests_until: float  # of the monotonic clock


P = ParamSpec("P")
S = TypeVar("S", bound=_Warns)
R = TypeVar("R")


def missing_on_failure(otherwise: Any) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Return a decorator of methods of a store: if the index or a file fails, they warn once and return `otherwise`."""

    def decorated(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(method)
        def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            if time.monotonic() < self.rests_until:
                return cast(R, otherwise)
            try:
                return method(self, *args, **kwargs)
            except (CotrunkError, OSError) as error:
                if not self.has_warned:
                    warnings.warn(f"The trunk cache is not used where it fails: {error}", stacklevel=2)
                self.has_warned = True
                self.rests_until = time.monotonic() + self.rest
                return cast(R, otherwise)

        return guarded

    return decorated
