"""The pictures of settings on the same prompts: made once, kept in a folder."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CotrunkError
from ..evaluation.networks import as_bytes
from ..execution import Run
from ..files import check_folder, write_bytes, writing
from ..generation import prepare, warm_up
from ..pipelines.identity import model_digest, scheduler_facts
from ..planning.embedding import pipeline_encoder
from ..planning.threshold import auto_threshold
from ..settings import Settings
from .setting import Setting


@dataclass(frozen=True)
class Trial:
    """What a setting made, and what it cost for one picture.

    Attributes:
        pictures: (n, 3, height, width) bytes, in the order of the prompts.
        good: places of the pictures that held no NaN.
        rows, seconds: of denoising, for one picture.
        shared: part of the rows that sharing saved.
        groups: places of the pictures that share steps, each in one group.
    """

    pictures: torch.Tensor
    good: list[int]
    rows: float
    seconds: float
    shared: float
    groups: list[list[int]]


class Trials:
    """A pipeline, prompts and what else it is called with.

    Args:
        out: a folder; pictures are kept in `tried/`, and what is there is not made again.
        arguments: what the pipeline takes beside the prompts and what a `Setting` says.
    """

    def __init__(self, pipe: Any, prompts: Sequence[str], arguments: dict[str, Any], out: Path) -> None:
        check_folder(out)
        self.pipe, self.prompts, self.arguments, self.out = pipe, prompts, arguments, out
        blackens = getattr(pipe, "safety_checker", None) is not None
        self._facts = [list(prompts), arguments, model_digest(pipe), scheduler_facts(pipe.scheduler), blackens]
        self._made: set[Path] = set()

    @cached_property
    def threshold(self) -> float:
        """The similarity that "auto" stands for: found once, it takes the text encoder longer than the prompts."""
        return auto_threshold(pipeline_encoder(self.pipe))

    def predicted(self, setting: Setting, seed: int) -> int:
        """Rows of a setting before it runs; what skipping and guidance spare is not known before.

        Raises:
            CotrunkError: the pipeline cannot do it, or it would leave out nothing that a simpler one does not.
        """
        plan = self._prepared(setting, seed).plan
        if setting.share and plan.cost.used == plan.cost.independent:
            raise CotrunkError("No step would be shared: the prompts are too different, or the steps too few.")
        if setting.guidance_interval is not None and plan.guidance_rows == 1:
            raise CotrunkError("Guidance is off, and cannot be left out.")
        return plan.cost.used

    def of(self, setting: Setting, seed: int) -> Trial:
        """Make the pictures of a setting, or take what is there; pictures that failed are made anew by another process,
        for something that the facts do not hold may have been put right since."""
        facts = json.dumps([*self._facts, asdict(setting), seed], default=str)
        path = self.out / "tried" / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.npz"
        kept = _kept(path, len(self.prompts))
        if kept is None or (len(kept.good) < len(self.prompts) and path not in self._made):
            kept = self._make(setting, seed, path)
        return kept

    def _prepared(self, setting: Setting, seed: int) -> Run:
        if setting.share and setting.similarity is None:
            setting = replace(setting, similarity=self.threshold)
        return prepare(
            self.pipe, self.prompts, setting.settings(), seed=seed, **{**self.arguments, "output_type": "pt"}
        )

    def _warm_up(self) -> None:
        """With many rows, and with one: a compiled denoiser takes it for another shape. An image without guidance has
        one."""
        warm_up(self.pipe, self.prompts, **self.arguments)
        try:
            warm_up(self.pipe, self.prompts[:1], Settings(guidance_interval=(0.0, 0.5)), **self.arguments)
        except CotrunkError:  # guidance that is no row of its own, or that cannot be left out
            warm_up(self.pipe, self.prompts[:1], **self.arguments)

    def _make(self, setting: Setting, seed: int, path: Path) -> Trial:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not self._made:
            self._warm_up()
        run = self._prepared(setting, seed)
        count = len(self.prompts)
        pictures: dict[int, np.ndarray] = {}
        failed: set[int] = set()
        rows, seconds, shared = 0, 0.0, 0
        for batch in run.batches():
            for image, picture in zip(batch.images, batch.output.images, strict=True):
                pictures[image] = as_bytes(picture).cpu().numpy()
            failed.update(batch.failed)
            rows += batch.cost.used
            seconds += batch.seconds["denoise"]
            shared += batch.spared["sharing"]
        facts: dict[str, Any] = {
            "good": [image for image in range(count) if image not in failed],
            "rows": rows / count,
            "seconds": seconds / count,
            "shared": shared / run.plan.cost.independent,
            "groups": [list(tree.images) for tree in run.plan.trees],
        }
        stacked = np.stack([pictures[image] for image in range(count)])
        write_bytes(path, lambda file: np.savez(file, pictures=stacked, facts=json.dumps(facts)))
        self._made.add(path)
        return Trial(torch.from_numpy(stacked), **facts)


def _kept(path: Path, count: int) -> Trial | None:
    """What was kept of this many pictures; None where there is nothing, or something damaged: it is made again."""
    try:
        with np.load(path) as found:
            pictures, facts = found["pictures"], json.loads(str(found["facts"]))
        trial = Trial(torch.from_numpy(pictures), **facts)
        numbers = (trial.rows, trial.seconds, trial.shared)
        is_whole = (
            pictures.dtype == np.uint8
            and (pictures.ndim, *pictures.shape[:2]) == (4, count, 3)
            and all(type(image) is int and 0 <= image < count for image in trial.good)
            and sorted(image for group in trial.groups for image in group) == list(range(count))
            and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
        )
    except Exception:  # whatever zip, numpy and JSON say to a file that is cut off or foreign
        return None
    return trial if is_whole else None
