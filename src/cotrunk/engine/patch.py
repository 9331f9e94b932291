"""Replace how modules, schedulers and pipelines behave during a call. No other module does this.

`replaced` and `intercepted` are undone when their context ends. `restore` and `reclassed` last until they are called
again.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from ..errors import CotrunkError

DISPATCH = "_compiled_call_impl"  # `module(...)` runs this attribute of the module if it is set


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of an instance while the context lasts, then restore it."""
    had, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def intercepted(module: torch.nn.Module, call: Callable[..., Any]) -> AbstractContextManager[None]:
    """Run `call` instead of the module while the context lasts.

    `call` takes the place of the module's compiled call, so it runs outside other hooks, compilation and offloading.
    A hook on `forward` would not. A module compiled in place compiles again for each new hook. A diffusers hook that
    removes itself during a call (group offload with streams) also removes the hooks above it.

    Raises:
        CotrunkError: this version of torch calls modules in another way.
    """
    check_dispatch()
    return replaced(module, DISPATCH, call)


def call_of(module: torch.nn.Module) -> Callable[..., Any]:
    """Return what runs now when the module is called: the call set by `intercepted`, a compiled call, or its own."""
    return getattr(module, DISPATCH) or module._call_impl


def interceptor_of(module: torch.nn.Module) -> Any:
    """Return what `intercepted` or torch.compile set in place of the module's call; None if neither did."""
    return getattr(module, DISPATCH)


@functools.cache
def check_dispatch() -> None:
    """Raise `CotrunkError` if torch does not run `_compiled_call_impl` when a module is called."""
    module = torch.nn.Identity()
    vars(module)[DISPATCH] = lambda value: value + 1
    if module(1) != 2:
        raise CotrunkError(
            f"torch {torch.__version__} no longer calls modules through {DISPATCH}, which cotrunk relies on: "
            "install a version of torch that this version of cotrunk supports."
        )


def restore(owner: Any, state: dict[str, Any], remove: Iterable[str] = ()) -> None:
    """Set the attributes of an instance to earlier values, and remove those that it did not have then."""
    for name in remove:
        vars(owner).pop(name, None)
    vars(owner).update(state)


def reclassed(instance: Any, kind: type) -> None:
    """Give an instance another class: Python looks `__call__` up in the class, not in the instance."""
    instance.__class__ = kind
