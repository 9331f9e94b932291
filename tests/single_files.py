"""Save a Stable Diffusion pipeline as one file of weights, under the names of the original code, as web UIs have it."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

DENOISER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.resnets.1": "middle_block.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
AUTOENCODER = {
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def save_single_file(pipe: Any, path: Path) -> None:
    """Write the weights of a Stable Diffusion pipeline to one file."""
    weights = {f"model.diffusion_model.{name}": weight for name, weight in _denoiser(pipe.unet).items()}
    weights |= {f"first_stage_model.{name}": weight for name, weight in _autoencoder(pipe.vae).items()}
    for name, weight in pipe.text_encoder.state_dict().items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = weight
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)


def _renamed(name: str, names: dict[str, str]) -> str:
    for one, other in names.items():
        if f"{one}." in name:
            name = name.replace(f"{one}.", f"{other}.")
    return name


def _denoiser(unet: Any) -> dict[str, Tensor]:
    layers, places = unet.config.layers_per_block, dict(DENOISER)
    for i, block in enumerate(unet.down_blocks):
        for j in range(layers):
            places[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{(layers + 1) * i + j + 1}.0"
            places[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{(layers + 1) * i + j + 1}.1"
        if block.downsamplers is not None:
            places[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{(layers + 1) * (i + 1)}.0.op"
    for i, block in enumerate(unet.up_blocks):
        for j in range(layers + 1):
            places[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{(layers + 1) * i + j}.0"
            places[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{(layers + 1) * i + j}.1"
        place = 2 if getattr(block, "attentions", None) is not None else 1
        places[f"up_blocks.{i}.upsamplers.0"] = f"output_blocks.{(layers + 1) * i + layers}.{place}"
    found = {}
    for name, weight in unet.state_dict().items():
        start = next(place for place in sorted(places, key=len, reverse=True) if name.startswith(f"{place}."))
        rest = name[len(start) :]
        found[places[start] + (_renamed(rest, RESNET) if "resnets" in name else rest)] = weight
    return found


def _autoencoder(vae: Any) -> dict[str, Tensor]:
    blocks, places = len(vae.config.block_out_channels), dict(AUTOENCODER)
    for i in range(blocks):
        for j in range(vae.config.layers_per_block + 1):
            places[f"encoder.down_blocks.{i}.resnets.{j}"] = f"encoder.down.{i}.block.{j}"
            places[f"decoder.up_blocks.{i}.resnets.{j}"] = f"decoder.up.{blocks - 1 - i}.block.{j}"
        places[f"encoder.down_blocks.{i}.downsamplers.0"] = f"encoder.down.{i}.downsample"
        places[f"decoder.up_blocks.{i}.upsamplers.0"] = f"decoder.up.{blocks - 1 - i}.upsample"
    found = {}
    for name, weight in vae.state_dict().items():
        is_projection = "attentions" in name and "to_" in name and weight.ndim == 2
        found[_renamed(name, places)] = weight[:, :, None, None] if is_projection else weight
    return found
