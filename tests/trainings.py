"""A training that takes a second, for the tests of `train` and of what reads its files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from safetensors.torch import load_file
from tiny import TinyPipeline, sd_with_text
from torch import Tensor

from cotrunk.groups.captions import Pair
from cotrunk.training.loss import Loss
from cotrunk.training.settings import TrainSettings
from cotrunk.training.trainer import train

SIZE = {"height": 32, "width": 32}
QUICK = TrainSettings(steps=6, batch=2, rank=2, learning_rate=1e-2, checkpoint_every=2, caption_dropout=0.3, **SIZE)
OBJECTIVES = ("sage", "standard")


def few(objective: Any, **changed: Any) -> TrainSettings:
    return TrainSettings(**vars(QUICK) | {"steps": 3, "loss": Loss(objective)} | changed)


def trained(
    groups: list[list[Pair]], out: Path, settings: TrainSettings = QUICK, **arguments: Any
) -> tuple[TinyPipeline, dict[str, Tensor]]:
    pipeline = sd_with_text()
    return pipeline, load_file(train(pipeline.pipe, groups, settings, out, **arguments))


def same_weights(mine: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return mine.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in mine.items())


def recorders(patch: pytest.MonkeyPatch) -> list[Any]:
    """Replace TensorBoard, which may not be installed, and return the recorders of later trainings."""
    made = []

    class Recorder(tracking.GeneralTracker):
        name = tracker = "tensorboard"
        requires_logging_directory = True

        def __init__(self, run_name: str, logging_dir: Path) -> None:
            super().__init__()
            self.folder, self.logged, self.is_closed = Path(logging_dir), dict[int, Any](), False
            self.shown = dict[int, Tensor]()
            made.append(self)

        def log(self, values: dict[str, Any], step: int, **_: Any) -> None:
            self.logged[step] = values

        def log_images(self, values: dict[str, Any], step: int, dataformats: str) -> None:
            """Record images as TensorBoard expects them."""
            assert (dataformats, list(values)) == ("NHWC", ["validation"])
            self.shown[step] = values["validation"]

        def finish(self) -> None:
            self.is_closed = True

    patch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Recorder)
    patch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    return made
