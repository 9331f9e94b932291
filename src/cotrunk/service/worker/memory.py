"""Vectors of prompts that were embedded before."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...planning.embedding import Encoder

MOST = 50_000  # prompts; 768 numbers each take 150 MB


def remembering(encoder: Encoder, most: int = MOST) -> Encoder:
    """Return the encoder with a memory of its latest prompts, so that each prompt is embedded once.

    Args:
        encoder: whose vectors do not depend on the other prompts that are encoded with one.
        most: how many prompts are remembered.
    """
    known: OrderedDict[str, np.ndarray] = OrderedDict()

    def encode(prompts: Sequence[str]) -> np.ndarray:
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in known))
        if new:
            known.update(zip(new, encoder.encode(new), strict=True))
        for prompt in prompts:
            known.move_to_end(prompt)
        found = np.stack([known[prompt] for prompt in prompts])
        while len(known) > most:
            known.popitem(last=False)
        return found

    return replace(encoder, encode=encode)
