"""OmniGen, whose denoiser reads the prompt as token ids."""

import builtins
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import diffusers
from building_blocks import omnigen_transformer, quiet, vae

from . import encoders
from .case import Case, Variant
from .classes import pipeline_class
from .parts import texts


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
    return quiet(
        pipeline_class("OmniGenPipeline")(
            transformer=omnigen_transformer(),
            vae=vae(block_out_channels=[4] * 4),
            tokenizer=encoders.tokenizer(1024),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        )
    )


def said(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return texts(prompts, negative=False) | {"height": 64, "width": 64, "guidance_scale": 3.0}


CASES = [Case("OmniGenPipeline", build, said, ("texts",))]
