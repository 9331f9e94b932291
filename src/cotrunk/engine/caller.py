"""Whose call is this? Tells the calls that one pipeline makes from everybody else's.

Hooks stand on modules that other pipelines may use as well: a server keeps one UNet and gives each thread a pipeline of
its own, and a callback may run a second pipeline. Their calls must pass as if there were no hook.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Any

from diffusers import DiffusionPipeline

from ..pipelines.parts import parts_of


class Caller:
    """One call of a pipeline, in one thread.

    Args:
        pipe: the pipeline; pipelines that it holds and calls (Kandinsky's combined ones) count as itself.
        callbacks: the user's functions that the pipeline calls while it runs: what they call is not the pipeline's.
    """

    def __init__(self, pipe: Any, callbacks: Iterable[Callable[..., Any]] = ()) -> None:
        self._thread = threading.get_ident()
        self._pipes = [pipe, *parts_of(pipe)]
        self._callbacks = {code for callback in callbacks if (code := _code_of(callback)) is not None}

    def is_calling(self) -> bool:
        """Whether the code that runs now was called by the pipeline itself.

        The innermost pipeline or callback on the stack decides. Without one on it (a loop of the user's own), the
        thread does.
        """
        if threading.get_ident() != self._thread:
            return False
        frame = sys._getframe(2)  # from whoever called what asks
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
    """The user's functions among the arguments of a pipeline."""
    return [value for name, value in arguments.items() if name.startswith("callback") and callable(value)]


def _code_of(function: Any) -> CodeType | None:
    """What runs when this is called; None for what is not written in Python."""
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__code__"):  # a method, or an object that can be called
        function = getattr(function, "__func__", vars(type(function)).get("__call__"))
    return getattr(function, "__code__", None)
