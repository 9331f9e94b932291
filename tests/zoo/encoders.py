"""Small text encoders, and a tokenizer with one token per byte."""

from typing import Any

import transformers
from tiny import _byte_tokenizer as byte_tokenizer

from .parts import WIDTH, randomised

LAYERS = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}


def tokenizer(max_length: int = 77, **settings: Any) -> Any:
    made = byte_tokenizer(max_length)
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def _special(of: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(of),
        "pad_token_id": of.pad_token_id,
        "bos_token_id": of.bos_token_id,
        "eos_token_id": of.eos_token_id,
    }


def clip(max_length: int = 77, kind: Any = transformers.CLIPTextModelWithProjection) -> Any:
    config = transformers.CLIPTextConfig(
        **LAYERS, **_special(tokenizer()), projection_dim=WIDTH, max_position_embeddings=max_length
    )
    return randomised(kind(config))


def clip_text() -> Any:
    """Without a projection."""
    return clip(kind=transformers.CLIPTextModel)


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


def glm() -> Any:
    config = transformers.GlmConfig(**LAYERS, **_special(tokenizer()), num_key_value_heads=1, head_dim=8)
    return randomised(transformers.GlmModel(config))


def gemma() -> Any:
    config = transformers.Gemma2Config(**LAYERS, **_special(tokenizer()), num_key_value_heads=1, head_dim=8)
    return randomised(transformers.Gemma2Model(config))


def llama() -> Any:
    config = transformers.LlamaConfig(**LAYERS, **_special(tokenizer()), num_key_value_heads=1)
    return randomised(transformers.LlamaForCausalLM(config))


def qwen() -> Any:
    """Of Qwen2.5-VL the text model is enough: the pipelines ask for its hidden states."""
    config = transformers.Qwen2Config(**LAYERS, **_special(tokenizer()), num_key_value_heads=1)
    return randomised(transformers.Qwen2Model(config))


def qwen_with_head() -> Any:
    config = transformers.Qwen2Config(**LAYERS, **_special(tokenizer()), num_key_value_heads=1)
    return randomised(transformers.Qwen2ForCausalLM(config))
