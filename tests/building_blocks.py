"""Small models with random weights, and rows of random inputs: what `tiny.py` and `zoo/` build their pipelines from.

The random numbers depend on the arguments alone, so that recorded outcomes stay valid.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

WIDTH = 16  # of every prompt embedding
TOKENS = 7  # of every prompt embedding
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LAYERS = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Redraw every weight, including those that diffusers sets to zero, so that all inputs reach the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                # in a UNet, a chain of activations reduces the effect of the timestep
                gain = 3.0 if "time_embedding" in name or "time_emb_proj" in name else 1.0
                weight.copy_(gain * noise / weight[0].numel() ** 0.5)
            else:
                is_scale = "norm" in name and name.endswith("weight")
                weight.copy_(0.1 * noise + (1.0 if is_scale else 0.0))
    return model.eval()


# --- inputs -------------------------------------------------------------------------------------------------


def first_rows(n: int, *shape: int, seed: int) -> Tensor:
    """Return n different rows."""
    return torch.stack([torch.randn(shape, generator=generator_of(seed, row)) for row in range(n)])


def equal_rows(n: int, *shape: int, seed: int) -> Tensor:
    """Return n equal rows."""
    return torch.randn((1, *shape), generator=generator_of(seed, -1)).repeat(n, *[1] * len(shape))


def generator_of(seed: int, row: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * (seed + 1) + row)


# --- autoencoders -------------------------------------------------------------------------------------------


def vae(channels: int = 4, **config: Any) -> diffusers.AutoencoderKL:
    config = {"block_out_channels": [8, 16], "norm_num_groups": 4, "sample_size": 32} | config
    blocks = len(config["block_out_channels"])
    with seeded():
        return diffusers.AutoencoderKL(
            latent_channels=channels,
            down_block_types=["DownEncoderBlock2D"] * blocks,
            up_block_types=["UpDecoderBlock2D"] * blocks,
            **config,
        ).eval()


def shifted_vae(channels: int = 4, **config: Any) -> diffusers.AutoencoderKL:
    """Return a VAE for latents with a shift, as the flow models have them."""
    return vae(channels, shift_factor=0.06, scaling_factor=1.5, **config)


def flux_vae() -> diffusers.AutoencoderKL:
    """Return a VAE of one channel: the pipelines pack 2 x 2 latents."""
    return shifted_vae(channels=1, block_out_channels=[8], use_quant_conv=False, use_post_quant_conv=False)


def certain(autoencoder: Any) -> Any:
    """Return the autoencoder, which from now on encodes an image without noise."""
    last = autoencoder.quant_conv if autoencoder.quant_conv is not None else autoencoder.encoder.conv_out
    channels = len(last.bias) // 2  # the means; then the logarithms of the variances
    with torch.no_grad():
        last.weight[channels:] = 0
        last.bias[channels:] = -60
    return autoencoder


# --- denoisers ----------------------------------------------------------------------------------------------


def unet(kind: type = diffusers.UNet2DConditionModel, **config: Any) -> nn.Module:
    defaults = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
        "norm_num_groups": 4,
    }
    return randomised(kind(**defaults | config))


def controlnet(kind: type = diffusers.ControlNetModel, seed: int = 1, **config: Any) -> nn.Module:
    defaults = {
        "in_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "conditioning_embedding_out_channels": (8, 16),
        "cross_attention_dim": WIDTH,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    return randomised(kind(**defaults | config), seed)


SD3_CONFIG = {
    "sample_size": 16,
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "joint_attention_dim": WIDTH,
    "caption_projection_dim": 16,
    "pooled_projection_dim": WIDTH,
}
FLUX_CONFIG = {
    "patch_size": 1,
    "in_channels": 4,  # the pipelines pack 2 x 2 latents of one channel
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "axes_dims_rope": (4, 4, 8),
    "joint_attention_dim": WIDTH,
}
Z_IMAGE_CONFIG = {"dim": 32, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
SANA_CONFIG = {
    "sample_size": 16,
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 4,
    "cross_attention_dim": 8,
    "caption_channels": WIDTH,
}


def sd3_transformer(**config: Any) -> nn.Module:
    return randomised(diffusers.SD3Transformer2DModel(**SD3_CONFIG | {"num_layers": 2} | config))


def flux_transformer(**config: Any) -> nn.Module:
    given = {"pooled_projection_dim": WIDTH, "guidance_embeds": True} | config
    return randomised(diffusers.FluxTransformer2DModel(**FLUX_CONFIG | given))


def sana_transformer(**config: Any) -> nn.Module:
    return randomised(diffusers.SanaTransformer2DModel(**SANA_CONFIG | config))


def omnigen_transformer(**config: Any) -> nn.Module:
    model = diffusers.OmniGenTransformer2DModel(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=1,
        in_channels=4,
        time_step_dim=4,
        rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]},
        **config,
    )
    return randomised(model)


def z_image_transformer(**config: Any) -> nn.Module:
    defaults = {"n_layers": 2, "axes_dims": [8, 4, 4], "axes_lens": [256, 64, 64], "cap_feat_dim": WIDTH}
    return randomised(diffusers.ZImageTransformer2DModel(in_channels=4, **Z_IMAGE_CONFIG | defaults | config))


# --- text encoders ------------------------------------------------------------------------------------------


def byte_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<pad>", "<start>", "<end>"]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[(symbol, vocabulary[symbol]) for symbol in ("<start>", "<end>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
    )


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return what the configuration of a text encoder repeats of its tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def clip(max_length: int = 77, kind: Any = CLIPTextModel) -> nn.Module:
    special = special_tokens(byte_tokenizer(max_length))
    config = CLIPTextConfig(**LAYERS, **special, projection_dim=WIDTH, max_position_embeddings=max_length)
    return randomised(kind(config))


# --- pipelines ----------------------------------------------------------------------------------------------


def flow_scheduler(**config: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def sd_parts() -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": None,
        "tokenizer": None,
        "unet": unet(attention_head_dim=4),
        "scheduler": diffusers.DPMSolverMultistepScheduler(**SD_BETAS, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def quiet(pipe: diffusers.DiffusionPipeline) -> diffusers.DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe
