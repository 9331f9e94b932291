"""Measure generated images with a network that was not trained on this recipe's images."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from autoencoder import load_images
from captions import read_lines
from cotrunk.evaluation.metrics import frechet_distance
from cotrunk.evaluation.networks import FeatureNetwork

PCA_DIMENSIONS = 64

Request = tuple[str, str, str | None]  # concept, style, colour of a copy (None: the image as it is)


@dataclass
class Real:
    """The real images, without copies in other colours, and quantities derived from their features."""

    images: torch.Tensor  # (n, 3, size, size) in [0, 1]
    features: torch.Tensor  # (n, 1280)
    names: list[str]  # concepts, in the order of the captions
    concept: torch.Tensor  # (n,) rows of `names`
    held_out: torch.Tensor  # (n,) never seen in training
    row: dict[tuple[str, str], int]  # (concept, style) -> image
    centroids: torch.Tensor  # (concepts, 1280)
    projection: torch.Tensor  # (1280, 64) for the Frechet distance
    unseen: list[Request]  # held-out combinations, including those in another colour

    @classmethod
    def of(cls, build: Path, network: FeatureNetwork) -> "Real":
        everything = read_lines(build)
        lines = [line for line in everything if not line["copy"]]
        images = load_images(build)[: len(lines)].float() / 255
        names = list(dict.fromkeys(line["concept"] for line in lines))
        number = {name: i for i, name in enumerate(names)}
        concept = torch.tensor([number[line["concept"]] for line in lines])
        found = network.features(images)
        sums = torch.zeros(len(names), found.shape[1], dtype=found.dtype).index_add_(0, concept, found)
        return cls(
            images=images,
            features=found,
            names=names,
            concept=concept,
            held_out=torch.tensor([line["held_out"] for line in lines]),
            row={(line["concept"], line["style"]): i for i, line in enumerate(lines)},
            centroids=F.normalize(sums, dim=1),
            projection=torch.linalg.svd(found - found.mean(dim=0), full_matrices=False).Vh[:PCA_DIMENSIONS].T,
            unseen=[
                (line["concept"], line["style"], line["colour"] if line["copy"] else None)
                for line in everything
                if line["held_out"]
            ],
        )

    def recognised(self, features: torch.Tensor, concept: torch.Tensor) -> dict[str, float]:
        """Return the share of images whose concept is the nearest, and among the five nearest."""
        nearest = (features @ self.centroids.T).topk(5, dim=1).indices == concept[:, None]
        return {"top1": float(nearest[:, 0].double().mean()), "top5": float(nearest.any(1).double().mean())}

    def leave_one_out(self) -> dict[str, float]:
        """Return the same for real images, each compared with the centroid of the *other* images of its concept.

        A perfect image in an unseen style would have this score.
        """
        counts = torch.bincount(self.concept)[self.concept].double()
        # centroids are unit vectors, so the sums are computed again to subtract one image
        sums = torch.zeros_like(self.centroids).index_add_(0, self.concept, self.features)[self.concept]
        own = (F.normalize((sums - self.features) / (counts - 1)[:, None], dim=1) * self.features).sum(dim=1)
        scores = self.features @ self.centroids.T
        scores[torch.arange(len(scores)), self.concept] = own
        nearest = scores.topk(5, dim=1).indices == self.concept[:, None]
        return {"top1": float(nearest[:, 0].double().mean()), "top5": float(nearest.any(1).double().mean())}

    def cosine(self, features: torch.Tensor, requests: list[Request]) -> float:
        """Return the mean cosine to the real image of the same concept and style."""
        own = self.features[[self.row[concept, style] for concept, style, _ in requests]]
        return float((features * own).sum(dim=1).mean())

    def halves(self) -> dict[str, float]:
        """Return the Frechet distance between two random halves of the real images, as a lower bound."""
        order = torch.randperm(len(self.features), generator=torch.Generator().manual_seed(0))
        one, two = self.features[order].tensor_split(2)
        return {"n": len(one), "frechet": self.frechet(one, two)}

    def frechet(self, features: torch.Tensor, reference: torch.Tensor | None = None) -> float:
        """Return the Frechet distance in the first 64 principal components, by default to held-out real images."""
        reference = self.features[self.held_out] if reference is None else reference
        return frechet_distance(features @ self.projection, reference @ self.projection, dimensions=None)

    def measures(self, features: torch.Tensor, requests: list[Request]) -> dict[str, float]:
        """Return all of these metrics for images generated for these requests."""
        concept = torch.tensor([self.names.index(name) for name, _, _ in requests])
        return {
            "n": len(requests),
            **self.recognised(features, concept),
            "cosine": self.cosine(features, requests),
            "frechet": self.frechet(features),
        }
