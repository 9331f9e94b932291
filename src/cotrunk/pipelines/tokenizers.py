"""Read what a pipeline's tokenizers keep of a text, and what they cut."""

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from .cost import argument

LONGEST = 512  # tokens read of a prompt where the tokenizer sets no limit of its own
SUFFIXES = ("", "_2", "_3", "_4")  # of a pipeline's tokenizers and text encoders
NONE: Mapping[str, Any] = MappingProxyType({})  # arguments of a call that leaves all to the pipeline


def first_pair(pipe: Any) -> tuple[Any, Any]:
    """The first (tokenizer, text encoder) that the pipeline has; a tokenizer alone where no encoder is loaded."""
    pairs = [(getattr(pipe, f"tokenizer{s}", None), getattr(pipe, f"text_encoder{s}", None)) for s in SUFFIXES]
    # SDXL's refiner has only the second pair
    whole = [pair for pair in pairs if None not in pair] or [pair for pair in pairs if pair[0] is not None]
    tokenizer, text_encoder = whole[0] if whole else (None, None)
    return _tokenizer(tokenizer), text_encoder


def truncated(pipe: Any, prompts: Sequence[str], arguments: Mapping[str, Any] = NONE) -> dict[int, str]:
    """The prompts that the pipeline's first tokenizer cuts: index -> the text at the end that is not read.

    The limit is the tokenizer's, or the `max_sequence_length` of a call with these arguments where that is smaller. A
    second text encoder may read further (T5 in SD 3 and Flux). Empty without a tokenizer or where it has no limit.
    """
    tokenizer, _ = first_pair(pipe)
    if tokenizer is None:
        return {}
    tokens, room = _tokens(pipe, tokenizer, _rewritten(pipe, prompts, arguments), arguments)
    if room is None:
        return {}
    return {i: tokenizer.decode(ids[room:]).strip() for i, ids in enumerate(tokens) if len(ids) > room}


def condition_keys(pipe: Any, prompts: Sequence[str], arguments: Mapping[str, Any] = NONE) -> list[Hashable]:
    """What the pipeline's tokenizers read of each prompt in a call with these arguments, up to their limits.

    Prompts with equal keys have equal conditions (words that a tokenizer does not know all look alike, say), so only
    their noise tells their images apart. Without a tokenizer: the prompts themselves.
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
    """How many tokens the pipeline's first tokenizer makes of each text, up to its limit."""
    tokenizer, _ = first_pair(pipe)
    if tokenizer is None:
        return [0] * len(texts)
    tokens, room = _tokens(pipe, tokenizer, _rewritten(pipe, texts, arguments), arguments)
    return [len(ids[:room]) for ids in tokens]


def _tokenizer(component: Any) -> Any:
    """A pipeline's tokenizer; a processor (Qwen-VL) wraps it."""
    return getattr(component, "tokenizer", component)


def _rewritten(pipe: Any, prompts: Sequence[str], arguments: Mapping[str, Any]) -> list[str]:
    """The prompts as the pipeline gives them to its tokenizers: some write them small and clean them first."""
    if not hasattr(pipe, "_text_preprocessing"):
        return list(prompts)
    return pipe._text_preprocessing(list(prompts), clean_caption=bool(argument(pipe, arguments, "clean_caption")))


def _tokens(
    pipe: Any, tokenizer: Any, texts: list[str], arguments: Mapping[str, Any]
) -> tuple[list[list[int]], int | None]:
    """The tokens of each text without special ones, and how many of them are read (None: all)."""
    limit = _token_limit(pipe, tokenizer, arguments)
    room = None if limit is None else max(0, limit - tokenizer.num_special_tokens_to_add())
    if not texts:
        return [], room
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"], room


def _token_limit(pipe: Any, tokenizer: Any, arguments: Mapping[str, Any]) -> int | None:
    """Tokens of a prompt that are read, special ones included; None where nothing limits them."""
    limits = [tokenizer.model_max_length, argument(pipe, arguments, "max_sequence_length")]
    # a tokenizer without a limit says 1e30
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 1_000_000]
    return min(known, default=None)
