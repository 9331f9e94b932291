"""The pictures and captions of a set of groups as a model knows them: encoded once, kept on disk in half precision."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import CotrunkError
from ..files import write_bytes, write_text
from ..rows import SHARED
from .conditions import Conditions, moved
from .dataset import Pair

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
        self._common = torch.load(folder / "common.pt", weights_only=True)
        names = json.loads((folder / "done.json").read_text(encoding="utf-8"))["conditions"]
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
    """Encode the pictures and captions of these groups into a folder; where that was done before, nothing is."""
    if (folder / "done.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pairs, (height, width) = _pairs(groups), size
    captions = [*(pair.caption for pair in pairs), ""]
    chunk = max(1, min(CHUNK, PIXELS // (height * width)))
    latents: np.memmap | None = None
    for start in range(0, len(pairs), chunk):
        part = _latents(pipe, pairs[start : start + chunk], height, width).numpy()
        if latents is None:
            latents = _created(folder / "latents.npy", len(pairs), part)
        latents[start : start + len(part)] = part
        told(min(start + chunk, len(pairs)), len(pairs) + len(captions))
    rows: dict[str, np.memmap] = {}
    for start in range(0, len(captions), CHUNK):
        some = captions[start : start + CHUNK]
        flat = _flat(moved(moved(conditions.of(some), torch.half), "cpu"))
        own = {name: value for name, value in flat.items() if _has_rows(name, value, len(some))}
        if not start:
            common = {name: value for name, value in flat.items() if name not in own}
            write_bytes(folder / "common.pt", lambda file, common=common: torch.save(common, file))  # type: ignore[misc]
            rows = {name: _created(folder / f"{name}.npy", len(captions), value.numpy()) for name, value in own.items()}
        for name, array in rows.items():
            array[start : start + len(some)] = own[name].numpy()
        told(len(pairs) + start + len(some), len(pairs) + len(captions))
    if getattr(pipe.config, "force_zeros_for_empty_prompt", False):  # SDXL takes zeros for an empty prompt
        for name, array in rows.items():
            if name.rpartition(".")[2] in ("encoder_hidden_states", "text_embeds"):
                array[-1] = 0
    for array in rows.values():
        array.flush()
    if latents is not None:
        latents.flush()
    write_text(folder / "done.json", json.dumps({"conditions": list(rows)}) + "\n")


def size_of(pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width of the pictures in pixels: what is asked for, or what the pipeline makes by default."""
    config = (pipe.unet if hasattr(pipe, "unet") else pipe.transformer).config
    side = getattr(config, "sample_size", None)
    default = side * pipe.vae_scale_factor if isinstance(side, int) else None
    height, width = height or default, width or default
    if height is None or width is None:
        raise CotrunkError(f"{type(pipe).__name__} does not say how large its pictures are: give height and width.")
    return height, width


def picture_of(path: Path, height: int, width: int) -> torch.Tensor:
    """(3, height, width) in [-1, 1]: scaled to cover the size, the middle of it."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except OSError as error:
        raise CotrunkError(f"{path} cannot be read any more: make the groups anew with cotrunk dataset.") from error
    scale = max(height / picture.height, width / picture.width)
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    values = np.asarray(picture.crop((left, top, left + width, top + height)), np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)


def _pairs(groups: Sequence[Sequence[Pair]]) -> list[Pair]:
    return list(dict.fromkeys(pair for group in groups for pair in group))


@torch.no_grad()
def _latents(pipe: Any, pairs: Sequence[Pair], height: int, width: int) -> torch.Tensor:
    """(pictures, channels, height, width) as the denoiser knows them, in half precision: the most likely, no draws."""
    pictures = torch.stack([picture_of(pair.image, height, width) for pair in pairs])
    vae = pipe.vae
    found = vae.encode(pictures.to(vae.device, vae.dtype)).latent_dist.mode()
    shift, scale = getattr(vae.config, "shift_factor", None) or 0.0, vae.config.scaling_factor
    return ((found - shift) * scale).half().cpu()


def _created(path: Path, rows: int, like: np.ndarray) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=like.dtype, shape=(rows, *like.shape[1:]))


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
