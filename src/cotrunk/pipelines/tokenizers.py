"""Find out which part of a text a pipeline's tokenizers read, and which they truncate."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from .cost import argument

LONGEST = 512  # most tokens of a prompt that an encoder for grouping reads
BLOCK = 4096  # texts that are tokenized at once
SUFFIXES = ("", "_2", "_3", "_4")  # of a pipeline's tokenizers and text encoders
NONE: Mapping[str, Any] = MappingProxyType({})  # a call without arguments, so with the pipeline's defaults


def first_pair(pipe: Any) -> tuple[Any, Any]:
    """Return the first (tokenizer, text encoder) of the pipeline; a tokenizer alone if no encoder is loaded."""
    pairs = [(getattr(pipe, f"tokenizer{s}", None), getattr(pipe, f"text_encoder{s}", None)) for s in SUFFIXES]
    # SDXL's refiner has the second pair only
    whole = [pair for pair in pairs if None not in pair] or [pair for pair in pairs if pair[0] is not None]
    tokenizer, text_encoder = whole[0] if whole else (None, None)
    return _tokenizer(tokenizer), text_encoder


@dataclass(frozen=True)
class Readings:
    """What the tokenizers of a pipeline read of some prompts.

    Attributes:
        keys: per prompt, its tokens up to the limits of the tokenizers. Prompts with equal keys have equal conditions,
            so their images differ only by noise. (A tokenizer may give all unknown words the same token, for example.)
            Without a tokenizer, the prompts themselves.
        truncated: index of a prompt -> the text that the first tokenizer cuts off. The limit is the tokenizer's, or the
            `max_sequence_length` of the call if that is smaller. A second text encoder may read further (T5 in SD 3 and
            Flux).
    """

    keys: list[Hashable]
    truncated: dict[int, str]


def readings(pipe: Any, prompts: Sequence[str], arguments: Mapping[str, Any] = NONE) -> Readings:
    """Return what the tokenizers of a pipeline read of the prompts in a call with these arguments."""
    texts = _rewritten(pipe, prompts, arguments)
    tokenizers = [_tokenizer(getattr(pipe, f"tokenizer{suffix}", None)) for suffix in SUFFIXES]
    first, _ = first_pair(pipe)
    truncated: dict[int, str] = {}
    read: list[list[bytes]] = []
    for tokenizer in (tokenizer for tokenizer in tokenizers if tokenizer is not None):
        own = list[bytes]()
        for i, (ids, room) in enumerate(_tokens(pipe, tokenizer, texts, arguments)):
            own.append(np.asarray(ids[:room], np.int32).tobytes())
            if tokenizer is first and room is not None and len(ids) > room:
                truncated[i] = tokenizer.decode(ids[room:]).strip()
        read.append(own)
    return Readings(list(zip(*read, strict=True)) if read else list(texts), truncated)


def token_counts(pipe: Any, texts: Sequence[str], arguments: Mapping[str, Any] = NONE) -> list[int]:
    """Return the number of tokens of each text in the pipeline's first tokenizer, up to its limit."""
    tokenizer, _ = first_pair(pipe)
    if tokenizer is None:
        return [0] * len(texts)
    return [len(ids[:room]) for ids, room in _tokens(pipe, tokenizer, _rewritten(pipe, texts, arguments), arguments)]


def _tokenizer(component: Any) -> Any:
    """Return the tokenizer of a component, which may be a processor that contains it (Qwen-VL)."""
    return getattr(component, "tokenizer", component)


def _rewritten(pipe: Any, prompts: Sequence[str], arguments: Mapping[str, Any]) -> list[str]:
    """Return the prompts as the pipeline passes them to its tokenizers: some pipelines lower-case and clean them."""
    if not hasattr(pipe, "_text_preprocessing"):
        return list(prompts)
    return pipe._text_preprocessing(list(prompts), clean_caption=bool(argument(pipe, arguments, "clean_caption")))


def _tokens(
    pipe: Any, tokenizer: Any, texts: list[str], arguments: Mapping[str, Any]
) -> Iterator[tuple[list[int], int | None]]:
    """Yield the tokens of each text without special ones, and how many of them are read; None for all."""
    limit = _token_limit(pipe, tokenizer, arguments)
    room = None if limit is None else max(0, limit - tokenizer.num_special_tokens_to_add())
    for start in range(0, len(texts), BLOCK):  # what a tokenizer returns takes kilobytes per text
        for ids in tokenizer(texts[start : start + BLOCK], add_special_tokens=False, verbose=False)["input_ids"]:
            yield ids, room


def _token_limit(pipe: Any, tokenizer: Any, arguments: Mapping[str, Any]) -> int | None:
    """Return how many tokens of a prompt are read, special ones included; None for no limit."""
    limits = [tokenizer.model_max_length, argument(pipe, arguments, "max_sequence_length")]
    # a tokenizer without a limit reports 1e30
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 1_000_000]
    return min(known, default=None)
