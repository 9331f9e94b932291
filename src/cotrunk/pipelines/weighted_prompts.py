"""Encode prompts with weights, and prompts longer than the text encoder reads at once, by the package compel."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..errors import CotrunkError
from .prompt_weights import parse_weights

# what compel can encode without a limit on the length: pipelines with one CLIP text encoder, and with SDXL's two
ONE_ENCODER = tuple(f"StableDiffusion{what}" for what in ("Pipeline", "Img2Img", "Inpaint", "ControlNet"))
TWO_ENCODERS = ("StableDiffusionXL",)


@dataclass(frozen=True)
class Encoded:
    """One prompt or negative prompt.

    Attributes:
        tokens: (1, t, d) embeddings.
        pooled: (1, p), of pipelines that take them.
    """

    tokens: Tensor
    pooled: Tensor | None


@contextmanager
def _without_length_warnings() -> Iterator[None]:
    """Silence the tokenizer's warning that a text is too long: compel divides it."""
    logger = logging.getLogger("transformers.tokenization_utils_base")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


_ENCODERS: WeakKeyDictionary[Any, tuple[object, "WeightedEncoder"]] = WeakKeyDictionary()


def weighted_encoder(pipe: Any, loras: object = ()) -> "WeightedEncoder":
    """Return the encoder of a pipeline, which is made once, and again for other LoRAs.

    Args:
        loras: those of the pipeline now. They may change its text encoders, so embeddings of others are forgotten.

    Raises:
        CotrunkError: as `WeightedEncoder`.
    """
    found = _ENCODERS.get(pipe)
    if found is None or found[0] != loras:
        found = _ENCODERS[pipe] = (loras, WeightedEncoder(pipe))
    return found[1]


class WeightedEncoder:
    """Encodes prompts for one pipeline, each text once.

    Raises:
        CotrunkError: compel is not installed, or does not support this pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        kind = type(pipe).__name__
        has_two = kind.startswith(TWO_ENCODERS)
        if not has_two and not kind.startswith(ONE_ENCODER):
            raise CotrunkError(f"{kind} takes no weighted prompts: use Stable Diffusion 1, 2 or XL, or omit weights.")
        pairs = [(pipe.tokenizer, pipe.text_encoder)] + ([(pipe.tokenizer_2, pipe.text_encoder_2)] if has_two else [])
        for _, encoder in pairs:
            if not type(encoder).__name__.startswith("CLIPText"):
                what = "no text encoder" if encoder is None else f"a {type(encoder).__name__}"
                raise CotrunkError(f"This {kind} has {what}, and weighted prompts need CLIP: omit weights.")
        try:
            from compel import Compel, ReturnedEmbeddingsType
        except ImportError as error:
            raise CotrunkError("Weighted prompts need compel: pip install 'cotrunk[weights]'.") from error
        kinds = ReturnedEmbeddingsType
        returned = kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED if has_two else kinds.LAST_HIDDEN_STATES_NORMALIZED
        self._compels = [
            Compel(
                tokenizer=tokenizer,
                text_encoder=encoder,
                returned_embeddings_type=returned,
                truncate_long_prompts=False,
                requires_pooled=number == 1,
            )
            for number, (tokenizer, encoder) in enumerate(pairs)
        ]
        self._read = self._compels[0].conditioning_provider.max_token_count  # tokens that the encoders read at once
        self._needs_zeros = has_two and bool(pipe.config.get("force_zeros_for_empty_prompt"))
        self._encode = lru_cache(maxsize=None)(self._encoded)

    def length(self, prompt: str, negative: str | None) -> int:
        """Return the number of tokens, padding included, that a prompt and its negative prompt need."""
        return max(self._encode(text).tokens.shape[1] for text in (prompt, negative or ""))

    def arguments(self, prompts: Sequence[str], negatives: Sequence[str | None]) -> dict[str, Tensor]:
        """Return the arguments of the pipeline's call in place of prompts and negative prompts.

        All are padded to one length. Padding changes images a little, so prompts of one call should have one length.
        """
        length = max(self.length(prompt, negative) for prompt, negative in zip(prompts, negatives, strict=True))
        found = {"prompt_embeds": torch.cat([self._padded(prompt, length) for prompt in prompts])}
        kinds = dict.fromkeys(negatives)
        some = list(kinds) if len(kinds) == 1 else list(negatives)  # one negative prompt for all is passed once
        found["negative_prompt_embeds"] = torch.cat([self._negative(text, length) for text in some])
        if len(self._compels) == 2:
            found["pooled_prompt_embeds"] = torch.cat([self._pooled(prompt) for prompt in prompts])
            found["negative_pooled_prompt_embeds"] = torch.cat([self._negative_pooled(text) for text in some])
        return found

    def _padded(self, text: str, length: int) -> Tensor:
        tokens, empty = self._encode(text).tokens, self._encode("").tokens
        return torch.cat([tokens, *[empty] * ((length - tokens.shape[1]) // empty.shape[1])], dim=1)

    def _pooled(self, text: str) -> Tensor:
        pooled = self._encode(text).pooled
        assert pooled is not None
        return pooled

    def _negative(self, text: str | None, length: int) -> Tensor:
        found = self._padded(text or "", length)
        return torch.zeros_like(found) if text is None and self._needs_zeros else found

    def _negative_pooled(self, text: str | None) -> Tensor:
        found = self._pooled(text or "")
        return torch.zeros_like(found) if text is None and self._needs_zeros else found

    @torch.no_grad()
    @_without_length_warnings()
    def _encoded(self, text: str) -> Encoded:
        from compel.prompt_parser import Conjunction, FlattenedPrompt

        parts = [[(piece.text, piece.weight) for piece in part] for part in parse_weights(text)]
        parts = [part for part in parts if part] or [[("", 1.0)]]
        found, pooled = [], None
        for compel in self._compels:
            conjunction = Conjunction([FlattenedPrompt(part) for part in parts])
            found.append(compel.build_conditioning_tensor_for_conjunction(conjunction)[0])
            if compel.requires_pooled:  # it has no weights, and reads the first tokens only
                plain = " ".join("".join(piece for piece, _ in part) for part in parts)
                pooled = compel.conditioning_provider.get_pooled_embeddings([plain], device=compel.device)
        longest = max(tokens.shape[1] for tokens in found)
        found = [
            torch.cat(
                [tokens, *[compel.conditioning_provider.empty_z] * ((longest - tokens.shape[1]) // self._read)], dim=1
            )
            for compel, tokens in zip(self._compels, found, strict=True)
        ]
        # on the CPU, because a run may have many prompts; pipelines move the embeddings of a call
        return Encoded(torch.cat(found, dim=-1).cpu(), None if pooled is None else pooled.cpu())
