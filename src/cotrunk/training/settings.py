"""The settings of a training run."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from ..checks import number, one_of, whole
from ..errors import CotrunkError
from .loss import Loss

Layers = Literal["attention", "all"]


@dataclass(frozen=True)
class TrainSettings:
    """How to train. The defaults are those of the paper where it gives them.

    Attributes:
        loss: the training objective.
        steps: number of optimiser steps.
        batch: groups per pass.
        accumulation: passes per step; their gradients are averaged.
        learning_rate: constant over the run.
        rank: rank and alpha of the LoRA. The paper does not give it.
        caption_dropout: fraction of the groups that are trained without captions, so that guidance keeps working.
        clip: maximum norm of the gradient.
        ema: decay of a moving average of the LoRA's weights, which is saved instead of them; None disables it.
        gradient_checkpointing: saves memory and takes a third more time.
        mixed_precision: as in `accelerate`: "no", "fp16" or "bf16".
        tracker: one of `accelerate`'s trackers ("tensorboard", "wandb", ...), in addition to `losses.jsonl`.
        checkpoint_every: steps between checkpoints.
        seed: random seed.
        height, width: image size in pixels, multiples of 8; None for the pipeline's default.
        layers: which layers get a LoRA: "attention", or "all" linear and convolutional ones. In a UNet most computation
            is outside attention.

    Raises:
        CotrunkError: a value is out of its range.
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
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        object.__setattr__(self, "seed", whole("seed", self.seed, 0))
        for name, low, high in (("caption_dropout", 0, 1), ("ema", 0, 1), ("learning_rate", 0, None)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, number(name, getattr(self, name), low, below=high))
        for name in ("height", "width"):
            if getattr(self, name) is None:
                continue
            size = whole(name, getattr(self, name), 8)
            if size % 8:
                raise CotrunkError(f"{name} {size} is not an image size: use a multiple of 8.")
            object.__setattr__(self, name, size)
        one_of("layers", self.layers, get_args(Layers))
        if self.tracker is not None:
            _check_tracker(self.tracker)


def _check_tracker(name: str) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    one_of("tracker", name, [str(kind) for kind in LOGGER_TYPE_TO_CLASS])
    if name not in map(str, get_available_trackers()):  # accelerate would silently log nothing
        raise CotrunkError(f"tracker {name!r} needs its package: pip install {name}.")
