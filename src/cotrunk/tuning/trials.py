"""Images of several settings for the same prompts, generated once and stored in a folder."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Trial:
    """The images of some settings, and what they cost.

    Attributes:
        images: (n, 3, height, width) bytes, in the order of the prompts.
        good: indices of the images without a NaN.
        rows, seconds: denoising cost per image.
        saved_by_sharing: fraction of the rows that sharing saved.
        groups: indices of the images that share steps; each image is in one group.
    """

    images: torch.Tensor
    good: list[int]
    rows: float
    seconds: float
    saved_by_sharing: float
    groups: list[list[int]]


class Trials:
    """Runs a pipeline on prompts with different settings.

    Args:
        arguments: further arguments of the pipeline.
        out: a folder; images are stored in its `tried/` and used again.

    Raises:
        CotrunkError: the folder cannot be written.
    """

    def __init__(self, pipe: Any, prompts: Sequence[str], arguments: dict[str, Any], out: Path) -> None:
        check_folder(out)
        self.pipe, self.prompts, self.arguments, self.out = pipe, prompts, arguments, out
        has_checker = getattr(pipe, "safety_checker", None) is not None
        self._facts = [list(prompts), arguments, model_digest(pipe), scheduler_facts(pipe.scheduler), has_checker]
        self._generated: set[Path] = set()

    @cached_property
    def threshold(self) -> float:
        """Return the similarity that "auto" stands for. It is kept, because finding it takes long."""
        return auto_threshold(pipeline_encoder(self.pipe))

    def predicted(self, settings: Settings, seed: int) -> int:
        """Return the rows of a run before it starts, without what skipping and guidance will save.

        Raises:
            CotrunkError: the pipeline refuses the settings, or they save nothing that simpler settings do not save.
        """
        plan = self._prepared(settings, seed).plan
        if settings.sharing and plan.cost.used == plan.cost.independent:
            raise CotrunkError("No step would be shared: the prompts are too different, or the steps too few.")
        if settings.guidance_interval is not None and plan.guidance_rows == 1:
            raise CotrunkError("Guidance is off already, so that an interval saves nothing.")
        return plan.cost.used

    def of(self, settings: Settings, seed: int) -> Trial:
        """Return the images of some settings: stored ones, or new ones.

        If some of the stored images failed, all are generated again once per process. The cause may have been removed
        without a change of the file's name.
        """
        facts = json.dumps([*self._facts, settings.to_json(), seed], default=str)
        path = self.out / "tried" / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.npz"
        stored = _read(path, len(self.prompts))
        if stored is None or (len(stored.good) < len(self.prompts) and path not in self._generated):
            stored = self._generate(settings, seed, path)
        return stored

    def _prepared(self, settings: Settings, seed: int) -> Run:
        if settings.sharing and settings.sharing.similarity == "auto":
            settings = replace(settings, sharing=replace(settings.sharing, similarity=self.threshold))
        return prepare(self.pipe, self.prompts, settings, seed=seed, **{**self.arguments, "output_type": "pt"})

    def _warm_up(self) -> None:
        """Run with many rows and with one row, which a compiled denoiser treats as different shapes.

        An image without guidance has one row.
        """
        warm_up(self.pipe, self.prompts, **self.arguments)
        try:
            warm_up(self.pipe, self.prompts[:1], Settings(guidance_interval=(0.0, 0.5)), **self.arguments)
        except CotrunkError:  # guidance has no separate row, or cannot be turned off
            warm_up(self.pipe, self.prompts[:1], **self.arguments)

    def _generate(self, settings: Settings, seed: int, path: Path) -> Trial:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not self._generated:
            self._warm_up()
        run = self._prepared(settings, seed)
        count = len(self.prompts)
        images: dict[int, np.ndarray] = {}
        failed: set[int] = set()
        rows, seconds, saved = 0, 0.0, 0
        for batch in run.batches():
            for index, image in zip(batch.images, batch.output.images, strict=True):
                images[index] = as_bytes(image).cpu().numpy()
            failed.update(batch.failed)
            rows += batch.cost.used
            seconds += batch.seconds["denoise"]
            saved += batch.spared["sharing"]
        facts: dict[str, Any] = {
            "good": [index for index in range(count) if index not in failed],
            "rows": rows / count,
            "seconds": seconds / count,
            "saved_by_sharing": saved / run.plan.cost.independent,
            "groups": [list(tree.images) for tree in run.plan.trees],
        }
        stacked = np.stack([images[index] for index in range(count)])
        write_bytes(path, lambda file: np.savez(file, images=stacked, facts=json.dumps(facts)))
        self._generated.add(path)
        return Trial(torch.from_numpy(stacked), **facts)


def _read(path: Path, count: int) -> Trial | None:
    """Return the stored trial of this many images, or None if there is no file or it is damaged."""
    try:
        with np.load(path) as found:
            images, facts = found["images"], json.loads(str(found["facts"]))
        trial = Trial(torch.from_numpy(images), **facts)
        numbers = (trial.rows, trial.seconds, trial.saved_by_sharing)
        is_whole = (
            images.dtype == np.uint8
            and (images.ndim, *images.shape[:2]) == (4, count, 3)
            and all(type(index) is int and 0 <= index < count for index in trial.good)
            and sorted(index for group in trial.groups for index in group) == list(range(count))
            and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
        )
    except Exception:  # zipfile, numpy and json raise many types for a truncated or foreign file
        return None
    return trial if is_whole else None
