"""Cosines between prompts, rounded so that floating-point rounding never decides which prompts share.

They are computed in float64 between float32 unit rows, and compared as whole numbers of millionths.
"""

import numpy as np
from numpy.typing import NDArray

GRID = 1_000_000  # cosines are compared as integers, after multiplication by this

Unit = NDArray[np.float32]


def unit_rows(vectors: NDArray[np.floating], order: NDArray[np.intp] | None = None) -> Unit:
    """Return rows of unit length, float32; a row that is zero or holds a value that is not finite becomes zero.

    Args:
        vectors: (n, d).
        order: the numbers of the rows to return; None for all of them.
    """
    count = len(vectors) if order is None else len(order)
    unit = np.empty((count, *vectors.shape[1:]), np.float32)
    for start in range(0, count, 4096):  # in blocks: float64 copies of 100,000 rows are large
        some = slice(start, start + 4096) if order is None else order[start : start + 4096]
        block = np.asarray(vectors[some], np.float64)
        block = np.where(np.isfinite(block).all(axis=1, keepdims=True), block, 0.0)
        length = np.linalg.norm(block, axis=1, keepdims=True)
        unit[start : start + 4096] = np.divide(block, length, out=np.zeros_like(block), where=length > 0)
    unit += np.float32(0)  # turns -0.0 into 0.0: equal rows have equal bytes
    return unit


def grid_cosines(unit: Unit, other: Unit | None = None) -> NDArray[np.float64]:
    """Return cosines times 1e6 as whole numbers: (n, d), (m, d) -> (n, m)."""
    right = unit if other is None else other
    return np.rint((unit.astype(np.float64) @ right.astype(np.float64).T).clip(-1, 1) * GRID)
