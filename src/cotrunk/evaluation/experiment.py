"""Models under sampling schemes: the pictures of every cell, made once, and what networks see in them, kept."""

import functools
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..errors import CotrunkError
from ..files import check_folder, write_bytes, writing
from ..generation import prepare, warm_up
from ..pipelines.cost import guidance_rows, timesteps_of
from ..pipelines.identity import model_digest, scheduler_facts
from ..pipelines.lora import load_lora, take_off_lora
from ..planning.plan import Plan, flat_tree
from . import metrics
from .networks import AlignmentNetwork, FeatureNetwork, PerceptualNetwork, as_bytes

SHOWN = 8  # pictures of a cell that are kept to look at


@dataclass(frozen=True)
class Cell:
    """One model under one scheme.

    Attributes:
        model: its name; the LoRA that goes with it is the experiment's business.
        share: beta, the part of the steps that is shared in a group; 0 for independent sampling.
        steps: of the solver.
        seed: pictures with another seed start from other noise.
    """

    model: str
    share: float = 0.0
    steps: int = 30
    seed: int = 0


@dataclass(frozen=True)
class Judges:
    """The networks that look at the pictures."""

    features: FeatureNetwork
    perceptual: PerceptualNetwork
    alignment: AlignmentNetwork


@dataclass(frozen=True)
class Seen:
    """What the networks see in the pictures of a cell.

    Attributes:
        features: (n, d).
        vectors: (n, e) unit vectors, beside which those of the prompts lie.
        diversity: (groups,) mean distance of two pictures of a group; NaN where there are no two.
        failed: (n,) booleans: pictures that held a NaN, which are no pictures to measure.
        shown: (SHOWN, 3, height, width) bytes of the first pictures; the others are not kept.
        rows, seconds: of denoising, for one picture.
        saving: part of the rows that sharing saved.
        digest: tells it from what is seen elsewhere.
    """

    features: torch.Tensor
    vectors: torch.Tensor
    diversity: np.ndarray
    failed: np.ndarray
    shown: np.ndarray
    rows: float
    seconds: float
    saving: float
    digest: str


