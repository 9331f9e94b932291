"""What metric networks compute from the images of a cell, and the files that store it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..settings import TrunkNoise

SHOWN = 8  # images per cell that are kept for figures
PUBLISHED: tuple[TrunkNoise, float] = ("common", 1.0)  # noise and trunk guidance of the paper


@dataclass(frozen=True)
class Cell:
    """One model under one sampling scheme.

    Attributes:
        model: name of the model; `Experiment.loras` has its LoRA.
        share: beta, the fraction of the steps that a group shares; 0 for independent sampling.
        steps: number of inference steps.
        seed: seed of the initial noise.
        noise, trunk_guidance: as in `Sharing`; the paper's where nothing is shared.
    """

    model: str
    share: float = 0.0
    steps: int = 30
    seed: int = 0
    noise: TrunkNoise = "common"
    trunk_guidance: float = 1.0

    @property
    def alone(self) -> "Cell":
        """Return independent sampling with the same model, steps and seed."""
        return Cell(self.model, 0.0, self.steps, self.seed)

    @property
    def trunk(self) -> tuple[TrunkNoise, float]:
        """Return how trunks are sampled: noise and guidance."""
        return self.noise, self.trunk_guidance


@dataclass(frozen=True)
class Observation:
    """What the metric networks computed from the images of a cell.

    Attributes:
        features: (n, d) features for Frechet distances.
        vectors: (n, e) unit vectors, in the same space as those of the prompts.
        diversity: (groups,) mean distance between two images of a group; NaN for groups with fewer than two.
        failed: (n,) whether an image contained a NaN; such images are not measured.
        shown: (SHOWN, 3, height, width) bytes of the first images; the others are not kept.
        rows, seconds: denoising cost per image.
        saving: fraction of the rows that sharing saved.
        digest: identifies the observation.
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


def observation_of(arrays: dict[str, Any]) -> Observation:
    """Return the observation that a file's arrays contain."""
    features, vectors = (torch.from_numpy(arrays[name]).double() for name in ("features", "vectors"))
    facts = json.loads(str(arrays["facts"]))
    return Observation(features, vectors, arrays["diversity"], arrays["failed"], arrays["shown"], **facts)


def digest_of(arrays: Mapping[str, Any]) -> str:
    """Return the digest of a file's arrays."""
    parts = (arrays[name] for name in ("features", "vectors", "diversity", "failed", "shown"))
    return hashlib.sha256(b"".join(array.tobytes() for array in parts)).hexdigest()[:12]


def save_arrays(arrays: dict[str, Any], file: BinaryIO) -> None:
    """Write arrays by name, as an npz file."""
    np.savez(file, **arrays)


def read_batch(file: Path, count: int) -> dict[str, np.ndarray] | None:
    """Return the stored batch of a cell, or None if the file is damaged.

    Args:
        count: number of images of the cell.
    """
    try:
        with np.load(file) as stored:
            batch = dict(stored)
        indices, pixels = batch["indices"], batch["pixels"]
        is_whole = (
            len(indices) == len(pixels) > 0
            and bool(((indices >= 0) & (indices < count)).all())
            and (pixels.dtype, pixels.ndim, pixels.shape[1]) == (np.uint8, 4, 3)
            and (batch["costs"].shape, bool(np.isfinite(batch["costs"]).all())) == ((2,), True)
            and batch["failed"].ndim == 1
        )
    except Exception:  # zipfile and numpy raise many types for a truncated or foreign file
        return None
    return batch if is_whole else None


def are_close(now: torch.Tensor, then: torch.Tensor) -> bool:
    """Return whether one network computed both, perhaps on another device.

    Args:
        now: (m, d) of the first images.
        then: (n, d) of all images.
    """
    if now.shape[1:] != then.shape[1:]:
        return False
    return torch.allclose(now.double(), then[: len(now)], rtol=0.01, atol=0.01 * float(then.abs().max()))
