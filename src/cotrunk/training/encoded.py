"""A cache on disk of the images and captions of a set of groups, encoded once, in half precision."""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..errors import CotrunkError
from ..files import read_json, write_text, writing
from ..groups.captions import Pair
from ..pipelines.denoiser_arguments import SHARED
from .checkpoint import write_tensors
from .conditions import Conditions, moved
from .latents import latents_of

CHUNK = 32  # maximum captions, and images, that are encoded at once
PIXELS = 1 << 20  # maximum pixels of the images that are encoded at once; a VAE needs about 20 kB each in float32
Progress = Callable[[int, int], None]  # (images and captions encoded so far, their total number)


class EncodedGroups:
    """Latents and conditions of groups, read from disk row by row.

    Args:
        folder: written by `encode`.
        groups: from `dataset.read_groups`.
    """

    def __init__(self, folder: Path, groups: Sequence[Sequence[Pair]]) -> None:
        index = {pair: i for i, pair in enumerate(_pairs(groups))}
        self.groups = [[index[pair] for pair in group] for group in groups]
        self.count = len(index)
        self._latents = np.load(folder / "latents.npy", mmap_mode="r")
        self._common = _read_common(folder) or {}
        names = read_json(folder / "captions.json")["names"]
        self._rows = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}

    def batch(
        self, numbers: Sequence[int], is_uncaptioned: Sequence[bool]
    ) -> tuple[torch.Tensor, dict[str, Any], list[list[int]]]:
        """Return latents, conditions, and the members of each group as indices into the latents.

        Args:
            numbers: which groups.
            is_uncaptioned: per group, whether its captions are replaced by the empty caption.
        """
        images: list[int] = []
        captions: list[int] = []
        groups: list[list[int]] = []
        for number, empty in zip(numbers, is_uncaptioned, strict=True):
            own = self.groups[number]
            groups.append(list(range(len(images), len(images) + len(own))))
            images += own
            captions += [self.count] * len(own) if empty else own  # the last row is the empty caption
        rows = {name: torch.from_numpy(values[captions]) for name, values in self._rows.items()}
        return torch.from_numpy(self._latents[images]), _nested(self._common | rows), groups


