"""Search nearest neighbours among unit vectors: exactly up to `EXACT_LIMIT` vectors, approximately beyond.

The exact search compares all pairs, so its cost grows with the square of their number. Beyond the limit, faiss divides
the vectors among cells around centroids (an inverted file), and searches only the cells that are nearest to a vector.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

EXACT_LIMIT = 25_000  # vectors; a core compares all their pairs in about four seconds
BLOCK = 65_536  # vectors whose neighbours are found at once
PROBES = 16  # cells that are searched per vector
PER_CELL = 256  # vectors in a mean cell
TRAINED_ON = 40  # vectors per centroid that place it
ROUNDING = 0.001  # largest error of a cosine; half precision rounds by less

Unit = NDArray[np.float32]


def neighbours(rows: Unit, count: int) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.int64]]]:
    """Yield the nearest neighbours of unit vectors, block by block. Each vector is one of its own neighbours.

    The result depends on the vectors and their order alone: centroids are placed from a fixed seed.

    Args:
        rows: (n, d) vectors of unit length.
        count: k, neighbours per vector, at most n.

    Yields:
        The number of the block's first vector.
        Cosines (b, k), largest first, with an error of at most `ROUNDING`.
        The numbers (b, k) of the neighbours. An approximate search may find fewer than k: then the cosine is negative
        infinity and the number -1.
    """
    import faiss

    if len(rows) <= EXACT_LIMIT:
        yield 0, *faiss.knn(rows, rows, count, metric=faiss.METRIC_INNER_PRODUCT)
        return
    width = rows.shape[1]
    cells = max(1, len(rows) // PER_CELL)
    centroids = faiss.IndexFlatIP(width)
    # half precision halves the memory; callers compute the cosines that decide themselves
    index = faiss.IndexIVFScalarQuantizer(
        centroids, width, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.niter, index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 8, 1, TRAINED_ON
    index.train(rows)
    for start in range(0, len(rows), BLOCK):
        index.add(rows[start : start + BLOCK])
    index.nprobe = PROBES
    for start in range(0, len(rows), BLOCK):
        cosines, found = index.search(rows[start : start + BLOCK], count)
        yield start, np.where(found < 0, -np.inf, cosines), found
