"""How well an emoji-like picture shows what a text says: the role of CLIP for the embedded model.

Features of EfficientNet-Lite0 and sentence vectors of all-MiniLM-L6-v2, brought together by two matrices. `recipes/
sage-mini` of the repository trains them on the real pictures and checks them on pictures that were held out.
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
    name = "EfficientNet-Lite0 and MiniLM, brought together on emoji"

    def __init__(self, network: EfficientNetLite0, weights: Path = WEIGHTS) -> None:
        if not weights.exists():
            raise CotrunkError(f"{weights} is missing: reinstall cotrunk, or train it with recipes/sage-mini.")
        state = load_file(weights)
        self._pictures, self._texts = state["pictures"].double(), state["texts"].double()
        self._centre = state["centre"].double()
        self._network, self._encoder = network, sentence_encoder("minilm")

    def of_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (n, 3, height, width) in [0, 1] to unit vectors (n, d)."""
        return F.normalize((self._network.features(pictures) - self._centre) @ self._pictures, dim=1)

    def of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts to unit vectors (n, d)."""
        vectors = torch.from_numpy(self._encoder.encode(list(texts))).double()
        return F.normalize(vectors @ self._texts, dim=1)
