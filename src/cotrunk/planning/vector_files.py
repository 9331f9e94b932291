"""Keep the vectors of prompts in files, so that embedding many prompts can be stopped and continued."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import CotrunkError
from ..files import check_folder, remove_parts, write_bytes, writing
from .embedding import Encoder
from .text_blocks import Vectors, blocks

ENCODER = "encoder.npy"  # the vectors of `PROBES`
# prompts whose vectors tell one encoder from another
PROBES = ("a red apple", "two dogs on a beach", "an oil painting of a lighthouse", "a very old and rusty robot")
# largest difference of a value between devices, precisions and numbers of threads; other encoders differ by much more
LIKE = 0.005

Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class VectorFiles:
    """A folder that keeps the vectors of an encoder.

    A file holds a block of texts: the vectors, and a digest of each text. A vector that is read differs from one that
    would be computed now by rounding alone.

    Attributes:
        folder: a new one, or one with vectors of the same encoder.
        on_block: called after each block with the numbers of different texts that are done, and of all.

    Raises:
        CotrunkError: the folder cannot be written.
    """

    folder: Path
    on_block: Callable[[int, int], object] | None = None

    def __post_init__(self) -> None:
        check_folder(self.folder, "folder for vectors")

    def kept(self, encoder: Encoder) -> Encoder:
        """Return an encoder that reads the vectors in the folder, and adds those that are missing."""
        return Encoder(encoder.name, lambda prompts: self._encode(encoder, prompts))

    def _encode(self, encoder: Encoder, prompts: Sequence[str]) -> Vectors:
        _check_same(encoder, self.folder)
        keys, place = np.unique(
            np.fromiter((_key(prompt) for prompt in prompts), np.uint64, len(prompts)), return_inverse=True
        )
        stored = [np.zeros(0, np.uint64), *(_keys(path) for path in _files(self.folder))]
        known = np.isin(keys, np.concatenate(stored))
        done = int(known.sum())
        for texts in blocks(prompt for prompt, number in zip(prompts, place, strict=True) if not known[number]):
            _write(self.folder, texts, encoder.encode(texts))
            done += len(texts)
            if self.on_block is not None:
                self.on_block(done, len(keys))
        return _collected(self.folder, keys, place)


def _collected(folder: Path, keys: Keys, place: NDArray[np.intp]) -> Vectors:
    """Return the vectors of prompts from the files.

    Args:
        keys: of the different prompts, ascending.
        place: for each prompt, the number of its key.
    """
    files = _files(folder)
    source, row = np.full(len(keys), -1), np.zeros(len(keys), np.intp)
    for number, path in enumerate(files):
        own = _keys(path)
        at = np.searchsorted(keys, own).clip(max=len(keys) - 1)
        is_wanted = keys[at] == own
        source[at[is_wanted]], row[at[is_wanted]] = number, np.flatnonzero(is_wanted)
    vectors: Vectors = np.zeros((0, 0), np.float32)
    for number in np.unique(source):
        with np.load(files[number], allow_pickle=False) as file:
            found = file["vectors"]
        if not len(vectors):
            vectors = np.empty((len(place), found.shape[1]), np.float32)
        wanted = np.flatnonzero(source[place] == number)
        vectors[wanted] = found[row[place[wanted]]]
    return vectors


def _check_same(encoder: Encoder, folder: Path) -> None:
    """Check that the vectors in a folder are those of an encoder. A new folder becomes the encoder's."""
    own = encoder.encode(PROBES)
    path = folder / ENCODER
    if not path.exists():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, lambda file: np.save(file, own))
    remove_parts(folder)
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise CotrunkError(f"{path} is damaged: remove it with the other files in its folder.") from None
    if found.shape != own.shape or not np.allclose(found, own, atol=LIKE):
        raise CotrunkError(f"{folder} holds vectors of another text encoder: name another folder, or a new one.")


def _key(text: str) -> int:
    """Return a digest of a text. Two of ten million texts have the same one with a probability of one in 300,000."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz"))


def _keys(path: Path) -> Keys:
    """Return the digests of the texts in a file; none if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["keys"]
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return np.zeros(0, np.uint64)


def _write(folder: Path, texts: Sequence[str], vectors: Vectors) -> None:
    keys = np.array([_key(text) for text in texts], np.uint64)
    name = hashlib.blake2b(keys.tobytes(), digest_size=16).hexdigest()
    write_bytes(folder / f"{name}.npz", lambda file: np.savez(file, keys=keys, vectors=vectors))
