"""Inputs of the cases, which depend only on the number of the prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from building_blocks import TOKENS, WIDTH, equal_rows, first_rows, generator_of
from PIL import Image
from torch import Tensor

from .case import OWN_IMAGE, Variant

LENGTHS = (5, 3, 4)  # tokens of each prompt; the tokens beyond are padding, which differs per prompt
NEGATIVE_LENGTH = 4
TEXTS = ("a red apple on a wooden table", "a green bird in a tall forest", "a castle")  # two are equally long
NEGATIVE_TEXT = "blurred"


def rows(prompts: Sequence[int], *shape: int, seed: int = 0) -> Tensor:
    """Return one row per prompt. A prompt's row does not depend on the other prompts."""
    return first_rows(max(prompts) + 1, *shape, seed=seed)[list(prompts)]


def negatives(prompts: Sequence[int], *shape: int, seed: int = 0) -> Tensor:
    """Return equal rows."""
    return equal_rows(len(prompts), *shape, seed=seed)


def mask(prompts: Sequence[int], tokens: int = TOKENS, dtype: torch.dtype = torch.long) -> Tensor:
    """Return a mask: 1 for the tokens that a prompt has."""
    return torch.tensor([[token < LENGTHS[i] for token in range(tokens)] for i in prompts]).to(dtype)


def negative_mask(prompts: Sequence[int], tokens: int = TOKENS, dtype: torch.dtype = torch.long) -> Tensor:
    return torch.tensor([[token < NEGATIVE_LENGTH for token in range(tokens)]] * len(prompts)).to(dtype)


def attention_masks(prompts: Sequence[int], dtype: torch.dtype = torch.long) -> dict[str, Tensor]:
    return {
        "prompt_attention_mask": mask(prompts, dtype=dtype),
        "negative_prompt_attention_mask": negative_mask(prompts, dtype=dtype),
    }


def texts(prompts: Sequence[int], *, negative: bool = True) -> dict[str, Any]:
    given: dict[str, Any] = {"prompt": [TEXTS[i] for i in prompts]}
    return given | ({"negative_prompt": [NEGATIVE_TEXT] * len(prompts)} if negative else {})


def embeds(
    prompts: Sequence[int], tokens: int = TOKENS, width: int = WIDTH, *, negative: bool = True
) -> dict[str, Any]:
    given = {"prompt_embeds": rows(prompts, tokens, width)}
    return given | ({"negative_prompt_embeds": negatives(prompts, tokens, width)} if negative else {})


def unpadded_embeds(prompts: Sequence[int]) -> dict[str, Any]:
    """Return lists with one entry per prompt, as long as its text."""
    given = embeds(prompts)
    return {
        "prompt_embeds": [row[: LENGTHS[i]] for i, row in zip(prompts, given["prompt_embeds"], strict=True)],
        "negative_prompt_embeds": list(given["negative_prompt_embeds"]),
    }


def pooled(prompts: Sequence[int], width: int = WIDTH, *, negative: bool = True) -> dict[str, Any]:
    given = {"pooled_prompt_embeds": rows(prompts, width, seed=1)}
    return given | ({"negative_pooled_prompt_embeds": negatives(prompts, width, seed=1)} if negative else {})


def image_of(prompts: Sequence[int], variant: Variant, size: int = 32, seed: int = 0) -> Any:
    """Return one input image for all prompts, or a list with one per prompt."""

    def one(index: int) -> Image.Image:
        pixels = torch.rand(size, size, 3, generator=generator_of(seed, 1000 + index))
        return Image.fromarray(pixels.mul(255).byte().numpy())

    return one(0) if variant != "own" else [one(OWN_IMAGE[i]) for i in prompts]


def inpainting_mask(prompts: Sequence[int], variant: Variant, size: int = 32) -> Any:
    """Return masks that select half of the image: the left, or the upper one for the second image."""

    def one(index: int) -> Image.Image:
        shape = (0, 0, size // 2, size) if index == 0 else (0, 0, size, size // 2)
        whole = Image.new("L", (size, size), 0)
        whole.paste(255, shape)
        return whole

    return one(0) if variant != "own" else [one(OWN_IMAGE[i]) for i in prompts]


GLOBAL_NOISE = (
    "Examined with a VAE that encodes without noise: the pipeline draws that noise from the global generator, and its "
    "images differ from call to call."
)
