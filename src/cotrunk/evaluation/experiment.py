"""Generate images with each model and sampling scheme, and store what the metric networks compute from them."""

import functools
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CotrunkError
from ..execution import EXACT
from ..files import check_folder, write_bytes, writing
from ..generation import prepare, warm_up
from ..pipelines.cost import guidance_rows, timesteps_of
from ..pipelines.identity import model_digest, scheduler_facts
from ..pipelines.lora import load_lora, remove_lora
from ..planning.plan import Plan
from ..planning.tree import flat_tree
from ..settings import Sharing
from . import metrics
from .networks import MetricNetworks, as_bytes
from .observation import (
    PUBLISHED,
    SHOWN,
    Cell,
    Observation,
    are_close,
    digest_of,
    observation_of,
    read_batch,
    save_arrays,
)


class Experiment:
    """Groups of prompts, a pipeline, and a folder for observations.

    Args:
        pipe: the pre-trained pipeline.
        groups: the captions of each group.
        loras: for each model name, the folder of its LoRA; None for the pipeline without a LoRA.
        networks: the metric networks.
        out: a folder; observations are stored in its `cells/` and used again.
        guidance: the guidance scale, the same for every cell; None for the pipeline's own.
        arguments: further arguments of the pipeline.

    Raises:
        CotrunkError: there are no groups, or a LoRA is for another pipeline.
    """

    def __init__(
        self,
        pipe: Any,
        groups: Sequence[Sequence[str]],
        loras: dict[str, Path | None],
        networks: MetricNetworks,
        out: Path,
        *,
        guidance: float | None = 7.5,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        if not groups:
            raise CotrunkError("There are no groups of prompts: give at least one.")
        check_folder(out)
        self.pipe, self.loras, self.networks, self.out = pipe, loras, networks, out
        self.prompts = [prompt for group in groups for prompt in group]
        ends = np.cumsum([len(group) for group in groups])
        self.groups = [list(range(end - len(group), end)) for group, end in zip(groups, ends, strict=True)]
        self.arguments = ({} if guidance is None else {"guidance_scale": guidance}) | (arguments or {})
        facts = [self.prompts, self.groups, self.arguments, scheduler_facts(pipe.scheduler), model_digest(pipe)]
        self.mark = hashlib.sha256(json.dumps(facts, default=str, sort_keys=True).encode()).hexdigest()[:12]
        self.lora_marks = {name: "" if path is None else _lora_digest(path) for name, path in loras.items()}
        self._checked: set[Cell] = set()  # cells for which the networks computed the stored values again
        self._loaded: str | None = None
        self._changed: dict[str, torch.Tensor] = {}  # original values of the weights that the LoRA changed
        self._warm: str | None = None
        for name in loras:  # reports a wrong LoRA now instead of after hours
            self._load(name)

    def rows(self, cell: Cell) -> int:
        """Return the denoiser rows of a cell, without running it."""
        return self._plan(cell).cost.used

    def shares(self, cell: Cell) -> bool:
        """Return whether any step is shared; a small share of few steps may round down to zero."""
        return self.rows(cell) < self.rows(cell.alone)

    def equal_cost(self, cell: Cell) -> Cell:
        """Return independent sampling with the most steps that need no more rows than this cell.

        Raises:
            CotrunkError: even one independent step needs more rows.
        """
        rows = self.rows(cell)
        for steps in range(cell.steps, 0, -1):
            independent = Cell(cell.model, 0.0, steps, cell.seed)
            if self.rows(independent) <= rows:
                return independent
        raise CotrunkError(
            f"Independent sampling cannot be as cheap as sharing {cell.share:.0%} of {cell.steps} steps: use more "
            "steps, or share less."
        )

    def observe(self, cell: Cell, on_batch: Callable[[int], None] = lambda count: None) -> Observation:
        """Return the observation of a cell: the stored one, or a new one.

        Args:
            on_batch: called after each batch with its number of images.

        Raises:
            CotrunkError: all images contain a NaN, or the pipeline refuses the run.
        """
        path = self.out / "cells" / f"{self.name(cell)}.observed.npz"
        observation = self._read(cell, path)
        if observation is not None:
            return observation
        batches = path.with_suffix(".batches")
        images, failed, facts = self._generate(cell, batches, on_batch)
        if failed.all():
            raise CotrunkError(f"All images of {self.name(cell)} contain NaN: use another dtype, such as bfloat16.")
        good = [[image for image in group if not failed[image]] for group in self.groups]
        several = [number for number, group in enumerate(good) if len(group) > 1]
        diversity = np.full(len(self.groups), np.nan)
        diversity[several] = metrics.diversity(self.networks.perceptual, images, good)
        arrays: dict[str, Any] = {
            "features": self.networks.features.features(images).float().numpy(),
            "vectors": self.networks.alignment.image_vectors(images).float().numpy(),
            "diversity": diversity,
            "failed": failed,
            "shown": images[:SHOWN].numpy(),
        }
        arrays |= {"by": self._names, "facts": json.dumps(facts | {"digest": digest_of(arrays)})}
        write_bytes(path, functools.partial(save_arrays, arrays))
        shutil.rmtree(batches)
        self._checked.add(cell)
        return observation_of(arrays)

    def _read(self, cell: Cell, path: Path) -> Observation | None:
        """Return the stored observation of a cell.

        None if there is no file, if it is damaged, or if other networks or other weights computed it.
        """
        try:
            with np.load(path) as stored:
                if str(stored["by"]) != self._names:
                    return None
                observation, digest = observation_of(dict(stored)), digest_of(stored)
        except Exception:  # zipfile, numpy and json raise many types for a truncated or foreign file
            return None
        if observation.digest != digest:
            return None
        if cell not in self._checked:
            shown = torch.from_numpy(observation.shown)
            features = self.networks.features.features(shown)
            vectors = self.networks.alignment.image_vectors(shown)
            if not (are_close(features, observation.features) and are_close(vectors, observation.vectors)):
                return None
            self._checked.add(cell)
        return observation

    @property
    def _names(self) -> str:
        return json.dumps([self.networks.features.name, self.networks.perceptual.name, self.networks.alignment.name])

    def _generate(
        self, cell: Cell, folder: Path, on_batch: Callable[[int], None]
    ) -> tuple[torch.Tensor, np.ndarray, dict[str, float]]:
        """Return the images (n, 3, height, width) as bytes, which of them failed, and the mean cost.

        Batches are stored in the folder, so that a killed run continues after the last one.
        """
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        count, done = len(self.prompts), set[int]()
        for file in folder.glob("*.npz"):
            stored = read_batch(file, count)
            if stored is None:
                file.unlink()  # damaged: its images are generated again
            else:
                done.update(stored["indices"].tolist())
        if len(done) < count:
            self._load(cell.model)
            if self._warm != self._loaded:
                for some in (self.prompts, self.prompts[:1]):  # a compiled denoiser may compile again for few rows
                    warm_up(self.pipe, some, **self.arguments)
                self._warm = self._loaded
        plan = self._plan(cell)
        own = {**self.arguments, "num_inference_steps": cell.steps, "output_type": "pt"}
        run = prepare(self.pipe, self.prompts, EXACT, plan=plan, **own)
        # where memory runs out, a batch is split and stored in parts
        for batch in run.batches(skip=done.issuperset):
            arrays = {
                "indices": batch.images,
                "pixels": torch.stack([as_bytes(image).cpu() for image in batch.output.images]).numpy(),
                "failed": batch.failed,
                "costs": [batch.cost.used / len(batch.images), batch.seconds["denoise"] / len(batch.images)],
            }
            file = folder / f"{batch.images[0]:06d}-{len(batch.images)}.npz"
            write_bytes(file, functools.partial(save_arrays, arrays))
            on_batch(len(batch.images))
        images, failed, costs = np.empty(0, np.uint8), np.zeros(count, bool), np.zeros((count, 2))
        # sorted, because a batch and a part of it may both be stored
        for file in sorted(folder.glob("*.npz")):
            if (stored := read_batch(file, count)) is None:
                raise CotrunkError(f"{file} is damaged: delete it and run the command again.")
            indices = stored["indices"]
            if not images.size:
                images = np.empty((count, *stored["pixels"].shape[1:]), np.uint8)
            images[indices], costs[indices] = stored["pixels"], stored["costs"]
            failed[indices] = np.isin(indices, stored["failed"])
        rows, seconds = costs.mean(axis=0).tolist()
        return torch.from_numpy(images), failed, {"rows": rows, "seconds": seconds, "saving": plan.cost.saving}

    def _plan(self, cell: Cell) -> Plan:
        """Return the plan in which each group branches after `share` of the timesteps."""
        own = {**self.arguments, "num_inference_steps": cell.steps}
        steps, timesteps = timesteps_of(self.pipe, own)
        order = getattr(self.pipe.scheduler, "order", 1)
        stop = int(cell.share * timesteps + 1e-9) // order * order
        seeds = [0] * len(self.prompts)
        trees = []
        for number, group in enumerate(self.groups):
            group_seed = _seed(cell.seed, number, 0)
            trees += flat_tree(group, stop, timesteps)
            for member, image in enumerate(group):
                # the first image of a group has the same initial noise whether the group shares or not
                is_common = stop and cell.noise == "common"
                seeds[image] = group_seed if is_common else _seed(cell.seed, number, member)
        facts = (steps, timesteps, guidance_rows(self.pipe, own))
        sharing = Sharing(cell.share, -1.0, max_group=None, noise=cell.noise, trunk_guidance=cell.trunk_guidance)
        plan = Plan(tuple(self.prompts), tuple(seeds), tuple(trees), *facts, sharing=sharing, threshold=-1.0)
        return plan if stop else plan.independent()

    def _load(self, model: str) -> None:
        """Load the LoRA of this model into the pipeline, and remove any other."""
        if model not in self.loras:
            raise CotrunkError(f"There is no model {model!r} here: use one of {', '.join(self.loras)}.")
        if model == self._loaded:
            return
        if self._loaded is not None and self.loras[self._loaded] is not None:
            remove_lora(self.pipe, self._changed)
        self._loaded = None  # stays so if loading fails
        lora = self.loras[model]
        if lora is not None:
            self._changed = load_lora(self.pipe, lora)
        self._loaded = model

    def name(self, cell: Cell) -> str:
        """Return the name of a cell's files, which depends on model, LoRA, prompts and scheme."""
        share = f"share{100 * cell.share:g}" if cell.share else "independent"
        if cell.trunk != PUBLISHED:
            share += f"-{cell.noise}{100 * cell.trunk_guidance:g}"
        model = re.sub(r"[^A-Za-z0-9]+", "-", cell.model) + self.lora_marks.get(cell.model, "")
        return f"{model}-{share}-{cell.steps}steps-seed{cell.seed}-{self.mark}"


def _lora_digest(path: Path) -> str:
    """Return a digest of a LoRA: of its file or files, or of its name if it is on the hub."""
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