def encode(
    pipe: Any,
    conditions: Conditions,
    groups: Sequence[Sequence[Pair]],
    size: tuple[int, int],
    folder: Path,
    on_encoded: Progress = lambda done, total: None,
) -> None:
    """Encode the images and captions of groups into a folder.

    Rows that the folder already has are not encoded again, unless a file is missing or damaged.

    Args:
        size: height and width in pixels.

    Raises:
        CotrunkError: an image cannot be read, an encoding is not finite, or the disk is full.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    pairs, (height, width) = _pairs(groups), size
    captions = [*(pair.caption for pair in pairs), ""]
    total = len(pairs) + len(captions)
    chunk = max(1, min(CHUNK, PIXELS // (height * width)))
    images = _Rows(folder, "images", len(pairs))
    while images.filled < len(pairs):
        part = pairs[images.filled : images.filled + chunk]
        images.add({"latents": latents_of(pipe, part, height, width).numpy()})
        on_encoded(images.filled, total)
    zeros = getattr(pipe.config, "force_zeros_for_empty_prompt", False)  # SDXL uses zeros for an empty prompt
    texts = _Rows(folder, "captions", len(captions))
    if _read_common(folder) is None:
        texts.filled = 0
    while texts.filled < len(captions):
        some = captions[texts.filled : texts.filled + CHUNK]
        flat = _flat(moved(moved(conditions.of(some), torch.half), "cpu"))
        names = [name for name, value in flat.items() if _has_rows(name, value, len(some))]
        if not texts.filled:
            write_tensors(folder / "common.pt", {name: value for name, value in flat.items() if name not in names})
        if zeros and not some[-1]:
            for name in names:
                if name.rpartition(".")[2] in ("encoder_hidden_states", "text_embeds"):
                    flat[name][-1] = 0
        for name in names:
            _check_finite(name, flat[name], some)
        texts.add({name: flat[name].numpy() for name in names})
        on_encoded(len(pairs) + texts.filled, total)


def _read_common(folder: Path) -> dict[str, Any] | None:
    """Return the conditions that all captions share, or None if the file is missing or damaged."""
    try:
        common = torch.load(folder / "common.pt", weights_only=True)
    except Exception:  # torch raises many types for a truncated file
        return None
    return common if isinstance(common, dict) else None


def _check_finite(name: str, rows: torch.Tensor, captions: Sequence[str]) -> None:
    """Check that the output of the text encoders is finite; only a mask may contain an infinity."""
    if "mask" in name or not rows.is_floating_point():
        return
    for caption, row in zip(captions, rows, strict=True):
        if not row.isfinite().all():
            raise CotrunkError(
                f"The text encoder's output for {caption!r} is not finite in half precision: use another dtype, such "
                "as bfloat16, or another model."
            )


class _Rows:
    """Arrays on disk that are filled row by row. A killed process keeps the rows that it recorded.

    If the record or an array is missing or damaged, filling starts again.

    Attributes:
        filled: number of rows that are on disk.
    """

    def __init__(self, folder: Path, kind: str, count: int) -> None:
        self._folder, self._record, self._count = folder, folder / f"{kind}.json", count
        self.filled, self._names = _read_record(self._record)
        if self.filled > count or not all(_holds(self._file(name), count, self.filled) for name in self._names):
            self.filled = 0

    def add(self, rows: dict[str, np.ndarray]) -> None:
        """Append rows to every array.

        Raises:
            CotrunkError: the disk is full, or the rows do not fit the arrays on disk.
        """
        if not self.filled:
            self._names = list(rows)
            for name, values in rows.items():
                _begin(self._file(name), (self._count, *values.shape[1:]), values.dtype)
        if list(rows) != self._names:
            raise CotrunkError(f"{self._folder} was encoded by another model: delete it and train again.")
        for name, values in rows.items():
            _append(self._file(name), self.filled, values)  # before the record counts them
        self.filled += len(next(iter(rows.values())))
        write_text(self._record, json.dumps({"filled": self.filled, "names": self._names}) + "\n")

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.npy"


def _read_record(path: Path) -> tuple[int, list[str]]:
    """Return the number of recorded rows and the names of their arrays; 0 if the record is missing or damaged."""
    try:
        record = read_json(path)
        filled, names = record["filled"], record["names"]
    except (OSError, ValueError, TypeError, KeyError):
        return 0, []
    is_record = type(filled) is int and filled > 0 and isinstance(names, list) and len(names) > 0
    return (filled, names) if is_record and all(isinstance(name, str) for name in names) else (0, [])


def _begin(path: Path, shape: tuple[int, ...], kind: np.dtype) -> None:
    """Write the header of an array file, without values."""
    head = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(kind)}
    with writing(path), path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, head)


def _append(path: Path, row: int, values: np.ndarray) -> None:
    """Write values to an array file, starting at this row."""
    with writing(path), path.open("r+b") as file:
        shape, kind = _read_head(file)
        if (shape[1:], kind) != (values.shape[1:], values.dtype):
            raise CotrunkError(f"{path} was encoded by another model: delete its folder and train again.")
        file.seek(row * _row_size(shape, kind), os.SEEK_CUR)
        file.truncate()  # removes rows that a killed run wrote but did not record
        file.write(values.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _holds(path: Path, count: int, filled: int) -> bool:
    """Return whether an array file has `count` rows and the first `filled` of them are written."""
    try:
        with path.open("rb") as file:
            shape, kind = _read_head(file)
            return shape[:1] == (count,) and path.stat().st_size >= file.tell() + filled * _row_size(shape, kind)
    except Exception:  # the file is missing, or numpy raises one of many types for a damaged one
        return False


def _read_head(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Read the header of an array file up to its values, and return its shape and dtype.

    Raises:
        ValueError: `_begin` did not write it.
    """
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a header of another version")
    shape, is_by_columns, kind = np.lib.format.read_array_header_1_0(file)
    if is_by_columns or kind.hasobject:
        raise ValueError("values in another order, or not numbers")
    return shape, kind


def _row_size(shape: tuple[int, ...], kind: np.dtype) -> int:
    return math.prod(shape[1:]) * kind.itemsize


def _pairs(groups: Sequence[Sequence[Pair]]) -> list[Pair]:
    return list(dict.fromkeys(pair for group in groups for pair in group))


def _has_rows(name: str, value: Any, count: int) -> bool:
    is_rows = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == count
    return is_rows and name.rpartition(".")[2] not in SHARED


def _flat(conditions: dict[str, Any]) -> dict[str, Any]:
    """Flatten nested dictionaries; names are joined by dots."""
    found: dict[str, Any] = {}
    for name, value in conditions.items():
        inner = _flat(value) if isinstance(value, dict) else None
        found |= {name: value} if inner is None else {f"{name}.{key}": own for key, own in inner.items()}
    return found


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Undo `_flat`."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        owner, _, key = name.rpartition(".")
        inner = found
        for part in owner.split(".") if owner else ():
            inner = inner.setdefault(part, {})
        inner[key] = value
    return found
