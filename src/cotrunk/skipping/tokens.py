"""Token-wise skipping (SADA, section 3.4): at computed steps, some layers run on a part of the tokens only.

Most of the work in a transformer block is done token by token: the projections to queries, keys and values, the output
projection of attention, and the feed-forward layer. These layers compute the tokens whose outputs were predicted worst
at the last computed step. For the other tokens they return their previous outputs. Attention itself runs on all tokens,
with the previous keys and values of the skipped ones.

Nothing here depends on the kind of block, its shapes or its position embeddings. So blocks of UNets and transformers
are treated alike: a layer is recognised by its name, and its tokens by their number.

One file: the rest of the package sees a `Policy` and `LayerCalls`.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.utils.torch_utils import unwrap_module

from ..engine.patch import call_of
from ..engine.policy import Discontinuities, Row
from ..engine.rewind import SchedulerSteps
from .trajectories import Trajectories, along

PROJECTIONS = ("to_q", "to_k", "to_v")
REFRESH = 3  # after this many forwards with some of its tokens, a row is computed whole


class TokenChoice:
    """The images that may compute only some of their tokens, and how much each token needs to be computed.

    `TokenSkipping` writes it after each step, and `TokenLayers` reads it in the next.

    Attributes:
        share: the fraction of the tokens to compute.
        errors: (N, places...) the last prediction error at each place of the latents; None before any was measured.
        partial: for each image, whether only some of its tokens are computed at the next step.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.errors: torch.Tensor | None = None
        self.partial: tuple[bool, ...] = ()

    def layers_of(self, denoiser: torch.nn.Module) -> "TokenLayers":
        return TokenLayers(denoiser, self)


class TokenSkipping:
    """A policy that follows `Trajectories`, and chooses from their prediction errors which tokens to compute.

    Args:
        trajectories: decide which images are computed.
        choice: receives the choice of tokens.
        timesteps: scheduler steps of the run.
        discontinuities: as for `Trajectories`.
    """

    def __init__(
        self, trajectories: Trajectories, choice: TokenChoice, timesteps: int, discontinuities: Discontinuities
    ) -> None:
        self._trajectories, self._choice = trajectories, choice
        self._timesteps, self._discontinuities = timesteps, discontinuities
        choice.errors, choice.partial = None, ()

    def computes(self, step: int) -> Sequence[bool]:
        return self._trajectories.computes(step)

    def observe(
        self, step: int, known: Sequence[bool], steps: SchedulerSteps, output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        observed = self._trajectories.observe(step, known, steps, output, sample)
        self._choose(step + 1)
        return observed

    def _choose(self, step: int) -> None:
        """Choose for the next step. All tokens are computed around a discontinuity, and at the last step."""
        tried, errors = self._trajectories.errors
        if errors is not None and errors.ndim in (3, 4):
            # channels come first in latents, and last where latents are packed into tokens
            places = errors.abs().mean(dim=1 if errors.ndim == 4 else 2)
            old = places if self._choice.errors is None else self._choice.errors
            self._choice.errors = torch.where(along(tried, places), places, old)
        around = {*self._discontinuities(step), *self._discontinuities(step + 1)} if step < self._timesteps else set()
        self._choice.partial = tuple(
            step < self._timesteps - 1 and history.scale is not None and image not in around
            for image, history in enumerate(self._trajectories.histories)
        )


class TokenLayers:
    """The per-token layers of one denoiser, during one call of the pipeline.

    Attributes:
        calls: the layers, each with the callable that runs instead of it.
        names: names of the layers.
        rows: rows of the current forward.
        scores: (rows, places...) how much each place of the latents needs to be computed; None to compute all tokens.
        ages: for each row, forwards since it was last computed whole; no entry if it never was.
    """

    def __init__(self, denoiser: torch.nn.Module, choice: TokenChoice) -> None:
        self._choice = choice
        self.rows: list[Row] = []
        self.scores: torch.Tensor | None = None
        self.ages: dict[Row, int] = {}
        self._partial: set[Row] = set()
        self._images = 0
        self._kept: dict[int, torch.Tensor | None] = {}  # by number of tokens, for the current forward
        self._thread: int | None = None  # the thread in which a forward of these rows runs now
        found = dict(_per_token(denoiser))
        self.names = list(found)
        self.calls = [(layer, _TokenLayer(layer, self)) for layer in found.values()]

    def parts(self, call: int, live: Sequence[int], images: int) -> list[list[int]]:
        """Return the rows to run together: whole rows, and rows with only some of their tokens."""
        everyone, choice = list(range(len(live))), self._choice
        self._partial, self._images = set(), images
        if choice.errors is None:
            return [everyone]
        is_young = [self.ages.get((call, row), REFRESH) < REFRESH for row in live]
        places = [place for place in everyone if is_young[place] and choice.partial[live[place] % images]]
        if not places:
            return [everyone]
        self._partial = {(call, live[place]) for place in places}
        rest = [place for place in everyone if place not in set(places)]
        return [rest, places] if rest else [places]

    @contextmanager
    def forward(self, rows: Sequence[Row]) -> Iterator[None]:
        """Skip tokens in the forward of these rows, inside the context.

        In any other forward the layers run as usual, because another pipeline may use the same denoiser.
        """
        is_partial = rows[0] in self._partial
        self.rows, self._kept, self.scores = list(rows), {}, None
        if is_partial:
            assert self._choice.errors is not None
            self.scores = self._choice.errors[[row % self._images for _, row in rows]]
        for row in dict.fromkeys(rows):
            if not is_partial:
                self.ages[row] = 0
            elif row in self.ages:
                self.ages[row] += 1
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = None

    def is_running(self, rows: int) -> bool:
        """Return whether this thread runs a forward of these rows."""
        return self._thread == threading.get_ident() and rows == len(self.rows)

    def choose(self, tokens: int) -> torch.Tensor | None:
        """Return (rows, kept) indices of the tokens to compute in a layer of this many; None for all."""
        if self.scores is None:
            return None
        if tokens not in self._kept:
            self._kept[tokens] = chosen_tokens(self.scores, tokens, self._choice.share)
        return self._kept[tokens]


class _TokenLayer:
    """Runs in place of a layer that treats each token by itself: (rows, tokens, d) -> (rows, tokens, other d)."""

    def __init__(self, module: torch.nn.Module, shared: TokenLayers) -> None:
        self._shared, self._call = shared, call_of(module)
        self._memory: dict[Row, torch.Tensor] = {}  # the last output of each row

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        shared = self._shared
        if x.ndim != 3 or not shared.is_running(len(x)):
            return self._call(x, *args, **kwargs)
        kept = shared.choose(x.shape[1])
        before = [self._memory.get(row) for row in shared.rows]
        is_known = all(output is not None and len(output) == x.shape[1] for output in before)
        if kept is None or not is_known:
            whole = self._call(x, *args, **kwargs)
        else:
            some = self._call(x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])), *args, **kwargs)
            whole = torch.stack(before).to(some.dtype)  # type: ignore[arg-type]
            whole.scatter_(1, kept[..., None].expand(-1, -1, some.shape[2]), some)
        # copies, because a view of one row would keep the whole tensor in memory
        self._memory |= {row: output.clone() for row, output in zip(shared.rows, whole.detach(), strict=True)}
        return whole


