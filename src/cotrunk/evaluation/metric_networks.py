"""Choose the metric networks of `cotrunk evaluate` and `cotrunk tune` by their names."""

import functools
from typing import Any

from ..errors import CotrunkError
from ..pipelines.source import EMBEDDED


def default_alignment(model: str) -> str:
    """Return the name of the alignment network that suits this model's images."""
    # the embedded models generate emoji
    return "emoji" if model in EMBEDDED else "clip"


def remove_safety_checker(pipe: Any) -> None:
    """Remove the safety checker, whose black images would be measured too."""
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None


def load_metric_networks(features: str, perceptual: str, alignment: str, device: str, compiled: bool = False) -> Any:
    """Return the `MetricNetworks` of these names.

    Args:
        compiled: whether to compile EfficientNet-Lite0.

    Raises:
        CotrunkError: a name is unknown, or its package or weights are missing.
    """
    from .emoji import EmojiAlignment
    from .networks import Clip, EfficientNetLite0, Inception, Lpips, MetricNetworks

    def pick(option: str, given: str, known: dict[str, Any]) -> Any:
        name, _, rest = given.partition(":")
        if name not in known:
            raise CotrunkError(f"{option} {given!r} is unknown: use {' or '.join(known)}.")
        return known[name](rest)

    lite0 = functools.cache(lambda: EfficientNetLite0(device, compiled))
    return MetricNetworks(
        features=pick(
            "--features",
            features,
            {"lite0": lambda _: lite0(), "inception": lambda file: Inception(device, file or None)},
        ),
        perceptual=pick("--perceptual", perceptual, {"lite0": lambda _: lite0(), "lpips": lambda _: Lpips(device)}),
        alignment=pick(
            "--alignment",
            alignment,
            {
                "emoji": lambda _: EmojiAlignment(lite0()),  # the same instance, which reuses its last features
                "clip": lambda name: Clip(name, device) if name else Clip(device=device),
            },
        ),
    )
