"""The pictures of settings on the same prompts: made once, kept in a folder."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import check_folder, write_bytes
from ..generation import prepare, warm_up
from .identity import model_digest, scheduler_facts
from .networks import as_bytes
from .setting import Setting


@dataclass(frozen=True)
class Trial:
    """What a setting made, and what it cost for one picture.

    Attributes:
        pictures: (n, 3, height, width) bytes, in the order of the prompts.
        good: places of the pictures that held no NaN.
        rows, seconds: of denoising, for one picture.
        shared: part of the rows that sharing saved.
    """

    pictures: torch.Tensor
    good: list[int]
    rows: float
    seconds: float
    shared: float


class Trials:
    """A pipeline, prompts and what else it is called with.

    Args:
        out: a folder; pictures are kept in `tried/`, and what is there is not made again.
        arguments: what the pipeline takes beside the prompts and what a `Setting` says.
    """

    def __init__(self, pipe: Any, prompts: Sequence[str], arguments: dict[str, Any], out: Path) -> None:
        check_folder(out)
        self.pipe, self.prompts, self.arguments, self.out = pipe, prompts, arguments, out
        self._facts = [list(prompts), arguments, model_digest(pipe), scheduler_facts(pipe.scheduler)]
        self._is_warm = False

    def predicted(self, setting: Setting, seed: int) -> float:
        """Rows of a setting before it runs; what skipping and guidance spare is not known before."""
        return prepare(self.pipe, self.prompts, seed=seed, **{**self.arguments, **setting.arguments()}).plan.cost.used

    def of(self, setting: Setting, seed: int) -> Trial:
        """Make the pictures of a setting, or take what is there."""
        facts = json.dumps([*self._facts, asdict(setting), seed], default=str)
        path = self.out / "tried" / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.npz"
        if not path.exists():
            self._make(setting, seed, path)
        with np.load(path) as found:
            return Trial(torch.from_numpy(found["pictures"]), **json.loads(str(found["facts"])))

    def _make(self, setting: Setting, seed: int, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._is_warm:
            warm_up(self.pipe, self.prompts, **self.arguments)
            self._is_warm = True
        own = {**self.arguments, **setting.arguments(), "output_type": "pt"}
        run = prepare(self.pipe, self.prompts, seed=seed, **own)
        count = len(self.prompts)
        pictures: dict[int, np.ndarray] = {}
        failed: set[int] = set()
        rows, seconds, shared = 0, 0.0, 0
        for wave in run.waves():
            for image, picture in zip(wave.images, wave.output.images, strict=True):
                pictures[image] = as_bytes(picture).cpu().numpy()
            failed.update(wave.failed)
            rows += wave.cost.used
            seconds += wave.seconds["denoise"]
            shared += wave.spared["sharing"]
        facts = {
            "good": [image for image in range(count) if image not in failed],
            "rows": rows / count,
            "seconds": seconds / count,
            "shared": shared / run.plan.cost.independent,
        }
        stacked = np.stack([pictures[image] for image in range(count)])
        write_bytes(path, lambda file: np.savez(file, pictures=stacked, facts=json.dumps(facts)))
