"""Many images from many prompts with fewer denoiser evaluations, on any diffusers pipeline.

from cotrunk import Sharing, generate

result = generate(pipe, prompts, sharing=Sharing(), seed=0)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .apply_skipping import apply, remove
    from .engine.call_state import StepEvent
    from .errors import CotrunkError
    from .execution import Batch
    from .generation import generate, plan, stream
    from .planning.plan import Cost, Plan
    from .planning.tree import Branch
    from .result import Result
    from .settings import Batching, Settings, Sharing, Skipping
    from .trunks.access import Trunks

_HOME = {
    "Batch": "execution",
    "Batching": "settings",
    "Branch": "planning.tree",
    "Cost": "planning.plan",
    "CotrunkError": "errors",
    "Plan": "planning.plan",
    "Result": "result",
    "Settings": "settings",
    "Sharing": "settings",
    "Skipping": "settings",
    "StepEvent": "engine.call_state",
    "Trunks": "trunks.access",
    "apply": "apply_skipping",
    "generate": "generation",
    "plan": "generation",
    "remove": "apply_skipping",
    "stream": "generation",
}
__all__ = [
    "Batch",
    "Batching",
    "Branch",
    "Cost",
    "CotrunkError",
    "Plan",
    "Result",
    "Settings",
    "Sharing",
    "Skipping",
    "StepEvent",
    "Trunks",
    "apply",
    "generate",
    "plan",
    "remove",
    "stream",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `cotrunk --help` does not wait for torch."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
