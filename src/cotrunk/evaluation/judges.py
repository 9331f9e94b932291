"""The networks that `evaluate` and `tune` are asked to judge by."""

import functools
from typing import Any

from ..errors import CotrunkError
from ..pipelines.loading import EMBEDDED

NETWORKS = "Networks"


def alignment_for(model: str) -> str:
    """The alignment network that knows what this model draws."""
    # the embedded ones draw emoji
    return "emoji" if model in EMBEDDED else "clip"


def take_off_checker(pipe: Any) -> None:
    """Let a pipeline show all its pictures: a safety checker blackens some, which would then be measured."""
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None


def judges_of(features: str, perceptual: str, alignment: str, device: str, compiled: bool = False) -> Any:
    """The networks of these names; EfficientNet-Lite0 compiled, if so wanted.

    Raises:
        CotrunkError: no such network, or one whose package or weights are missing.
    """
    from .emoji import EmojiAlignment
    from .experiment import Judges
    from .networks import Clip, EfficientNetLite0, Inception, Lpips

    def pick(option: str, given: str, known: dict[str, Any]) -> Any:
        name, _, rest = given.partition(":")
        if name not in known:
            raise CotrunkError(f"{option} {given!r} is unknown: use {' or '.join(known)}.")
        return known[name](rest)

    lite0 = functools.cache(lambda: EfficientNetLite0(device, compiled))
    return Judges(
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
                "emoji": lambda _: EmojiAlignment(lite0()),  # which then sees the same pictures once
                "clip": lambda name: Clip(name, device) if name else Clip(device=device),
            },
        ),
    )
