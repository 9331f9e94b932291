"""OmniGen, whose denoiser reads the prompt as token ids."""

import builtins
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import diffusers

from . import encoders
from .case import Case, Variant
from .classes import pipeline_class
from .parts import quiet, randomised, texts, vae


def build() -> Any:
    """Return the pipeline with a stand-in for a name of torchvision, which it needs only for input images."""
    if not hasattr(builtins, "transforms"):
        from diffusers.utils import is_torchvision_available

        if not is_torchvision_available():
            ignore = lambda *args, **kwargs: None  # noqa: E731
            builtins.transforms = SimpleNamespace(Compose=ignore, Lambda=ignore, ToTensor=ignore, Normalize=ignore)
    from diffusers.pipelines.omnigen import pipeline_omnigen
    from diffusers.pipelines.omnigen.processor_omnigen import OmniGenMultiModalProcessor

    pipeline_omnigen.OmniGenMultiModalProcessor = OmniGenMultiModalProcessor
    transformer = diffusers.OmniGenTransformer2DModel(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=1,
        in_channels=4,
        time_step_dim=4,
        rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]},
    )
    return quiet(
        pipeline_class("OmniGenPipeline")(
            transformer=randomised(transformer),
            vae=vae(block_out_channels=[4] * 4),
            tokenizer=encoders.tokenizer(1024),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        )
    )


def said(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return texts(prompts, negative=False) | {"height": 64, "width": 64, "guidance_scale": 3.0}


CASES = [Case("OmniGenPipeline", build, said, ("texts",))]