def _per_token(denoiser: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the layers, with their names, that process image tokens one by one."""
    modules = dict(unwrap_module(denoiser).named_modules())
    for name, module in modules.items():
        parent_name, _, last = name.rpartition(".")
        parent = modules.get(parent_name)
        grandparent = modules.get(parent_name.rpartition(".")[0])
        is_cross = getattr(parent, "is_cross_attention", False)
        if (
            (isinstance(module, FeedForward) and last == "ff")
            or (last == "to_q" and hasattr(parent, "to_k"))
            or (last in PROJECTIONS and hasattr(parent, "to_q") and not is_cross)
            or (last == "0" and parent_name.endswith("to_out") and hasattr(grandparent, "to_q"))
            or (last in ("proj_mlp", "proj_out") and hasattr(parent, "proj_mlp"))  # single blocks of Flux
        ):
            yield name, module


def chosen_tokens(scores: torch.Tensor, tokens: int, share: float) -> torch.Tensor | None:
    """Return (rows, kept) ascending indices of the `share` of the tokens with the highest scores.

    None if the scores do not fit this number of tokens.

    Args:
        scores: (rows, height, width), of which a token covers a square, or (rows, places). Tokens beyond the places are
            text, come first, and are always kept.
        tokens: number of tokens per row.
        share: above 0, at most 1.
    """
    rows = len(scores)
    places = scores.flatten(1).shape[1]
    if scores.ndim == 3:
        height, width = scores.shape[1:]
        grids = (
            (rounded(height / side), rounded(width / side))
            for side in (1, 2, 4, 8, 16, 32)
            for rounded in (math.ceil, math.floor)
        )
        grid = next(((h, w) for h, w in grids if h * w == tokens and h > 0), None)
        if grid is not None:
            scores, places = F.adaptive_avg_pool2d(scores[:, None], grid)[:, 0], tokens
        elif tokens <= places // 4:
            return None
    text = tokens - places
    if text < 0:
        return None
    count = max(1, round(share * places))
    best = scores.flatten(1).topk(count, dim=1).indices.sort(dim=1).values
    first = torch.arange(text, device=best.device).expand(rows, text)
    return torch.cat([first, best + text], dim=1)
