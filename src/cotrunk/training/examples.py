"""The pictures and captions of a set of groups as a model knows them: encoded once, kept on disk in half precision."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from PIL import Image, ImageOps

from ..compatibility import denoisers_of
from ..errors import CotrunkError
from ..files import write_bytes, write_text
from ..rows import SHARED
from .conditions import Conditions, moved
from .dataset import Pair
from .images import read_image

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
    """Encode the pictures and captions of these groups into a folder; what it holds is not encoded again."""
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
    while texts.filled < len(captions):
        some = captions[texts.filled : texts.filled + CHUNK]
        flat = _flat(moved(moved(conditions.of(some), torch.half), "cpu"))
        if not texts.filled:
            names = [name for name, value in flat.items() if _has_rows(name, value, len(some))]
            common = {name: value for name, value in flat.items() if name not in names}
            write_bytes(folder / "common.pt", functools.partial(torch.save, common))
        else:
            names = texts.names
        if zeros and not some[-1]:
            for name in names:
                if name.rpartition(".")[2] in ("encoder_hidden_states", "text_embeds"):
                    flat[name][-1] = 0
        texts.add({name: flat[name].numpy() for name in names})
        told(len(pairs) + texts.filled, of)


class _Rows:
    """Arrays on disk that are filled from the first row on. Rows that were added before a run was killed stay.

    Attributes:
        filled: rows that are there.
        names: of the arrays, each in a file of its own; known when there are rows.
    """

    def __init__(self, folder: Path, kind: str, count: int) -> None:
        self._folder, self._record, self._count = folder, folder / f"{kind}.json", count
        self._arrays: dict[str, np.memmap] = {}
        self.filled, self.names = 0, list[str]()
        if self._record.exists():
            known = json.loads(self._record.read_text(encoding="utf-8"))
            self.filled, self.names = known["filled"], known["names"]

    def add(self, rows: dict[str, np.ndarray]) -> None:
        """The next rows of every array."""
        if not self.filled:
            self.names = list(rows)
            self._arrays = {name: self._created(name, values) for name, values in rows.items()}
        elif not self._arrays:
            self._arrays = {name: np.load(self._folder / f"{name}.npy", mmap_mode="r+") for name in self.names}
        count = len(rows[self.names[0]])
        for name, array in self._arrays.items():
            array[self.filled : self.filled + count] = rows[name]
            array.flush()  # before the record says that they are there
        self.filled += count
        write_text(self._record, json.dumps({"filled": self.filled, "names": self.names}) + "\n")

    def _created(self, name: str, like: np.ndarray) -> np.memmap:
        shape = (self._count, *like.shape[1:])
        return np.lib.format.open_memmap(self._folder / f"{name}.npy", mode="w+", dtype=like.dtype, shape=shape)


def size_of(pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width of the pictures in pixels: what is asked for, or what the pipeline makes by default."""
    side = getattr(getattr(pipe, denoisers_of(pipe)[0]).config, "sample_size", None)
    default = side * pipe.vae_scale_factor if isinstance(side, int) else None
    height, width = height or default, width or default
    if height is None or width is None:
        raise CotrunkError(f"{type(pipe).__name__} does not say how large its pictures are: give height and width.")
    return height, width


def picture_of(path: Path, height: int, width: int) -> torch.Tensor:
    """(3, height, width) in [-1, 1]: the middle of the picture in the proportions of this size, scaled to it."""
    try:
        picture = read_image(path)
    except Exception as error:  # whatever a file that broke since makes Pillow say
        raise CotrunkError(f"{path} cannot be read any more: make the groups anew with cotrunk dataset.") from error
    # cut before it is scaled: the whole of a very long picture would be scaled to gigabytes
    values = np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS), np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)


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


def check_encodes(pipe: Any) -> None:
    """That it is known here how this pipeline's pictures become latents.

    Raises:
        CotrunkError: a pipeline without a VAE, or with one of another kind: those of video, those that keep the
            statistics of their latents elsewhere than in their configuration.
    """
    vae = getattr(pipe, "vae", None)
    if not isinstance(vae, AutoencoderKL | AutoencoderDC):
        kind = "no VAE" if vae is None else f"the VAE {type(vae).__name__}"
        raise CotrunkError(
            f"{type(pipe).__name__} has {kind}: train a pipeline that has an AutoencoderKL or an AutoencoderDC."
        )


def _pairs(groups: Sequence[Sequence[Pair]]) -> list[Pair]:
    return list(dict.fromkeys(pair for group in groups for pair in group))


@torch.no_grad()
def _latents(pipe: Any, pairs: Sequence[Pair], height: int, width: int) -> torch.Tensor:
    """(pictures, channels, height, width) as the denoiser knows them, in half precision: the most likely, no draws.

    Raises:
        CotrunkError: latents that are not finite.
    """
    pictures = torch.stack([picture_of(pair.image, height, width) for pair in pairs])
    vae, kind = pipe.vae, pipe.vae.dtype
    overflows = kind == torch.float16 and getattr(vae.config, "force_upcast", False)  # SDXL's does
    if overflows:
        vae.to(torch.float32)
    try:
        encoded = vae.encode(pictures.to(vae.device, vae.dtype))
    finally:
        if overflows:
            vae.to(kind)
    found = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()  # AutoencoderDC knows but one
    latents = _normalised(found, vae.config).half().cpu()
    for pair, own in zip(pairs, latents, strict=True):
        if not own.isfinite().all():
            raise CotrunkError(f"The latents of {pair.image} are not finite: use another dtype, bfloat16 say.")
    return latents


def _normalised(latents: torch.Tensor, config: Any) -> torch.Tensor:
    """What pipelines undo before they decode. Some VAEs of SDXL have statistics for each channel."""
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        mean, std = (torch.tensor(values, device=latents.device).reshape(1, -1, 1, 1) for values in (mean, std))
        return (latents - mean) * config.scaling_factor / std
    return (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


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
