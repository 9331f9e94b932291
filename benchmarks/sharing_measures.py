"""Measure images of `similar_prompts`, keep the measurements in files, and compare settings.

A cell is one run of one setting: an image per prompt. Figures are per kind of group over all runs of a setting, with
bootstrap intervals over groups, whose images of all runs are resampled together. A change is resampled with the same
groups for both settings.
"""

import argparse
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from similar_prompts import FAMILY, GROUP, KINDS, PROMPTS

from cotrunk.evaluation import metrics
from cotrunk.evaluation.emoji import EmojiAlignment
from cotrunk.evaluation.networks import EfficientNetLite0

Values = dict[str, np.ndarray]


def common_arguments(description: str | None, models: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark that measures cells."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", type=Path, required=True, help="folder of the measured cells")
    parser.add_argument("--models", nargs="+", default=list(models))
    parser.add_argument("--compile", action="store_true", help="compile the UNet: pays from about ten cells on")
    parser.add_argument("--runs", type=int, default=2, help="images per prompt")
    return parser


class OnePass(EfficientNetLite0):
    """Features of images and distances within their groups of four, from one pass of the network."""

    def read(self, images: torch.Tensor, own: torch.Tensor | None = None) -> Values:
        """Return features (n, d), distances (n / 4, 6) within groups, and (n,) to `own`, paired images if given."""
        features, within, apart = [], [], []
        others = itertools.repeat(None) if own is None else self._maps(own)
        for maps, of_own in zip(self._maps(images), others, strict=own is not None):
            features.append(F.normalize(maps[-1].mean(dim=(2, 3)).double(), dim=1))
            unit = [F.normalize(depth, dim=1) for depth in maps]
            left, right = torch.combinations(torch.arange(GROUP)).unbind(dim=1)
            within.append(sum(_apart(depth[left], depth[right]) for depth in unit))
            if of_own is not None:
                apart.append(sum(_apart(a, F.normalize(b, dim=1)) for a, b in zip(unit, of_own, strict=True)))
        self._read = torch.cat(features)
        found = {"features": self._read.numpy(), "within": torch.stack(within).double().numpy()}
        return found if own is None else found | {"distance": torch.cat(apart).double().numpy()}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of the images that were read last."""
        return self._read


def _apart(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left - right).square().sum(dim=1).mean(dim=(1, 2))


class Gauge:
    """The metric networks. Diversity and bleed are measured within groups of four, also of larger trees."""

    def __init__(self) -> None:
        self.network = OnePass()
        self.aligner = EmojiAlignment(self.network)
        self.texts = self.aligner.text_vectors(PROMPTS)
        self.groups = [range(start, start + GROUP) for start in range(0, len(PROMPTS), GROUP)]

    def measure(self, images: torch.Tensor, own: torch.Tensor | None = None) -> Values:
        """Return one value per image or per group of one run: bytes (prompts, 3, height, width).

        With `own`, the images of independent sampling from the same noise, also PSNR and perceptual distance to them.
        """
        found = self.network.read(images, own)
        vectors = self.aligner.image_vectors(images)
        found["alignment"] = metrics.alignment(vectors, self.texts)
        found["bleed"] = metrics.bleed(vectors, self.texts, self.groups)
        found["diversity"] = found.pop("within").mean(axis=1)
        if own is not None:
            squared = ((images.double() - own.double()) / 255).square().mean(dim=(1, 2, 3))
            found["psnr"] = (-10 * squared.clamp(min=1e-10).log10()).numpy()
        return found


class Cells:
    """The measured cells in a folder, one file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> Values:
        """Return a cell from its file; if there is none, make it."""
        text = json.dumps(key | {"prompts": PROMPTS}, sort_keys=True)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        if not path.exists():
            part = path.with_suffix(".part.npz")
            np.savez(part, **make())
            part.replace(path)
        with np.load(path) as found:
            return dict(found)


def joined(runs: list[Values]) -> Values:
    """Return the cells of several runs as one, run after run; rows are averaged."""
    found = {name: np.concatenate([run[name] for run in runs]) for name in runs[0] if runs[0][name].ndim}
    return found | {"rows": np.mean([run["rows"] for run in runs]), "largest": runs[0]["largest"]}


def figures(cell: Values, reference: Values, kind: str, against: dict[str, Values]) -> dict[str, Any]:
    """Return the figures of a setting, and its changes against others by name.

    Changes are relative ("against") and for bleed and Frechet distance also absolute ("behind"). Trees of more than
    four prompts are resampled as families.
    """
    size = FAMILY if cell["largest"] > GROUP else GROUP
    runs = range(0, len(cell["alignment"]), len(PROMPTS))
    starts = range(KINDS[kind].start, KINDS[kind].stop, size)
    images = [[run + start + i for run in runs for i in range(size)] for start in starts]
    groups = [sorted({image // GROUP for image in own}) for own in images]
    chosen = [image for own in images for image in own]
    local = list(np.arange(len(chosen)).reshape(len(images), -1))
    real, features = (torch.from_numpy(each["features"][chosen]) for each in (reference, cell))
    found: dict[str, Any] = {"images": len(chosen), "rows": float(cell["rows"])}
    for name, parts in (("alignment", images), ("bleed", images), ("diversity", groups)):
        found[name] = asdict(metrics.mean(cell[name], parts))
        for other, values in against.items():
            change = metrics.change(cell[name], values[name], parts)
            found[f"{name} against {other}"] = asdict(change.relative)
            found[f"{name} behind {other}"] = asdict(change.absolute)
    found["frechet"] = asdict(metrics.frechet(features, real, local, local))
    for other, values in against.items():
        change = metrics.frechet_change(features, torch.from_numpy(values["features"][chosen]), real, local, local)
        found[f"frechet against {other}"] = asdict(change.relative)
        found[f"frechet behind {other}"] = asdict(change.absolute)
    if "psnr" in cell:
        psnr, distance = (cell[name][chosen] for name in ("psnr", "distance"))
        count = len(chosen) // 20
        found["psnr"] = asdict(metrics.mean(psnr, local)) | {"worst": float(np.sort(psnr)[:count].mean())}
        found["distance"] = asdict(metrics.mean(distance, local)) | {"worst": float(np.sort(distance)[-count:].mean())}
    return found
