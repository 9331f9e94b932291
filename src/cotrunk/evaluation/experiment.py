"""Models under sampling schemes: the pictures of every cell, made once and kept, and what is measured on them."""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..arguments import guidance_rows, timesteps_of
from ..errors import CotrunkError
from ..files import write_bytes
from ..generation import prepare
from ..models import load_lora
from ..plan import Branch, Plan, leaf
from ..waves import WAVE
from . import metrics
from .networks import AlignmentNetwork, FeatureNetwork, Inception, PerceptualNetwork


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
        diversity: (groups,) mean distance of two pictures of a group; NaN for a group of one.
        rows, seconds: of denoising, for one picture.
        saving: part of the rows that sharing saved.
        failed: pictures that held a NaN.
    """

    features: torch.Tensor
    vectors: torch.Tensor
    diversity: np.ndarray
    rows: float
    seconds: float
    saving: float
    failed: int


@dataclass(frozen=True)
class Result:
    """What was measured on a scheme, over all its seeds.

    `frechet` is to the real pictures, `diversity` within groups, `bleed` the part of the pictures that match another
    prompt of their group better than their own.
    """

    cell: Cell
    seeds: int
    rows: float
    seconds: float
    saving: float
    failed: int
    figures: dict[str, metrics.Figure]


class Experiment:
    """Groups of prompts, the real pictures that go with them, a pipeline, and a folder for what comes out.

    Args:
        pipe: the pre-trained pipeline.
        groups: captions, a list a group.
        real: (n, 3, height, width) bytes, what Frechet distances are taken to.
        loras: by the name of a model, the folder of its LoRA; None for the pipeline as it is.
        judges: the networks.
        out: a folder; pictures are kept in `cells/`, and a cell that is there is not made again.
        guidance: the guidance scale of every cell.
        arguments: what the pipeline needs beside the prompt.
    """

    def __init__(
        self,
        pipe: Any,
        groups: Sequence[Sequence[str]],
        real: torch.Tensor,
        loras: dict[str, Path | None],
        judges: Judges,
        out: Path,
        *,
        guidance: float = 7.5,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        if not groups:
            raise CotrunkError("There are no groups of prompts: give at least one.")
        self.pipe, self.loras, self.judges, self.out = pipe, loras, judges, out
        self.prompts = [prompt for group in groups for prompt in group]
        ends = np.cumsum([len(group) for group in groups])
        self.groups = [list(range(end - len(group), end)) for group, end in zip(groups, ends, strict=True)]
        self.arguments = {"guidance_scale": guidance, **(arguments or {})}
        self.real_features = judges.features.features(real)
        self.text_vectors = judges.alignment.of_texts(self.prompts)
        self._loaded: str | None = None
        denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
        facts = [self.prompts, self.groups, self.arguments, _settings_of(pipe.scheduler), weights_digest(denoiser)]
        self.mark = hashlib.sha256(json.dumps(facts, default=str, sort_keys=True).encode()).hexdigest()[:12]
        self.lora_marks = {name: "" if path is None else _file_digest(path) for name, path in loras.items()}
        judged = torch.cat([self.real_features.flatten(), self.text_vectors.flatten()])
        self.judged_by = [judges.features.name, judges.perceptual.name, judges.alignment.name]
        self.judged_by += [hashlib.sha256(judged.numpy().tobytes()).hexdigest()[:12]]

    def equal_cost(self, cell: Cell) -> Cell:
        """Independent sampling with as many steps as cost no more rows than this cell."""
        rows = self._plan(cell).cost.used
        for steps in range(cell.steps, 0, -1):
            alone = Cell(cell.model, 0.0, steps, cell.seed)
            if self._plan(alone).cost.used <= rows:
                return alone
        raise CotrunkError(f"No number of steps costs as little as sharing {cell.share:.0%} does.")

    def look(self, cell: Cell, on_wave: Callable[[int], None] = lambda pictures: None) -> Seen:
        """Make the pictures of a cell and show them to the networks, or take what is there."""
        path = self.out / "cells" / f"{self._name(cell)}.seen.npz"
        by = json.dumps(self.judged_by)
        if path.exists():
            with np.load(path) as known:
                if str(known["by"]) == by:
                    return _seen(dict(known))
        found = self._pictures(cell, on_wave)
        pictures = torch.from_numpy(found["pictures"])
        diversity = np.full(len(self.groups), np.nan)
        several = [number for number, group in enumerate(self.groups) if len(group) > 1]
        diversity[several] = metrics.diversity(self.judges.perceptual, pictures, self.groups)
        made = {
            "by": by,
            "facts": found["facts"],
            "features": self.judges.features.features(pictures).float().numpy(),
            "vectors": self.judges.alignment.of_pictures(pictures).float().numpy(),
            "diversity": diversity,
        }
        write_bytes(path, lambda file: np.savez(file, **made))
        return _seen(made)

    def measure(self, cells: Sequence[Cell], groups: Sequence[int] | None = None) -> Result:
        """Measure cells that differ in their seeds alone, as one; on these groups only, or on all."""
        seen = [self.look(cell) for cell in cells]
        chosen = range(len(self.groups)) if groups is None else groups
        rows, parts = self._rows(len(cells), chosen)
        features, vectors = (torch.cat([getattr(one, name) for one in seen])[rows] for name in ("features", "vectors"))
        texts = self.text_vectors.repeat(len(cells), 1)[rows]
        bleeds = [metrics.bleed(one.vectors, self.text_vectors, self.groups) for one in seen]
        diversity = _mean_diversity(seen)[list(chosen)]
        figures = {
            "frechet": metrics.frechet(features.double(), self.real_features, parts, self._dimensions),
            "alignment": metrics.mean(metrics.alignment(vectors, texts), parts),
            "diversity": metrics.mean(diversity),
            "bleed": metrics.mean(np.concatenate(bleeds)[rows], parts),
        }
        mean = {name: float(np.mean([getattr(one, name) for one in seen])) for name in ("rows", "seconds", "saving")}
        return Result(cells[0], len(cells), **mean, failed=sum(one.failed for one in seen), figures=figures)

    def compare(self, cells: Sequence[Cell], others: Sequence[Cell]) -> dict[str, metrics.Figure]:
        """What cells have more than others, by measure: with the same prompts and seeds, and groups drawn alike."""
        mine, theirs = ([self.look(cell) for cell in part] for part in (cells, others))
        rows, parts = self._rows(len(cells), range(len(self.groups)))
        texts = self.text_vectors.repeat(len(cells), 1)[rows]

        def pooled(seen: list[Seen]) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
            features, vectors = (
                torch.cat([getattr(one, name) for one in seen])[rows] for name in ("features", "vectors")
            )
            return features, metrics.alignment(vectors, texts), _mean_diversity(seen)

        (features, aligned, diverse), (other, other_aligned, other_diverse) = pooled(mine), pooled(theirs)
        return {
            "frechet": metrics.frechet_difference(features, other, self.real_features, parts, self._dimensions),
            "alignment": metrics.difference(aligned, other_aligned, parts),
            "diversity": metrics.difference(diverse, other_diverse),
        }

    def _rows(self, runs: int, chosen: Sequence[int]) -> tuple[torch.Tensor, list[list[int]]]:
        """The pictures of these groups in all runs: their places among all pictures of all runs, and the groups by
        their places among those. Pictures of a group from several seeds belong together, for they share its prompts."""
        count, rows, parts = len(self.prompts), list[int](), list[list[int]]()
        for number in chosen:
            own = [run * count + image for run in range(runs) for image in self.groups[number]]
            parts.append(list(range(len(rows), len(rows) + len(own))))
            rows += own
        return torch.tensor(rows), parts

    @property
    def _dimensions(self) -> int | None:
        """FID is taken in all dimensions; elsewhere the main ones, in which some hundred pictures tell something."""
        return None if isinstance(self.judges.features, Inception) else 64

    def pictures(self, cell: Cell) -> np.ndarray:
        """(n, 3, height, width) bytes of a cell."""
        return self._pictures(cell, lambda pictures: None)["pictures"]

    def _pictures(self, cell: Cell, on_wave: Callable[[int], None]) -> dict[str, Any]:
        path = self.out / "cells" / f"{self._name(cell)}.npz"
        if not path.exists():
            waves = path.with_suffix(".waves")
            waves.mkdir(parents=True, exist_ok=True)
            self._load(cell.model)
            plan = self._plan(cell)
            own = {**self.arguments, "num_inference_steps": cell.steps, "output_type": "pt"}
            run = prepare(self.pipe, self.prompts, plan=plan, wave_size=WAVE, **own)

            def file_of(images: Sequence[int]) -> Path:
                return waves / f"{images[0]:06d}-{len(images)}.npz"

            for wave in run.waves(skip=lambda images: file_of(images).exists()):  # a killed run goes on with the next
                bytes_ = [(picture.float().clamp(0, 1) * 255).round().byte().cpu() for picture in wave.output.images]
                counts = [wave.cost.used, wave.seconds["denoise"], len(wave.failed)]
                made = {"images": wave.images, "pictures": torch.stack(bytes_).numpy(), "counts": counts}
                write_bytes(file_of(wave.images), functools.partial(_savez, made))
                on_wave(len(wave.images))
            parts = [dict(np.load(file)) for file in sorted(waves.glob("*.npz"))]
            order = np.concatenate([part["images"] for part in parts]).argsort()
            rows, seconds, failed = np.sum([part["counts"] for part in parts], axis=0)
            count = len(self.prompts)
            facts = {"rows": rows / count, "seconds": seconds / count}
            facts |= {"saving": plan.cost.saving, "failed": int(failed)}
            stacked = np.concatenate([part["pictures"] for part in parts])[order]
            write_bytes(path, lambda file: np.savez(file, pictures=stacked, facts=json.dumps(facts)))
            for file in waves.iterdir():
                file.unlink()
            waves.rmdir()
        with np.load(path) as found:
            return dict(found)

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
            if stop and len(group) > 1:
                trees.append(Branch(tuple(group), 0, stop, 0.0, tuple(leaf(i, stop, timesteps) for i in group)))
            else:
                trees += [leaf(image, 0, timesteps) for image in group]
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
            self.pipe.unload_lora_weights()
        lora = self.loras[model]
        if lora is not None:
            load_lora(self.pipe, lora)
        self._loaded = model

    def _name(self, cell: Cell) -> str:
        share = f"share{100 * cell.share:g}" if cell.share else "independent"
        model = re.sub(r"[^A-Za-z0-9]+", "-", cell.model) + self.lora_marks.get(cell.model, "")
        return f"{model}-{share}-{cell.steps}steps-seed{cell.seed}-{self.mark}"


def _savez(arrays: dict[str, Any], file: BinaryIO) -> None:
    np.savez(file, **arrays)


def _seen(kept: dict[str, Any]) -> Seen:
    features, vectors = (torch.from_numpy(kept[name]).double() for name in ("features", "vectors"))
    return Seen(features, vectors, kept["diversity"], **json.loads(str(kept["facts"])))


def _mean_diversity(seen: Sequence[Seen]) -> np.ndarray:
    """(groups,) over several runs; NaN for a group of one."""
    return np.mean([one.diversity for one in seen], axis=0)


def _settings_of(scheduler: Any) -> dict[str, Any]:
    """What a scheduler is and was set to. What diffusers notes beside it is in no order: `_use_default_values` is a
    list made of a set."""
    own = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return {"class": type(scheduler).__name__, **own}


def weights_digest(module: torch.nn.Module) -> str:
    """What tells these weights from others: a sample of every tensor."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // 64)].float().cpu()
        found.update(name.encode() + some.numpy().tobytes())
    return found.hexdigest()[:12]


def _file_digest(path: Path) -> str:
    """Of a LoRA: the file, or those of its folder; its name where it is on the hub."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    found = hashlib.sha256(str(path).encode() if not files else b"")
    for file in files:
        found.update(file.read_bytes())
    return "-" + found.hexdigest()[:8]


def _seed(seed: int, group: int, member: int) -> int:
    return int(np.random.SeedSequence((seed, group, member)).generate_state(1, np.uint32)[0])
