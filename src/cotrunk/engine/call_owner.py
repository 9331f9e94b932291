"""Find out whether a module is called by the pipeline that the hooks are for, or by another.

Other pipelines may use the hooked modules as well: a server shares one UNet among pipelines in several threads, and a
callback may run a second pipeline. Their calls must run as if there were no hook.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Any

from diffusers import DiffusionPipeline

from ..pipelines.combined import parts_of


class Caller:
    """One call of a pipeline, in one thread.

    Args:
        pipe: the pipeline. Pipelines that it holds and calls (Kandinsky's combined pipelines) belong to it.
        callbacks: the user's functions that the pipeline calls while it runs. What they call is not a call of the
            pipeline.
    """

    def __init__(self, pipe: Any, callbacks: Iterable[Callable[..., Any]] = ()) -> None:
        self._thread = threading.get_ident()
        self._pipes = [pipe, *parts_of(pipe)]
        self._callbacks = {code for callback in callbacks if (code := _code_of(callback)) is not None}

    def is_calling(self) -> bool:
        """Return whether the pipeline itself called the code that runs now.

        The innermost pipeline or callback on the stack decides. If there is none (in the user's own loop), every call
        in this thread counts.
        """
        if threading.get_ident() != self._thread:
            return False
        frame = sys._getframe(2)  # the caller of the function that asks
        while frame is not None:
            if frame.f_code in self._callbacks:
                return False
            if frame.f_code.co_name == "__call__":
                owner = frame.f_locals.get("self")
                if isinstance(owner, DiffusionPipeline):
                    return any(owner is pipe for pipe in self._pipes)
            frame = frame.f_back  # type: ignore[assignment]
        return True


def callbacks_among(arguments: Mapping[str, Any]) -> list[Callable[..., Any]]:
    """Return the user's functions among the arguments of a pipeline."""
    return [value for name, value in arguments.items() if name.startswith("callback") and callable(value)]


def _code_of(function: Any) -> CodeType | None:
    """Return the code that runs when this is called; None if it is not written in Python."""
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__code__"):  # a method, or an object that can be called
        function = getattr(function, "__func__", vars(type(function)).get("__call__"))
    return getattr(function, "__code__", None)
