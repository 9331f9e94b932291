"""The route of an image: its bucket, and the cell of the space of prompts in which its own prompt lies.

Images of one route go to one Painter. Similar prompts are mostly in one cell, so they meet there. A cell is the region
around one of a few centroids. At first they are the fixed prompts that also measure encoders. When enough different
prompts have come, centroids of these take their place (k-means). They are kept in the database, so that routes stay.
"""

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from ...service.store import ImageRow
from ...service.store.records import ALONE, digest

CELLS = 64  # several per replica, so that the load of replicas is even; more would part more similar prompts
STAGES = (512, 4096)  # different prompts from which centroids are learnt: soon, and once more from better evidence
ROUNDS = 20  # of k-means
Vectors = NDArray[np.float32]
Settle = Callable[[str, str | None], str | None]  # `Store.settled`
Encode = Callable[[Sequence[str]], Vectors]  # prompts -> unit vectors


class Routes:
    """Finds routes, and learns the centroids.

    Args:
        encode: returns the unit vectors of prompts; None if prompts do not share, which makes routes random.
        fixed: the prompts that are the centroids at first.
        settle: keeps what was learnt for good.
        name: of the encoder; centroids of different encoders cannot be used for each other.
    """

    def __init__(self, encode: Encode | None, fixed: Sequence[str], settle: Settle, name: str) -> None:
        self._encode, self._settle, self._name = encode, settle, name
        self._seen: dict[str, Vectors] = {}  # different prompts, until all stages are learnt
        self._stages = list(STAGES)
        self._centroids: Vectors = np.zeros((1, 1), np.float32)
        if encode is None:
            return
        self._centroids = encode(fixed)
        while self._stages and (text := settle(self._key(self._stages[0]), None)) is not None:
            self._centroids = from_text(text)
            self._stages.pop(0)

    def of(self, rows: Sequence[ImageRow]) -> list[str]:
        """Return the routes of images."""
        if self._encode is None:
            return [row.id for row in rows]
        sharing = [row.request.prompt for row in rows if row.request.group != ALONE]
        if not sharing:
            return [row.id for row in rows]
        vectors = dict(zip(sharing, self._encode(sharing), strict=True))
        self._learn(vectors)
        cells = dict(zip(vectors, nearest(np.stack([*vectors.values()]), self._centroids), strict=True))
        return [route_of(row, cells.get(row.request.prompt)) for row in rows]

    def _learn(self, vectors: dict[str, Vectors]) -> None:
        if not self._stages:
            return
        self._seen.update(vectors)
        if len(self._seen) >= self._stages[0]:
            stage = self._stages.pop(0)
            learnt = as_text(centroids_of(np.stack([*self._seen.values()]), CELLS))
            self._centroids = from_text(self._settle(self._key(stage), learnt) or learnt)
            if not self._stages:
                self._seen.clear()

    def _key(self, stage: int) -> str:
        return f"centroids {digest([self._name, CELLS, stage])}"


def route_of(row: ImageRow, cell: int | None) -> str:
    """Return the route of an image.

    Args:
        row: the image.
        cell: of its prompt.
    """
    return row.id if row.request.group == ALONE or cell is None else f"{row.bucket}-{cell}"


def nearest(vectors: Vectors, centroids: Vectors) -> list[int]:
    """Return the number of the nearest centroid of each vector."""
    return [int(cell) for cell in (vectors @ centroids.T).argmax(axis=1)]


def centroids_of(vectors: Vectors, count: int) -> Vectors:
    """Return the centroids of vectors, as unit vectors; at most so many.

    Args:
        vectors: (n, d), of unit length.
        count: how many.
    """
    order = np.lexsort(vectors.T)  # the order in which prompts come does not matter
    found, _ = kmeans2(vectors[order].astype(np.float64), min(count, len(vectors)), iter=ROUNDS, minit="++", seed=0)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return (found / np.maximum(lengths, 1e-12)).astype(np.float32)


def as_text(centroids: Vectors) -> str:
    """Return centroids as text, in half precision."""
    content = base64.b64encode(centroids.astype("<f2").tobytes()).decode("ascii")
    return json.dumps({"shape": list(centroids.shape), "float16": content})


def from_text(text: str) -> Vectors:
    """Return centroids from their text."""
    found: Any = json.loads(text)
    return np.frombuffer(base64.b64decode(found["float16"]), "<f2").reshape(found["shape"]).astype(np.float32)