class Experiment:
    """Groups of prompts, a pipeline, and a folder for what comes out.

    Args:
        pipe: the pre-trained pipeline.
        groups: captions, a list a group.
        loras: by the name of a model, the folder of its LoRA; None for the pipeline as it is.
        judges: the networks.
        out: a folder; what was seen in the pictures of a cell is kept in `cells/`, and not made again.
        guidance: the guidance scale of every cell.
        arguments: what the pipeline needs beside the prompt.

    Raises:
        CotrunkError: no groups, or a LoRA that is none of this pipeline.
    """

    def __init__(
        self,
        pipe: Any,
        groups: Sequence[Sequence[str]],
        loras: dict[str, Path | None],
        judges: Judges,
        out: Path,
        *,
        guidance: float = 7.5,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        if not groups:
            raise CotrunkError("There are no groups of prompts: give at least one.")
        check_folder(out)
        self.pipe, self.loras, self.judges, self.out = pipe, loras, judges, out
        self.prompts = [prompt for group in groups for prompt in group]
        ends = np.cumsum([len(group) for group in groups])
        self.groups = [list(range(end - len(group), end)) for group, end in zip(groups, ends, strict=True)]
        self.arguments = {"guidance_scale": guidance, **(arguments or {})}
        facts = [self.prompts, self.groups, self.arguments, scheduler_facts(pipe.scheduler), model_digest(pipe)]
        self.mark = hashlib.sha256(json.dumps(facts, default=str, sort_keys=True).encode()).hexdigest()[:12]
        self.lora_marks = {name: "" if path is None else _file_digest(path) for name, path in loras.items()}
        self._agreed: set[Cell] = set()  # cells in which these networks were found to see what is written down
        self._loaded: str | None = None
        self._changed: dict[str, torch.Tensor] = {}  # weights of the pipeline that the LoRA changed, as they were
        self._warm: str | None = None
        for name in loras:  # a wrong one is to be known before the first picture, not after hours
            self._load(name)

    def rows(self, cell: Cell) -> int:
        """Denoiser rows of a cell, before it is made."""
        return self._plan(cell).cost.used

    def shares(self, cell: Cell) -> bool:
        """Whether any step is shared: of few steps a part may be none."""
        return self.rows(cell) < self.rows(replace(cell, share=0.0))

    def equal_cost(self, cell: Cell) -> Cell:
        """Independent sampling with as many steps as cost no more rows than this cell."""
        rows = self.rows(cell)
        for steps in range(cell.steps, 0, -1):
            alone = Cell(cell.model, 0.0, steps, cell.seed)
            if self.rows(alone) <= rows:
                return alone
        raise CotrunkError(f"No number of steps costs as little as sharing {cell.share:.0%} does.")

    def look(self, cell: Cell, on_batch: Callable[[int], None] = lambda pictures: None) -> Seen:
        """Make the pictures of a cell and show them to the networks, or take what is there."""
        path = self.out / "cells" / f"{self.name(cell)}.seen.npz"
        seen = self._read(cell, path)
        if seen is not None:
            return seen
        batches = path.with_suffix(".batches")
        pictures, failed, facts = self._pictures(cell, batches, on_batch)
        if failed.all():
            raise CotrunkError(f"Every picture of {self.name(cell)} held a NaN: use another dtype, bfloat16 say.")
        good = [[image for image in group if not failed[image]] for group in self.groups]
        several = [number for number, group in enumerate(good) if len(group) > 1]
        diversity = np.full(len(self.groups), np.nan)
        diversity[several] = metrics.diversity(self.judges.perceptual, pictures, good)
        made: dict[str, Any] = {
            "features": self.judges.features.features(pictures).float().numpy(),
            "vectors": self.judges.alignment.of_pictures(pictures).float().numpy(),
            "diversity": diversity,
            "failed": failed,
            "shown": pictures[:SHOWN].numpy(),
        }
        made |= {"by": self._names, "facts": json.dumps(facts | {"digest": _digest(made)})}
        write_bytes(path, functools.partial(_savez, made))
        shutil.rmtree(batches)
        self._agreed.add(cell)
        return _seen(made)

    def _read(self, cell: Cell, path: Path) -> Seen | None:
        """What was seen in a cell. None if nothing was, if the file is damaged, or if other networks saw it, or these
        with other weights."""
        try:
            with np.load(path) as kept:
                if str(kept["by"]) != self._names:
                    return None
                seen, digest = _seen(dict(kept)), _digest(kept)
        except Exception:  # whatever zip, numpy and JSON say to a file that is cut off or foreign
            return None
        if seen.digest != digest:
            return None
        if cell not in self._agreed:
            shown = torch.from_numpy(seen.shown)
            features, vectors = self.judges.features.features(shown), self.judges.alignment.of_pictures(shown)
            if not (_alike(features, seen.features) and _alike(vectors, seen.vectors)):
                return None
            self._agreed.add(cell)
        return seen

    @property
    def _names(self) -> str:
        return json.dumps([self.judges.features.name, self.judges.perceptual.name, self.judges.alignment.name])

    def _pictures(
        self, cell: Cell, folder: Path, on_batch: Callable[[int], None]
    ) -> tuple[torch.Tensor, np.ndarray, dict[str, float]]:
        """Pictures (n, 3, height, width) in bytes, which of them failed, and what one cost. Batches are kept in the
        folder, so that a run that was killed goes on with the next."""
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        count, done = len(self.prompts), set[int]()
        for file in folder.glob("*.npz"):
            batch = _batch(file, count)
            if batch is None:
                file.unlink()  # damaged: its pictures are made again
            else:
                done.update(batch["images"].tolist())
        if len(done) < count:
            self._load(cell.model)
            if self._warm != self._loaded:
                for some in (self.prompts, self.prompts[:1]):  # a compiled denoiser may take few rows for another shape
                    warm_up(self.pipe, some, **self.arguments)
                self._warm = self._loaded
        plan = self._plan(cell)
        own = {**self.arguments, "num_inference_steps": cell.steps, "output_type": "pt"}
        run = prepare(self.pipe, self.prompts, plan=plan, **own)
        # a batch that memory had no room for was kept in parts
        for made in run.batches(skip=done.issuperset):
            kept = {
                "images": made.images,
                "pictures": torch.stack([as_bytes(picture).cpu() for picture in made.output.images]).numpy(),
                "failed": made.failed,
                "costs": [made.cost.used / len(made.images), made.seconds["denoise"] / len(made.images)],
            }
            file = folder / f"{made.images[0]:06d}-{len(made.images)}.npz"
            write_bytes(file, functools.partial(_savez, kept))
            on_batch(len(made.images))
        pictures, failed, costs = np.empty(0, np.uint8), np.zeros(count, bool), np.zeros((count, 2))
        # in the order of their images: a part of a batch and the whole of it may both be here
        for file in sorted(folder.glob("*.npz")):
            if (batch := _batch(file, count)) is None:
                raise CotrunkError(f"{file} is damaged: delete it, its pictures are made again.")
            images = batch["images"]
            if not pictures.size:
                pictures = np.empty((count, *batch["pictures"].shape[1:]), np.uint8)
            pictures[images], costs[images] = batch["pictures"], batch["costs"]
            failed[images] = np.isin(images, batch["failed"])
        rows, seconds = costs.mean(axis=0).tolist()
        return torch.from_numpy(pictures), failed, {"rows": rows, "seconds": seconds, "saving": plan.cost.saving}

    def _plan(self, cell: Cell) -> Plan:
        """Groups as they are, branching after `share` of the timesteps."""
        own = {**self.arguments, "num_inference_steps": cell.steps}
        steps, timesteps = timesteps_of(self.pipe, own)
        order = getattr(self.pipe.scheduler, "order", 1)
        stop = int(cell.share * timesteps + 1e-9) // order * order
        seeds = [0] * len(self.prompts)
        trees = []
        for number, group in enumerate(self.groups):
            own_seed = _seed(cell.seed, number, 0)
            trees += flat_tree(group, stop, timesteps)
            for member, image in enumerate(group):
                # shared or not, the first picture of a group starts from the same noise
                seeds[image] = own_seed if stop else _seed(cell.seed, number, member)
        rows = guidance_rows(self.pipe, own)
        return Plan(tuple(self.prompts), tuple(seeds), tuple(trees), steps, timesteps, rows)

    def _load(self, model: str) -> None:
        """Give the pipeline the LoRA of this model, and no other."""
        if model not in self.loras:
            raise CotrunkError(f"There is no model {model!r} here: {', '.join(self.loras)} are.")
        if model == self._loaded:
            return
        if self._loaded is not None and self.loras[self._loaded] is not None:
            take_off_lora(self.pipe, self._changed)
        self._loaded = None  # whatever is met on the way
        lora = self.loras[model]
        if lora is not None:
            self._changed = load_lora(self.pipe, lora)
        self._loaded = model

    def name(self, cell: Cell) -> str:
        """What its files are called: it tells models, LoRAs, prompts and schemes apart."""
        share = f"share{100 * cell.share:g}" if cell.share else "independent"
        model = re.sub(r"[^A-Za-z0-9]+", "-", cell.model) + self.lora_marks.get(cell.model, "")
        return f"{model}-{share}-{cell.steps}steps-seed{cell.seed}-{self.mark}"


def _savez(arrays: dict[str, Any], file: BinaryIO) -> None:
    np.savez(file, **arrays)


def _batch(file: Path, count: int) -> dict[str, np.ndarray] | None:
    """What was kept of a batch of a cell of this many pictures; None where it is damaged."""
    try:
        with np.load(file) as kept:
            batch = dict(kept)
        images, pictures = batch["images"], batch["pictures"]
        is_whole = (
            len(images) == len(pictures) > 0
            and bool(((images >= 0) & (images < count)).all())
            and (pictures.dtype, pictures.ndim, pictures.shape[1]) == (np.uint8, 4, 3)
            and (batch["costs"].shape, bool(np.isfinite(batch["costs"]).all())) == ((2,), True)
            and batch["failed"].ndim == 1
        )
    except Exception:  # whatever zip and numpy say to a file that is cut off or foreign
        return None
    return batch if is_whole else None


def _digest(kept: Mapping[str, Any]) -> str:
    """Of what networks see in the pictures of a cell."""
    arrays = (kept[name] for name in ("features", "vectors", "diversity", "failed", "shown"))
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:12]


def _seen(kept: dict[str, Any]) -> Seen:
    features, vectors = (torch.from_numpy(kept[name]).double() for name in ("features", "vectors"))
    return Seen(features, vectors, kept["diversity"], kept["failed"], kept["shown"], **json.loads(str(kept["facts"])))


def _alike(now: torch.Tensor, then: torch.Tensor) -> bool:
    """Whether the same network gave both, on another device perhaps: (m, d), and the (n, d) that begin with the same
    pictures."""
    if now.shape[1:] != then.shape[1:]:
        return False
    return torch.allclose(now.double(), then[: len(now)], rtol=0.01, atol=0.01 * float(then.abs().max()))


def _file_digest(path: Path) -> str:
    """Of a LoRA: the file, or those of its folder; its name where it is on the hub."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    found = hashlib.sha256(str(path).encode() if not files else b"")
    try:
        for file in files:
            found.update(file.read_bytes())
    except OSError as error:
        raise CotrunkError(f"The LoRA {path} cannot be read ({error.strerror}): check its permissions.") from error
    return "-" + found.hexdigest()[:8]


def _seed(seed: int, group: int, member: int) -> int:
    return int(np.random.SeedSequence((seed, group, member)).generate_state(1, np.uint32)[0])
