"""Tokens that need not be computed: within a denoiser, layers that treat every token by itself run on some of them.

In a transformer block most of the work is done token by token: the projections of queries, keys, values and of what
attention gives, and the feed-forward layer. Where a token's output was predicted well at the last computed step, these
layers leave it out and give what they gave for it before (SADA, section 3.4: the blocks' caches). Attention itself sees
all tokens, so keys and values of those that are left out stay, as they were.

Nothing depends on the kind of a block, on its shapes or its position embeddings, so blocks of UNets and of transformers
are treated alike: a layer is known by its name, and its tokens by their number.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.utils.torch_utils import unwrap_module

PROJECTIONS = ("to_q", "to_k", "to_v")
Row = tuple[int, int]  # which call of the step (some pipelines call once for each guidance branch), row in that call


class TokenLayers:
    """The per-token layers of one denoiser, during one call of the pipeline.

    Attributes:
        layers: by name; each to stand where torch puts the compiled call of its module.
        rows: of the forward to come.
        kept: (rows, tokens kept) by number of tokens, for the forward to come; None to compute all and remember.
        age: by row, how many forwards ago it was last computed whole; no entry: never.
    """

    def __init__(self, denoiser: torch.nn.Module, share: float) -> None:
        self.share = share
        self.rows: list[Row] = []
        self.scores: torch.Tensor | None = None
        self.kept: dict[int, torch.Tensor | None] = {}
        self.age: dict[Row, int] = {}
        self.thread: int | None = None  # in which such a forward runs now
        self.layers = {name: TokenLayer(layer, self) for name, layer in _per_token(denoiser)}

    @contextmanager
    def forward(self, rows: Sequence[Row], scores: torch.Tensor | None) -> Iterator[None]:
        """For a forward of these rows. scores: (rows, ...) how much each place of the latents needs to be computed;
        None to compute all tokens and remember what the layers give. The layers do as always in every other forward:
        another pipeline may have the same denoiser."""
        self.rows, self.scores, self.kept = list(rows), scores, {}
        for row in dict.fromkeys(rows):
            if scores is None:
                self.age[row] = 0
            elif row in self.age:
                self.age[row] += 1
        self.thread = threading.get_ident()
        try:
            yield
        finally:
            self.thread = None

    def choose(self, tokens: int) -> torch.Tensor | None:
        """(rows, kept) indices of the tokens to compute in a layer of this many; None for all."""
        if self.scores is None:
            return None
        if tokens not in self.kept:
            self.kept[tokens] = _chosen(self.scores, tokens, self.share)
        return self.kept[tokens]


class TokenLayer:
    """Stands in for the call of one layer, as `FoldHook` does for the denoiser's. The layer treats every token by
    itself: (rows, tokens, channels) -> (rows, tokens, others)."""

    def __init__(self, module: torch.nn.Module, shared: TokenLayers) -> None:
        self.module, self.shared = module, shared
        self.call: Callable[..., Any] = module._compiled_call_impl or module._call_impl
        self.memory: dict[Row, torch.Tensor] = {}  # what it gave last

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        shared = self.shared
        if shared.thread != threading.get_ident() or x.ndim != 3 or len(x) != len(shared.rows):
            return self.call(x, *args, **kwargs)
        kept = shared.choose(x.shape[1])
        before = [self.memory.get(row) for row in shared.rows]
        known = all(output is not None and len(output) == x.shape[1] for output in before)
        if kept is None or not known:
            whole = self.call(x, *args, **kwargs)
        else:
            some = self.call(x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])), *args, **kwargs)
            whole = torch.stack(before).to(some.dtype)  # type: ignore[arg-type]
            whole.scatter_(1, kept[..., None].expand(-1, -1, some.shape[2]), some)
        # a copy of each: a row of a tensor would keep all of it
        self.memory |= {row: output.clone() for row, output in zip(shared.rows, whole.detach(), strict=True)}
        return whole


def _per_token(denoiser: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The layers that see image tokens and treat each by itself, with their names."""
    modules = dict(unwrap_module(denoiser).named_modules())
    for name, module in modules.items():
        parent_name, _, last = name.rpartition(".")
        parent = modules.get(parent_name)
        grandparent = modules.get(parent_name.rpartition(".")[0])
        crossing = getattr(parent, "is_cross_attention", False)
        if (
            (isinstance(module, FeedForward) and last == "ff")
            or (last == "to_q" and hasattr(parent, "to_k"))
            or (last in PROJECTIONS and hasattr(parent, "to_q") and not crossing)
            or (last == "0" and parent_name.endswith("to_out") and hasattr(grandparent, "to_q"))
            or (last in ("proj_mlp", "proj_out") and hasattr(parent, "proj_mlp"))  # single blocks of Flux
        ):
            yield name, module


def _chosen(scores: torch.Tensor, tokens: int, share: float) -> torch.Tensor | None:
    """(rows, kept) indices, ascending, of the `share` of the tokens with the highest scores; None if the places of the
    scores cannot be the tokens.

    scores: (rows, height, width), of which a token covers a square, or (rows, places). Tokens beyond the places are
    text, come first and are always kept.
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
