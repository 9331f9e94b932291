"""Choose the groups and the random numbers of each training pass, from its number alone."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import CotrunkError
from ..groups.captions import Pair
from .settings import TrainSettings


def pass_seed(seed: int, step: int, place: int) -> int:
    """Return the seed of one pass.

    Args:
        place: the number of the pass among all passes of its step, over all processes.
    """
    return int(np.random.SeedSequence((seed, step, place)).generate_state(1)[0])


def groups_of_pass(count: int, settings: TrainSettings, step: int, place: int, processes: int) -> list[int]:
    """Return the numbers of the groups of one pass.

    Every group comes once per epoch, in a random order for each epoch.

    Args:
        count: number of groups.
        place: as for `pass_seed`.
    """
    start = (step * settings.accumulation * processes + place) * settings.batch
    orders: dict[int, np.ndarray] = {}
    chosen = []
    for at in range(start, start + settings.batch):
        epoch, position = divmod(at, count)
        if epoch not in orders:
            orders[epoch] = np.random.default_rng((settings.seed, epoch)).permutation(count)
        chosen.append(int(orders[epoch][position]))
    return chosen


def data_digest(groups: Sequence[Sequence[Pair]]) -> str:
    """Return a digest of the captions, and of the name, size and modification time of each image file.

    Raises:
        CotrunkError: an image file cannot be read any more.
    """
    found, known = hashlib.sha256(), dict[Pair, str]()
    for group in groups:
        for pair in group:
            if pair not in known:
                known[pair] = f"{pair.caption}\n{pair.image.name} {_stamp(pair.image)}\n"
            found.update(known[pair].encode())
        found.update(b"\n")
    return found.hexdigest()[:12]


def _stamp(path: Path) -> str:
    try:
        state = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise CotrunkError(f"{path} cannot be read any more: make the groups again with cotrunk dataset.") from error
    return f"{state.st_size} {state.st_mtime_ns}"
