"""The pictures and captions of a set of groups as a model knows them: encoded once, kept on disk in half precision."""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..errors import CotrunkError
from ..files import write_text, writing
from ..groups.captions import Pair
from ..pipelines.denoiser_arguments import SHARED
from .checkpoint import write_tensors
from .conditions import Conditions, moved
from .latents import _latents, picture_of

CHUNK = 32  # captions encoded at once
PIXELS = 1 << 20  # of the pictures that are encoded at once: in float32 an encoder needs some 20 kB for each
Told = Callable[[int, int], None]  # pictures and captions encoded, of how many


class Examples:
    """Latents and conditions of pictures and captions, read row by row from disk.

    Args:
        folder: what `encode` wrote.
        groups: of `dataset.read_groups`.
    """

    def __init__(self, folder: Path, groups: Sequence[Sequence[Pair]]) -> None:
        place = {pair: i for i, pair in enumerate(_pairs(groups))}
        self.groups = [[place[pair] for pair in group] for group in groups]
        self.count = len(place)
        self._latents = np.load(folder / "latents.npy", mmap_mode="r")
        self._common = _read_common(folder) or {}
        names = json.loads((folder / "captions.json").read_text(encoding="utf-8"))["names"]
        self._rows = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}

    def batch(
        self, numbers: Sequence[int], without: Sequence[bool]
    ) -> tuple[torch.Tensor, dict[str, Any], list[list[int]]]:
        """Latents, conditions and groups (by place among them) of these groups; `without`: those without captions."""
        pictures: list[int] = []
        captions: list[int] = []
        groups: list[list[int]] = []
        for number, empty in zip(numbers, without, strict=True):
            own = self.groups[number]
            groups.append(list(range(len(pictures), len(pictures) + len(own))))
            pictures += own
            captions += [self.count] * len(own) if empty else own  # the empty caption is the last row
        rows = {name: torch.from_numpy(values[captions]) for name, values in self._rows.items()}
        return torch.from_numpy(self._latents[pictures]), _nested(self._common | rows), groups


def encode(
    pipe: Any,
    conditions: Conditions,
    groups: Sequence[Sequence[Pair]],
    size: tuple[int, int],
    folder: Path,
    told: Told = lambda done, of: None,
) -> None:
    """Encode the pictures and captions of these groups into a folder. What it holds is not encoded again, unless a part
    of it is missing or damaged.

    Raises:
        CotrunkError: a picture that cannot be read, something encoded that is not finite, or no room.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    pairs, (height, width) = _pairs(groups), size
    captions = [*(pair.caption for pair in pairs), ""]
    of = len(pairs) + len(captions)
    chunk = max(1, min(CHUNK, PIXELS // (height * width)))
    pictures = _Rows(folder, "pictures", len(pairs))
    while pictures.filled < len(pairs):
        part = pairs[pictures.filled : pictures.filled + chunk]
        pictures.add({"latents": _latents(pipe, part, height, width).numpy()})
        told(pictures.filled, of)
    zeros = getattr(pipe.config, "force_zeros_for_empty_prompt", False)  # SDXL takes zeros for an empty prompt
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
        told(len(pairs) + texts.filled, of)


def _read_common(folder: Path) -> dict[str, Any] | None:
    """What all captions have in common; None where it is missing or damaged."""
    try:
        common = torch.load(folder / "common.pt", weights_only=True)
    except Exception:  # whatever torch says to a file that is cut off
        return None
    return common if isinstance(common, dict) else None


def _check_finite(name: str, rows: torch.Tensor, captions: Sequence[str]) -> None:
    """That text encoders gave finite rows; a mask may hold an infinity."""
    if "mask" in name or not rows.is_floating_point():
        return
    for caption, row in zip(captions, rows, strict=True):
        if not row.isfinite().all():
            raise CotrunkError(
                f"The text encoder's output for {caption!r} is not finite in half precision: use another dtype, "
                "bfloat16 say, or another model."
            )


class _Rows:
    """Arrays on disk that are filled from the first row on. Rows that were added before a run was killed stay; where
    their record or an array is missing or damaged, all are to be added again.

    Attributes:
        filled: rows that are there.
    """

    def __init__(self, folder: Path, kind: str, count: int) -> None:
        self._folder, self._record, self._count = folder, folder / f"{kind}.json", count
        self.filled, self._names = _recorded(self._record)
        if self.filled > count or not all(_holds(self._file(name), count, self.filled) for name in self._names):
            self.filled = 0

    def add(self, rows: dict[str, np.ndarray]) -> None:
        """The next rows of every array.

        Raises:
            CotrunkError: the disk is full, or these are rows of other arrays than those before.
        """
        if not self.filled:
            self._names = list(rows)
            for name, values in rows.items():
                _begin(self._file(name), (self._count, *values.shape[1:]), values.dtype)
        if list(rows) != self._names:
            raise CotrunkError(f"{self._folder} holds what another model encoded: delete it, it is made again.")
        for name, values in rows.items():
            _append(self._file(name), self.filled, values)  # before the record says that they are there
        self.filled += len(next(iter(rows.values())))
        write_text(self._record, json.dumps({"filled": self.filled, "names": self._names}) + "\n")

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.npy"


def _recorded(path: Path) -> tuple[int, list[str]]:
    """How many rows of which arrays a record speaks of; none where it is missing or damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        filled, names = known["filled"], known["names"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return 0, []
    is_record = type(filled) is int and filled > 0 and isinstance(names, list) and len(names) > 0
    return (filled, names) if is_record and all(isinstance(name, str) for name in names) else (0, [])


def _begin(path: Path, shape: tuple[int, ...], kind: np.dtype) -> None:
    """An array file of this shape, as yet without its values."""
    head = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(kind)}
    with writing(path), path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, head)


