"""Small text encoders, and a tokenizer with one token per byte."""

from collections.abc import Callable
from typing import Any

import transformers
from building_blocks import LAYERS, WIDTH, byte_tokenizer, clip, randomised, special_tokens


def tokenizer(max_length: int = 77, **settings: Any) -> Any:
    made = byte_tokenizer(max_length)
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def clip_with_projection(max_length: int = 77) -> Any:
    return clip(max_length, transformers.CLIPTextModelWithProjection)


def t5() -> Any:
    words = tokenizer()
    config = transformers.T5Config(
        vocab_size=len(words),
        d_model=WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        pad_token_id=words.pad_token_id,
    )
    return randomised(transformers.T5EncoderModel(config))


def with_tokenizer(encoder: Callable[[], Any], max_length: int, padding_side: str) -> dict[str, Any]:
    """Return the two parts of a pipeline that read texts."""
    return {"text_encoder": encoder, "tokenizer": lambda: tokenizer(max_length, padding_side=padding_side)}


def glm() -> Any:
    config = transformers.GlmConfig(**LAYERS, **special_tokens(tokenizer()), num_key_value_heads=1, head_dim=8)
    return randomised(transformers.GlmModel(config))


def gemma() -> Any:
    config = transformers.Gemma2Config(**LAYERS, **special_tokens(tokenizer()), num_key_value_heads=1, head_dim=8)
    return randomised(transformers.Gemma2Model(config))


def llama() -> Any:
    config = transformers.LlamaConfig(**LAYERS, **special_tokens(tokenizer()), num_key_value_heads=1)
    return randomised(transformers.LlamaForCausalLM(config))


def qwen() -> Any:
    """Of Qwen2.5-VL the text model is enough: the pipelines ask for its hidden states."""
    config = transformers.Qwen2Config(**LAYERS, **special_tokens(tokenizer()), num_key_value_heads=1)
    return randomised(transformers.Qwen2Model(config))


def qwen_with_head() -> Any:
    config = transformers.Qwen2Config(**LAYERS, **special_tokens(tokenizer()), num_key_value_heads=1)
    return randomised(transformers.Qwen2ForCausalLM(config))
