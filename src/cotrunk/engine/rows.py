"""Rows of a denoiser call: fold equal rows into one, pick some, and spread their outputs over all rows.

This works on the tensors of a module's arguments and outputs, without a pipeline. "Live" rows are those that run.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from ..pipelines.denoiser_arguments import CONDITIONS, LENGTHS, MASKS, ROW_LISTS, ROWS_SECOND, SHARED, STATE
from .equality import ROUNDING, any_of, differ
from .transfer import sent

# The types that other arguments may consist of. An object of another type may keep a state.
VALUES = (torch.Tensor, int, float, str, NoneType, torch.dtype, torch.device, np.generic, np.ndarray)


class Folding:
    """How the R rows of a call fold into the live ones.

    Args:
        sources: for each of N images the image whose row it takes; `sources[i] == i` for an image whose own row runs.
        rows: R, a multiple of N: with concatenated guidance, copy k of image i is row k * N + i.
        device: of the tensors.
        computed: for each image whether its rows run at all; outputs of the others are undefined. None for all.
        unguided: for each image the reason why it takes no row for guidance; None if it takes one. Empty if all do.
        copy: the copy with the prompts, whose row represents all copies of an image without guidance. None if the call
            has only the other copy, in which such an image takes no row at all.
        taken: for each image how its rows are counted if a policy takes all of them; None for the others. Empty if
            there is no such image.

    Attributes:
        live: the rows that run.
        members: for each live row, the rows that it represents, itself first.
        spared: numbers of rows that do not run, by the first reason that applies: those of `taken`, sharing, guidance
            that is off, skipping.
        inverse: (R,) for each row the place of its live row; -1 for rows that are not computed.
        is_complete: whether every row has a live row.
    """

    def __init__(
        self,
        sources: Sequence[int],
        rows: int,
        device: torch.device,
        *,
        computed: Sequence[bool] | None = None,
        unguided: Sequence[str | None] = (),
        copy: int | None = None,
        taken: Sequence[str | None] = (),
    ) -> None:
        images = len(sources)
        off = unguided or [None] * images
        shared = [k * images + source for k in range(rows // images) for source in sources]
        asked = [source for row, source in enumerate(shared) if not taken or taken[row % images] is None]
        stand_in = {row: row for row in asked}
        stand_in |= {row: -1 if copy is None else copy * images + row % images for row in asked if off[row % images]}
        self.rows = rows
        kept = {row for row in asked if stand_in[row] == row}
        self.live = sorted(row for row in kept if computed is None or computed[row % images])
        self.spared = Counter(sharing=len(asked) - len(stand_in), skipping=len(kept) - len(self.live))
        self.spared.update(off[row % images] or "" for row in stand_in if row not in kept)
        self.spared.update(reason for reason in taken for _ in range(rows // images) if reason is not None)
        place = {row: i for i, row in enumerate(self.live)}
        self.members = [[row] for row in self.live]
        for row, source in enumerate(shared):
            if source in place and row != source:
                self.members[place[source]].append(row)
        if not self.live:
            return
        largest = max(map(len, self.members))
        # padded with the representative, whose difference from itself adds nothing to a mean
        padded = [own + [own[0]] * (largest - len(own)) for own in self.members]
        self._live = sent(self.live, device)
        self._padded = sent(padded, device)
        self._counts = sent([len(own) for own in self.members], device)
        # each member with its representative
        self._others = [(row, own[0]) for own in self.members for row in own[1:]]
        self._pairs = sent(self._others, device).reshape(-1, 2).unbind(1)
        places = [place.get(stand_in.get(row, -1), -1) for row in shared]
        self.is_complete = -1 not in places
        self.inverse = sent(places, device)

    @property
    def is_identity(self) -> bool:
        return len(self.live) == self.rows

    def fold(self, named: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call with live rows only, nested dicts (`added_cond_kwargs`) included."""
        masks = {MASKS[k]: v for k, v in named.items() if k in MASKS and isinstance(v, torch.Tensor) and v.ndim == 2}
        for name, of in LENGTHS.items():
            lengths, tokens = named.get(name), named.get(of)
            if isinstance(lengths, torch.Tensor) and isinstance(tokens, torch.Tensor):
                masks[of] = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        return {
            name: _rows_first(name, self._fold(name, _rows_first(name, value), masks.get(name)))
            for name, value in named.items()
        }

    def misshapen(self, named: dict[str, Any]) -> str | None:
        """Return why an argument cannot be split into rows; None if all can. Reads shapes only.

        An argument cannot be split if it is a condition without one entry per row, or an object that may keep rows
        between calls (a key-value cache).
        """
        for name, value in named.items():
            if isinstance(value, dict):
                if why := self.misshapen(value):
                    return why
                continue
            if name in STATE and value is not None:
                return f"its argument {name} keeps the rows of one call for the next"
            for item in tree_leaves(value):
                if not isinstance(item, VALUES):
                    return f"its argument {name} holds a {type(item).__name__}, which may keep rows between its calls"
            if name in CONDITIONS and not isinstance(value, list):
                for tensor in tree_leaves(_rows_first(name, value)):
                    if isinstance(tensor, torch.Tensor) and tensor.ndim and len(tensor) not in (1, self.rows):
                        return f"its condition {name} has {len(tensor)} rows where the call has {self.rows}"
        return None

    def differences(self, named: dict[str, Any], tolerance: float = ROUNDING) -> dict[str, torch.Tensor]:
        """Compare the members of each row in every argument that is not averaged.

        All members get the representative's value of such an argument, so they must not differ in it. Floating-point
        numbers may differ by rounding; integers and booleans (token ids, classes) must be equal.

        Args:
            named: the arguments.
            tolerance: largest difference of floating-point numbers, relative to the largest value.

        Returns:
            argument -> whether members differ in it, as a tensor without dimensions on the argument's device. Only
            reading the result waits for the device.
        """
        found: dict[str, torch.Tensor] = {}
        if not self._others:
            return found
        for name, value in named.items():
            of = MASKS.get(name, LENGTHS.get(name))
            if name in SHARED or value is None or of in named:
                continue
            if isinstance(value, dict):
                found |= self.differences(value, tolerance)
            elif name in ROW_LISTS and isinstance(value, list) and len(value) == self.rows:
                if name not in CONDITIONS:
                    pairs = [differ(value[row], value[source], tolerance) for row, source in self._others]
                    found[name] = any_of(pairs)
            else:
                flags = [
                    differ(tensor[self._pairs[0]], tensor[self._pairs[1]], tolerance)
                    for tensor in tree_leaves(_rows_first(name, value))
                    if isinstance(tensor, torch.Tensor)
                    and _has_rows(tensor, self.rows)
                    and not (name in CONDITIONS and tensor.is_floating_point())  # these are averaged
                ]
                if flags:
                    found[name] = any_of(flags)
        return found

    def _fold(self, name: str, value: Any, mask: torch.Tensor | None) -> Any:
        if name in SHARED or value is None:
            return value
        if isinstance(value, dict):
            return self.fold(value)
        if name in ROW_LISTS and isinstance(value, list) and len(value) == self.rows:
            if name in CONDITIONS:
                return [_mean_of_ragged([value[row] for row in own]) for own in self.members]
            if name in LENGTHS:
                return [max(value[row] for row in own) for own in self.members]
            return [value[row] for row in self.live]
        reduce: Callable[[torch.Tensor], torch.Tensor] = self.first
        if name in CONDITIONS:
            reduce = functools.partial(self.mean, mask=mask)
        elif name in MASKS or name in LENGTHS:
            reduce = self.union
        return tree_map_only(torch.Tensor, lambda x: reduce(x) if _has_rows(x, self.rows) else x, value)

    def first(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the rows of the representatives: (R, ...) -> (live, ...)."""
        return tensor.index_select(0, self._live)

    def union(self, mask: torch.Tensor) -> torch.Tensor:
        """Return masks of the tokens that any member sees: (R, tokens) -> (live, tokens).

        This holds for 0/1 masks, additive masks, and lengths.
        """
        return mask[self._padded].amax(dim=1)

    def mean(self, tensor: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean over each row's members (SAGE, Algorithm 1, line 5): (R, ...) -> (live, ...).

        With a token mask (R, tokens), the mean at a token is over the members that have this token: the padding of a
        short prompt has no meaning. At a token that no member has, it is over all members, because some models
        read padding (HunyuanDiT pools it, and Chroma's mask hides nothing). The mean is computed as the representative
        plus the mean of the differences, so that equal members keep their value bit for bit.
        """
        if not tensor.is_floating_point():  # token ids or classes: equal among the members, see `differences`
            return self.first(tensor)
        exact = torch.promote_types(tensor.dtype, torch.float32)
        first = self.first(tensor).to(exact)
        difference = tensor[self._padded].to(exact) - first[:, None]  # (live, members, ...)
        if mask is not None and tensor.ndim >= 3 and len(mask) == self.rows and mask.shape[1] >= tensor.shape[1]:
            slots = torch.arange(difference.shape[1], device=tensor.device)
            real = slots < self._counts[:, None]  # not padding of the member list
            mask = mask[:, : tensor.shape[1]]
            visible = (mask > 0) | ((mask == 0) & (mask < 0).any())  # an additive mask hides by negative numbers
            has_token = visible[self._padded] & real[..., None]
            counted = torch.where(has_token.any(dim=1, keepdim=True), has_token, real[..., None])
            counted = counted.reshape(*counted.shape, *[1] * (tensor.ndim - 2))
            mean = difference.where(counted, 0).sum(dim=1) / counted.sum(dim=1)
        else:
            mean = difference.sum(dim=1) / self._counts.reshape(-1, *[1] * (tensor.ndim - 1))
        return (first + mean).to(tensor.dtype)


def _has_rows(tensor: torch.Tensor, rows: int) -> bool:
    return tensor.ndim > 0 and tensor.shape[0] == rows


def _rows_first(name: str, value: Any) -> Any:
    """Return a tensor with its first two dimensions swapped if its rows are in the second; otherwise unchanged."""
    return value.transpose(0, 1) if name in ROWS_SECOND and isinstance(value, torch.Tensor) else value


def _mean_of_ragged(rows: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean of (tokens, channels) tensors of different lengths: at each token, over the rows that have it."""
    longest = max(rows, key=len)
    first = longest.to(torch.promote_types(longest.dtype, torch.float32))
    difference, count = torch.zeros_like(first), torch.zeros(len(first), 1, device=first.device)
    for row in rows:  # differences, as in `Folding.mean`: equal members keep their value bit for bit
        difference[: len(row)] += row.to(first.dtype) - first[: len(row)]
        count[: len(row)] += 1
    return (first + difference / count).to(longest.dtype)


def pick(named: dict[str, Any], rows: int, which: list[int]) -> dict[str, Any]:
    """Return some rows of the arguments of a call with `rows` rows; a row may be picked several times."""

    def part(name: str, value: Any) -> Any:
        if name in SHARED or value is None:
            return value
        if isinstance(value, dict):
            return pick(value, rows, which)
        if name in ROW_LISTS and isinstance(value, list) and len(value) == rows:
            return [value[row] for row in which]
        return tree_map_only(
            torch.Tensor, lambda x: x.index_select(0, sent(which, x.device)) if _has_rows(x, rows) else x, value
        )

    return {name: _rows_first(name, part(name, _rows_first(name, value))) for name, value in named.items()}


def assemble(parts: list[Any], sizes: list[int], inverse: torch.Tensor | None, *, listed: bool = False) -> Any:
    """Join the outputs of chunks row-wise and spread them over all rows, whatever structure holds the tensors.

    Args:
        parts: one output per chunk: a tensor, or tuples, lists, dicts and output objects of tensors.
        sizes: rows of each chunk.
        inverse: (R,) for each row the live row whose output it takes; None to keep the order.
        listed: the module returns a list with one tensor per row (Z-Image) where others return a tensor.
    """
    first = parts[0]
    if listed and isinstance(first, list):
        rows = [row for part in parts for row in part]
        return rows if inverse is None else [rows[i] for i in inverse.tolist()]
    if isinstance(first, torch.Tensor):
        if not _has_rows(first, sizes[0]):
            return first
        joined = torch.cat(parts) if len(parts) > 1 else first
        return joined if inverse is None else joined.index_select(0, inverse)
    again = functools.partial(assemble, sizes=sizes, inverse=inverse, listed=listed)
    if isinstance(first, dict):  # diffusers' output objects are dicts, made from named fields
        joined_up = {key: again([part[key] for part in parts]) for key in first}
        return joined_up if type(first) is dict else type(first)(**joined_up)
    if isinstance(first, tuple | list):
        return type(first)(again(list(same)) for same in zip(*parts, strict=True))
    return first


def blended(start: Any, end: Any, part: float) -> Any:
    """Return the output that lies this part of the way from one output to another of the same structure."""

    def between(one: Any, other: Any) -> Any:
        return torch.lerp(one, other, part) if isinstance(one, torch.Tensor) and one.is_floating_point() else one

    return tree_map(between, start, end)
