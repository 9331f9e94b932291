"""Denoisers of real shapes with random weights, in the real pipelines of diffusers: nothing is downloaded.

Pipelines get neither text encoders nor a VAE: prompts are random embeddings of the real shapes, and the outputs are
latents. Weights are made on the device, in its dtype, by torch's own initialisation: outputs have the size of their
inputs at most, so that latents stay finite. `is_tiny` shrinks every width and depth for a rehearsal on the CPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

GROUP = 4  # images that share a trunk; their embeddings are similar
APART = 0.3  # standard deviation of an image's embedding around that of its group, which has 1
SD_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@dataclass(frozen=True)
class Model:
    """The shapes of one model.

    Attributes:
        title: its name in the table.
        pipeline, denoiser, scheduler: classes of diffusers.
        config: of the denoiser; what it does not name is the default of the class.
        tiny: what a rehearsal changes in it.
        schedule: config of the scheduler.
        guidance: the guidance scale.
        tokens, width: of a prompt's embedding.
        pooled: width of a prompt's pooled embedding; None if the pipeline takes none.
        negative: whether the pipeline takes negative embeddings: guidance then doubles the rows.
        masked: whether the pipeline takes attention masks.
        callback: name of the argument that takes a function to call after each step.
    """

    title: str
    pipeline: str
    denoiser: str
    config: Mapping[str, Any]
    tiny: Mapping[str, Any]
    scheduler: str
    schedule: Mapping[str, Any]
    guidance: float
    tokens: int
    width: int
    pooled: int | None = None
    negative: bool = True
    masked: bool = False
    callback: str = "callback_on_step_end"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_unet(self) -> bool:
        return self.denoiser.startswith("UNet")


TINY_WIDTH = 32  # of every embedding in a rehearsal
_TINY_UNET = {
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "cross_attention_dim": TINY_WIDTH,
}
_TINY_DIT = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
_SD3 = {
    "sample_size": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
}
_TINY_SD3 = _TINY_DIT | {
    "caption_projection_dim": 32,
    "joint_attention_dim": TINY_WIDTH,
    "pooled_projection_dim": TINY_WIDTH,
}


def _sd3(title: str, layers: int, positions: int, **config: Any) -> Model:
    # heads of 64: as many as layers
    width = {"num_layers": layers, "num_attention_heads": layers, "caption_projection_dim": 64 * layers}
    return Model(
        title=title,
        pipeline="StableDiffusion3Pipeline",
        denoiser="SD3Transformer2DModel",
        config=_SD3 | width | {"pos_embed_max_size": positions} | config,
        tiny=_TINY_SD3 | ({"dual_attention_layers": (0,)} if config else {}),
        scheduler="FlowMatchEulerDiscreteScheduler",
        schedule={"shift": 3.0},
        guidance=4.5,
        tokens=77 + 256,
        width=4096,
        pooled=2048,
    )


MODELS: dict[str, Model] = {
    "sd15": Model(
        title="SD 1.5",
        pipeline="StableDiffusionPipeline",
        denoiser="UNet2DConditionModel",
        config={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        tiny=_TINY_UNET,
        scheduler="DPMSolverMultistepScheduler",
        schedule=SD_SCHEDULE,
        guidance=7.5,
        tokens=77,
        width=768,
        arguments={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    ),
    "sdxl": Model(
        title="SDXL",
        pipeline="StableDiffusionXLPipeline",
        denoiser="UNet2DConditionModel",
        config={
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 6 * 256 + 1280,
        },
        tiny=_TINY_UNET
        | {
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": (2, 4),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + TINY_WIDTH,
        },
        scheduler="EulerDiscreteScheduler",
        schedule=SD_SCHEDULE,
        guidance=5.0,
        tokens=77,
        width=2048,
        pooled=1280,
        arguments={"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False},
    ),
    "flux": Model(
        title="Flux dev",
        pipeline="FluxPipeline",
        denoiser="FluxTransformer2DModel",
        config={"guidance_embeds": True},
        tiny=_TINY_DIT
        | {
            "num_single_layers": 2,
            "axes_dims_rope": (4, 4, 8),
            "joint_attention_dim": TINY_WIDTH,
            "pooled_projection_dim": TINY_WIDTH,
        },
        scheduler="FlowMatchEulerDiscreteScheduler",
        schedule={"shift": 3.0, "use_dynamic_shifting": True},
        guidance=3.5,
        tokens=512,
        width=4096,
        pooled=768,
        negative=False,
        arguments={"text_encoder_2": None, "tokenizer_2": None},
    ),
    # of the medium size only the first 13 layers attend twice to the image
    "sd35m": _sd3("SD 3.5 medium", 24, 384, dual_attention_layers=tuple(range(13))),
    "sd35l": _sd3("SD 3.5 large", 38, 192),
    "pixart": Model(
        title="PixArt Sigma",
        pipeline="PixArtSigmaPipeline",
        denoiser="PixArtTransformer2DModel",
        config={"sample_size": 128, "caption_channels": 4096, "use_additional_conditions": False},
        tiny=_TINY_DIT | {"sample_size": 16, "cross_attention_dim": 32, "caption_channels": TINY_WIDTH},
        scheduler="DPMSolverMultistepScheduler",
        schedule={"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
        guidance=4.5,
        tokens=300,
        width=4096,
        masked=True,
        callback="callback",
    ),
}


@dataclass
class Built:
    """A model on a device, in its pipeline."""

    model: Model
    pipe: Any
    device: torch.device
    dtype: torch.dtype
    is_tiny: bool

    @classmethod
    def of(cls, model: Model, device: torch.device, dtype: torch.dtype, *, is_tiny: bool) -> "Built":
        """Build the model. The weights are made on the device in their final dtype, so this takes seconds."""
        denoiser = build_denoiser(model, device, dtype, is_tiny=is_tiny)
        parts = {"unet" if model.is_unet else "transformer": denoiser, "vae": None, "text_encoder": None}
        parts |= {"tokenizer": None, "scheduler": getattr(diffusers, model.scheduler)(**model.schedule)}
        if model.pipeline == "StableDiffusion3Pipeline":
            parts |= dict.fromkeys(("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"))
        pipe = getattr(diffusers, model.pipeline)(**parts, **model.arguments)
        pipe.set_progress_bar_config(disable=True)
        return cls(model, pipe, device, dtype, is_tiny)

    @property
    def denoiser(self) -> Any:
        return self.pipe.unet if self.model.is_unet else self.pipe.transformer

    @property
    def rows_per_image(self) -> int:
        return 2 if self.model.negative else 1

    def inputs(self, images: int, pixels: int) -> dict[str, Any]:
        """Return arguments of the pipeline for this many images. Those of a group of four have similar embeddings."""
        model = self.model
        width, pooled = (TINY_WIDTH, TINY_WIDTH) if self.is_tiny else (model.width, model.pooled)
        tokens = 8 if self.is_tiny else model.tokens
        inputs: dict[str, Any] = {"prompt_embeds": self._rows(images, tokens, width)}
        if model.negative:
            inputs["negative_prompt_embeds"] = self._rows(1, tokens, width).repeat(images, 1, 1)
        if model.pooled is not None:
            inputs["pooled_prompt_embeds"] = self._rows(images, pooled)
            if model.negative:
                inputs["negative_pooled_prompt_embeds"] = self._rows(1, pooled).repeat(images, 1)
        if model.masked:
            mask = torch.ones(images, tokens, device=self.device, dtype=torch.long)
            inputs |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask.clone()}
            inputs["negative_prompt"] = None  # its default is a text, and no tokenizer is here
            inputs["use_resolution_binning"] = False
        return inputs | {
            "height": pixels,
            "width": pixels,
            "guidance_scale": model.guidance,
            "output_type": "latent",
        }

    def _rows(self, images: int, *shape: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        own = torch.randn(images, *shape, generator=generator)
        of_group = torch.randn(-(-images // GROUP), *shape, generator=generator).repeat_interleave(GROUP, 0)[:images]
        return (of_group + APART * own).to(self.device, self.dtype)


def build_denoiser(model: Model, device: torch.device, dtype: torch.dtype, *, is_tiny: bool) -> Any:
    """Return the denoiser alone, with random weights; on the device "meta" it has shapes and no weights."""
    config = {**model.config, **(model.tiny if is_tiny else {})}
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            denoiser = getattr(diffusers, model.denoiser)(**config)
    finally:
        torch.set_default_dtype(usual)
    return denoiser.eval()
