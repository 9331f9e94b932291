"""Many images from many prompts for fewer denoiser evaluations, on any diffusers pipeline.

from cotrunk import Sharing, generate

result = generate(pipe, prompts, sharing=Sharing(), seed=0)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .application import apply, remove
    from .engine.call import StepEvent
    from .errors import CotrunkError
    from .generation import Result, generate
    from .planning.plan import Branch, Plan
    from .planning.sharing import make_plan
    from .settings import Batching, Settings, Sharing, Skipping

_HOME = {
    "Batching": "settings",
    "Branch": "planning.plan",
    "CotrunkError": "errors",
    "Plan": "planning.plan",
    "Result": "generation",
    "Settings": "settings",
    "Sharing": "settings",
    "Skipping": "settings",
    "StepEvent": "engine.call",
    "apply": "application",
    "generate": "generation",
    "make_plan": "planning.sharing",
    "remove": "application",
}
__all__ = [
    "Batching",
    "Branch",
    "CotrunkError",
    "Plan",
    "Result",
    "Settings",
    "Sharing",
    "Skipping",
    "StepEvent",
    "apply",
    "generate",
    "make_plan",
    "remove",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `cotrunk --help` need not wait for torch."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
