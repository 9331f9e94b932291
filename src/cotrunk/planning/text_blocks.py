"""Embed each different prompt once, block by block, from short to long."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 8192  # different prompts per block; a core embeds them with MiniLM in about twenty seconds
Vectors = NDArray[np.float32]


def blocks(prompts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the different prompts, from short to long. The blocks depend on the set of prompts alone."""
    distinct = sorted(set(prompts), key=lambda prompt: (len(prompt), prompt))
    for start in range(0, len(distinct), BLOCK):
        yield distinct[start : start + BLOCK]


def in_blocks(prompts: Sequence[str], embed: Callable[[list[str]], Vectors]) -> Vectors:
    """Return the vectors (n, d) of prompts. Each different prompt is embedded once.

    The last digits of a vector do not depend on the order of the prompts.

    Args:
        prompts: n texts.
        embed: returns the vectors (m, d) of a block of m different texts.
    """
    places: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(i)
    vectors: Vectors = np.zeros((0, 0), np.float32)
    for texts in blocks(places):
        found = embed(texts)
        if not len(vectors):
            vectors = np.empty((len(prompts), found.shape[1]), np.float32)
        counts = [len(places[text]) for text in texts]
        vectors[[i for text in texts for i in places[text]]] = np.repeat(found, counts, axis=0)
    return vectors