def _append(path: Path, row: int, values: np.ndarray) -> None:
    """Write values from this row of an array file on."""
    with writing(path), path.open("r+b") as file:
        shape, kind = _head(file)
        if (shape[1:], kind) != (values.shape[1:], values.dtype):
            raise CotrunkError(f"{path} holds what another model encoded: delete its folder, it is made again.")
        file.seek(row * _row_size(shape, kind), os.SEEK_CUR)
        file.truncate()  # what a killed run added beyond its record
        file.write(values.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _holds(path: Path, count: int, filled: int) -> bool:
    """Whether an array file is one of `count` rows, and the first `filled` of them are there."""
    try:
        with path.open("rb") as file:
            shape, kind = _head(file)
            return shape[:1] == (count,) and path.stat().st_size >= file.tell() + filled * _row_size(shape, kind)
    except Exception:  # no such file, or whatever numpy says to a damaged one
        return False


def _head(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array file, which is then read up to its values.

    Raises:
        ValueError: not one that `_begin` wrote.
    """
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a header of another version")
    shape, is_by_columns, kind = np.lib.format.read_array_header_1_0(file)
    if is_by_columns or kind.hasobject:
        raise ValueError("values in another order, or no numbers")
    return shape, kind


def _row_size(shape: tuple[int, ...], kind: np.dtype) -> int:
    return math.prod(shape[1:]) * kind.itemsize


def pictures_of(groups: Sequence[Sequence[Pair]], height: int, width: int) -> tuple[torch.Tensor, list[list[int]]]:
    """The pictures of groups, each once, as bytes (n, 3, height, width), cut as `picture_of` cuts them; and the groups
    by their places among them. Bytes one by one: in float32 all would take four times the memory.

    Raises:
        CotrunkError: one cannot be read.
    """
    paths = dict.fromkeys(pair.image for group in groups for pair in group)
    place = {path: number for number, path in enumerate(paths)}
    pictures = [((picture_of(path, height, width) + 1) * 127.5).round().byte() for path in paths]
    return torch.stack(pictures), [[place[pair.image] for pair in group] for group in groups]


def _pairs(groups: Sequence[Sequence[Pair]]) -> list[Pair]:
    return list(dict.fromkeys(pair for group in groups for pair in group))


def _has_rows(name: str, value: Any, count: int) -> bool:
    is_rows = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == count
    return is_rows and name.rpartition(".")[2] not in SHARED


def _flat(conditions: dict[str, Any]) -> dict[str, Any]:
    """Nested names joined by dots."""
    found: dict[str, Any] = {}
    for name, value in conditions.items():
        inner = _flat(value) if isinstance(value, dict) else None
        found |= {name: value} if inner is None else {f"{name}.{key}": own for key, own in inner.items()}
    return found


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in flat.items():
        owner, _, key = name.rpartition(".")
        place = found
        for part in owner.split(".") if owner else ():
            place = place.setdefault(part, {})
        place[key] = value
    return found
