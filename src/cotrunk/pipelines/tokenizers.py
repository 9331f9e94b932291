"""Find out which part of a text a pipeline's tokenizers read, and which they truncate."""

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from .cost import argument

LONGEST = 512  # most tokens of a prompt that an encoder for grouping reads
SUFFIXES = ("", "_2", "_3", "_4")  # of a pipeline's tokenizers and text encoders
NONE: Mapping[str, Any] = MappingProxyType({})  # a call without arguments, so with the pipeline's defaults


def first_pair(pipe: Any) -> tuple[Any, Any]:
    """Return the first (tokenizer, text encoder) of the pipeline; a tokenizer alone if no encoder is loaded."""
    pairs = [(getattr(pipe, f"tokenizer{s}", None), getattr(pipe, f"text_encoder{s}", None)) for s in SUFFIXES]
    # SDXL's refiner has the second pair only
    whole = [pair for pair in pairs if None not in pair] or [pair for pair in pairs if pair[0] is not None]
    tokenizer, text_encoder = whole[0] if whole else (None, None)
    return _tokenizer(tokenizer), text_encoder


def truncated(pipe: Any, prompts: Sequence[str], arguments: Mapping[str, Any] = NONE) -> dict[int, str]:
    """Return the prompts that the pipeline's first tokenizer truncates: index -> the text that is cut off.

    The limit is the tokenizer's, or the `max_sequence_length` of a call with these arguments if that is smaller. A
    second text encoder may read further (T5 in SD 3 and Flux). The result is empty
    if there is no tokenizer, or if it has no limit.
    """
    tokenizer, _ = first_pair(pipe)
    if tokenizer is None:
        return {}
    tokens, room = _tokens(pipe, tokenizer, _rewritten(pipe, prompts, arguments), arguments)
    if room is None:
        return {}
    return {i: tokenizer.decode(ids[room:]).strip() for i, ids in enumerate(tokens) if len(ids) > room}


def condition_keys(pipe: Any, prompts: Sequence[str], arguments: Mapping[str, Any] = NONE) -> list[Hashable]:
    """Return the tokens of each prompt in a call with these arguments, up to the limits of the tokenizers.

    Prompts with equal keys have equal conditions, so their images differ only by noise. (A tokenizer may give all
    unknown words the same token, for example.) Without a tokenizer, return the prompts themselves.
    """
    texts = _rewritten(pipe, prompts, arguments)
    readings: list[list[bytes]] = []
    for suffix in SUFFIXES:
        tokenizer = _tokenizer(getattr(pipe, f"tokenizer{suffix}", None))
        if tokenizer is not None:
            tokens, room = _tokens(pipe, tokenizer, texts, arguments)
            readings.append([np.asarray(ids[:room], np.int32).tobytes() for ids in tokens])
    return list(zip(*readings, strict=True)) if readings else list(texts)


def token_counts(pipe: Any, texts: Sequence[str], arguments: Mapping[str, Any] = NONE) -> list[int]:
    """Return the number of tokens of each text in the pipeline's first tokenizer, up to its limit."""
    tokenizer, _ = first_pair(pipe)
    if tokenizer is None:
        return [0] * len(texts)
    tokens, room = _tokens(pipe, tokenizer, _rewritten(pipe, texts, arguments), arguments)
    return [len(ids[:room]) for ids in tokens]


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
) -> tuple[list[list[int]], int | None]:
    """Return the tokens of each text without special ones, and how many of them are read; None for all."""
    limit = _token_limit(pipe, tokenizer, arguments)
    room = None if limit is None else max(0, limit - tokenizer.num_special_tokens_to_add())
    if not texts:
        return [], room
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"], room


def _token_limit(pipe: Any, tokenizer: Any, arguments: Mapping[str, Any]) -> int | None:
    """Return how many tokens of a prompt are read, special ones included; None for no limit."""
    limits = [tokenizer.model_max_length, argument(pipe, arguments, "max_sequence_length")]
    # a tokenizer without a limit reports 1e30
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 1_000_000]
    return min(known, default=None)
