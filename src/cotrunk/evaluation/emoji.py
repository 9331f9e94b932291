"""How well an emoji-like image matches a text: the counterpart of CLIP for the embedded models.

Two matrices map features of EfficientNet-Lite0 and sentence vectors of all-MiniLM-L6-v2 into one space.
`recipes/sage-mini` in the repository trains them on real emoji and validates them on held-out ones.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ..errors import CotrunkError
from ..planning.embedding import sentence_encoder
from .networks import EfficientNetLite0

WEIGHTS = Path(__file__).parent / "emoji.safetensors"


class EmojiAlignment:
    """Alignment of emoji-like images and texts (an `AlignmentNetwork`)."""

    name = "EfficientNet-Lite0 and MiniLM, aligned on emoji"

    def __init__(self, network: EfficientNetLite0, weights: Path = WEIGHTS) -> None:
        if not weights.exists():
            raise CotrunkError(f"{weights} is missing: reinstall cotrunk, or train it with recipes/sage-mini.")
        state = load_file(weights)
        self._images, self._texts = state["images"].double(), state["texts"].double()
        self._centre = state["centre"].double()
        self._network, self._encoder = network, sentence_encoder("minilm")

    def image_vectors(self, images: torch.Tensor) -> torch.Tensor:
        """Return unit vectors (n, d) for images (n, 3, height, width) in [0, 1]."""
        return F.normalize((self._network.features(images) - self._centre) @ self._images, dim=1)

    def text_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit vectors (n, d) for texts."""
        vectors = torch.from_numpy(self._encoder.encode(list(texts))).double()
        return F.normalize(vectors @ self._texts, dim=1)
