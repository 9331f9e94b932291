"""How to train: the settings of a run, checked."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..errors import CotrunkError
from .loss import Loss

Layers = Literal["attention", "all"]


@dataclass(frozen=True)
class TrainSettings:
    """How to train. The defaults are the paper's where it gives them.

    Attributes:
        loss: what is minimised.
        steps: optimiser steps.
        batch: groups in a step, before `accumulation`.
        accumulation: passes whose gradients are added up in a step.
        learning_rate: constant.
        rank: of the LoRA (the paper does not give it); its alpha is the same.
        caption_dropout: part of the groups that train without captions, so that guidance keeps working.
        clip: largest norm of the gradient.
        ema: decay of an average of the LoRA's weights that is saved instead of them; None: no average.
        gradient_checkpointing: less memory, a third more time.
        mixed_precision: of `accelerate`: "no", "fp16" or "bf16".
        tracker: that `accelerate` knows ("tensorboard", "wandb", ...), beside `losses.jsonl`; None: no other.
        checkpoint_every: steps between checkpoints.
        seed: of everything that is drawn.
        height, width: of the pictures in pixels, multiples of 8; None: what the pipeline makes by default.
        layers: that get a LoRA: those of "attention", or "all" linear and convolutional ones. A UNet computes most of
            a picture outside of attention.
    """

    loss: Loss = field(default_factory=Loss)
    steps: int = 20_000
    batch: int = 4
    accumulation: int = 1
    learning_rate: float = 1e-4
    rank: int = 16
    caption_dropout: float = 0.1
    clip: float = 1.0
    ema: float | None = None
    gradient_checkpointing: bool = False
    mixed_precision: str = "no"
    tracker: str | None = None
    checkpoint_every: int = 500
    seed: int = 0
    height: int | None = None
    width: int | None = None
    layers: Layers = "attention"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulation", "rank", "checkpoint_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise CotrunkError(f"{name} {value!r} is out of range: use a whole number of 1 or more.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise CotrunkError(f"seed {self.seed!r} is out of range: use a whole number of 0 or more.")
        for name, low, high in (("caption_dropout", 0, 1), ("ema", 0, 1), ("learning_rate", 0, math.inf)):
            value = getattr(self, name)
            if value is not None and not low <= value < high:
                raise CotrunkError(f"{name} {value!r} is out of range: use {low} or more, below {high}.")
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 8 or value % 8:
                raise CotrunkError(f"{name} {value!r} is no size of a picture: use a multiple of 8.")
        if self.layers not in get_args(Layers):
            raise CotrunkError(f"layers {self.layers!r} are unknown: use {' or '.join(get_args(Layers))}.")
        if self.tracker is not None:
            _check_tracker(self.tracker)


def _check_tracker(name: str) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        raise CotrunkError(f"tracker {name!r} is unknown: use one of {', '.join(map(str, LOGGER_TYPE_TO_CLASS))}.")
    if name not in map(str, get_available_trackers()):  # accelerate would log nothing, and say nothing
        raise CotrunkError(f"tracker {name!r} needs its package: pip install {name}.")
