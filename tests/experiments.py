"""A small experiment for the tests of `evaluate` and `tune`: groups of prompts, and networks with known values."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import sd_with_text

from cotrunk.evaluation.experiment import Experiment
from cotrunk.evaluation.networks import MetricNetworks
from cotrunk.execution import Run

GROUPS = [["a red picture", "a green picture"], ["a dog", "a cat", "a cow"], ["alone"]]
COUNT = 6


class Brightness:
    """A distance with known values."""

    name = "brightness"

    def distances(self, images: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        left, right = images.float().flatten(1).mean(dim=1)[pairs].unbind(dim=1)
        return (left - right).abs()


class Means:
    """Features and alignment with known values: mean colours, and lengths of texts."""

    name = "mean colours"
    resize = "1 x 1 pixel, mean"

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.double().mean(dim=(2, 3))

    def image_vectors(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.features(images), dim=1)

    def text_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        vectors = torch.tensor([[len(text), text.count("a") + 1, 3.0] for text in texts], dtype=torch.float64)
        return torch.nn.functional.normalize(vectors, dim=1)


NETWORKS = MetricNetworks(Means(), Brightness(), Means())


def experiment(out: Path, networks: MetricNetworks = NETWORKS, **loras: Path) -> Experiment:
    models: dict[str, Path | None] = {"pre-trained": None, **loras}
    sizes = {"height": 32, "width": 32}
    return Experiment(sd_with_text().pipe, GROUPS, models, networks, out, guidance=3.0, arguments=sizes)


def broken(own: Experiment, monkeypatch: pytest.MonkeyPatch, *images: int) -> None:
    """Replace these images of all cells by NaN."""
    call = Run._call

    def with_nan(run: Run, trees: Any, on_step: Any) -> Any:
        batch = call(run, trees, on_step)
        failed = tuple(image for image in batch.images if image in images)
        for image in failed:
            batch.output.images[batch.images.index(image)] = torch.nan
        return dataclasses.replace(batch, failed=failed)

    monkeypatch.setattr(Run, "_call", with_nan)
