"""Nine diffusers pipelines small enough to run in milliseconds: random weights, nothing downloaded.

`PIPELINES[name]()` builds one; `tiny.pipe(**tiny.inputs(3))` runs it on three prompts. Prompts exist only as
embeddings, except in `sd_with_text`, whose text encoder takes strings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from building_blocks import (
    SD_BETAS,
    TOKENS,
    WIDTH,
    byte_tokenizer,
    clip,
    controlnet,
    equal_rows,
    first_rows,
    flow_scheduler,
    flux_transformer,
    flux_vae,
    generator_of,
    quiet,
    randomised,
    sana_transformer,
    sd3_transformer,
    sd_parts,
    seeded,
    shifted_vae,
    unet,
    vae,
)
from torch import Tensor
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig


@dataclass(frozen=True)
class TinyPipeline:
    """A pipeline, and the arguments it takes for n prompts.

    `inputs(n, seed=0, ragged=False)` gives n different prompts and n equal negative prompts; a smaller n
    gives the first rows of a larger one. `ragged` prompts differ in length, where the pipeline takes masks.
    """

    pipe: diffusers.DiffusionPipeline
    inputs: Callable[..., dict[str, Any]]
    output_field: str = "images"
    rows_per_step: int = 2  # denoiser rows per image and call, at the pipeline's default guidance


# --- inputs -------------------------------------------------------------------------------------------------


def _masks(n: int, tokens: int, ragged: bool) -> Tensor:
    """Row i sees all tokens, or, ragged, i fewer (and at least two)."""
    lengths = [max(2, tokens - row) if ragged else tokens for row in range(n)]
    return torch.tensor([[token < length for token in range(tokens)] for length in lengths]).long()


def _embeddings(n: int, seed: int) -> dict[str, Tensor]:
    return {
        "prompt_embeds": first_rows(n, TOKENS, WIDTH, seed=seed),
        "negative_prompt_embeds": equal_rows(n, TOKENS, WIDTH, seed=seed),
    }


def _pooled_embeddings(n: int, seed: int) -> dict[str, Tensor]:
    return {
        "pooled_prompt_embeds": first_rows(n, WIDTH, seed=seed + 1),
        "negative_pooled_prompt_embeds": torch.zeros(n, WIDTH),
    }


# --- parts --------------------------------------------------------------------------------------------------


def _vocoder() -> SpeechT5HifiGan:
    config = SpeechT5HifiGanConfig(
        model_in_dim=8,
        sampling_rate=16000,
        upsample_initial_channel=16,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3, 7],
        resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
        normalize_before=False,
    )
    with seeded():
        return SpeechT5HifiGan(config).eval()


class _AbsentTextEncoder(diffusers.ModelMixin):
    """The audio pipelines ask their text encoders for kind, dtype and device even when given embeddings."""

    config = SimpleNamespace(model_type="t5")

    def __init__(self) -> None:
        super().__init__()
        self.text_model = torch.nn.Linear(1, 1)
        self.text_model.dtype = torch.float32


# --- images -------------------------------------------------------------------------------------------------


def sd() -> TinyPipeline:
    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return _embeddings(n, seed) | {"height": 32, "width": 32}

    return TinyPipeline(quiet(diffusers.StableDiffusionPipeline(**sd_parts())), inputs)


def sd_from_image() -> TinyPipeline:
    """Image to image, all prompts from one image."""
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return _embeddings(n, seed) | {"image": image}

    return TinyPipeline(quiet(diffusers.StableDiffusionImg2ImgPipeline(**sd_parts())), inputs)


def sd_perturbed() -> TinyPipeline:
    """Guided by perturbed attention as well: three rows per image."""
    pipe = quiet(diffusers.StableDiffusionPAGPipeline(**sd_parts(), pag_applied_layers=["down"]))
    return TinyPipeline(pipe, sd().inputs, rows_per_step=3)


def sd_with_text() -> TinyPipeline:
    """Stable Diffusion that takes strings. A token is a byte: all texts of up to 75 bytes differ to it."""
    parts = sd_parts() | {"text_encoder": clip(77), "tokenizer": byte_tokenizer(77)}

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        prompts = [f"a {'very ' * (row if ragged else 0)}small picture {seed}.{row}" for row in range(n)]
        return {"prompt": prompts, "negative_prompt": ["blurred"] * n, "height": 32, "width": 32}

    return TinyPipeline(quiet(diffusers.StableDiffusionPipeline(**parts)), inputs)


def sd_controlnet(controlnets: int = 1) -> TinyPipeline:
    """With more than one `controlnets`, a MultiControlNetModel. All rows have the same control images."""

    nets = [controlnet(seed=seed) for seed in range(1, controlnets + 1)]

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        images = [torch.rand(1, 3, 32, 32, generator=generator_of(seed, -2 - net)) for net in range(controlnets)]
        images = [image.repeat(n, 1, 1, 1) for image in images]
        control = {"image": images[0] if controlnets == 1 else images}
        if controlnets > 1:
            control["controlnet_conditioning_scale"] = [1.0] * controlnets
        return _embeddings(n, seed) | control | {"height": 32, "width": 32}

    pipe = diffusers.StableDiffusionControlNetPipeline(**sd_parts(), controlnet=nets[0] if controlnets == 1 else nets)
    return TinyPipeline(quiet(pipe), inputs)


def sdxl() -> TinyPipeline:
    time_width, size_numbers = 8, 6
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet(
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=time_width,
            projection_class_embeddings_input_dim=time_width * size_numbers + WIDTH,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(**SD_BETAS, timestep_spacing="leading"),
        add_watermarker=False,
    )

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return _embeddings(n, seed) | _pooled_embeddings(n, seed) | {"height": 32, "width": 32}

    return TinyPipeline(quiet(pipe), inputs)


def sd3() -> TinyPipeline:
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=sd3_transformer(),
        scheduler=flow_scheduler(),
        vae=shifted_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return _embeddings(n, seed) | _pooled_embeddings(n, seed) | {"height": 32, "width": 32}

    return TinyPipeline(quiet(pipe), inputs)


def flux() -> TinyPipeline:
    """Guidance is an input of the denoiser, so there are no negative prompts and one row per image."""
    pipe = diffusers.FluxPipeline(
        transformer=flux_transformer(),
        scheduler=flow_scheduler(use_dynamic_shifting=True),
        vae=flux_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return {
            "prompt_embeds": first_rows(n, TOKENS, WIDTH, seed=seed),
            "pooled_prompt_embeds": first_rows(n, WIDTH, seed=seed + 1),
            "height": 16,
            "width": 16,
        }

    return TinyPipeline(quiet(pipe), inputs, rows_per_step=1)


def _masked_inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
    """For PixArt and Sana. Their negative prompt is a string by default: without a tokenizer, None."""
    masks = {
        "prompt_attention_mask": _masks(n, TOKENS, ragged),
        "negative_prompt_attention_mask": _masks(n, TOKENS, ragged=False),
    }
    sizes = {"height": 32, "width": 32, "use_resolution_binning": False}
    return _embeddings(n, seed) | masks | sizes | {"negative_prompt": None}


def pixart() -> TinyPipeline:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        caption_channels=WIDTH,
        cross_attention_dim=16,
    )
    pipe = diffusers.PixArtAlphaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae(),
        transformer=randomised(transformer),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    return TinyPipeline(quiet(pipe), _masked_inputs)


def sana() -> TinyPipeline:
    with seeded():
        autoencoder = diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        ).eval()
    pipe = diffusers.SanaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=autoencoder,
        transformer=sana_transformer(),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
    )

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return _masked_inputs(n, seed, ragged) | {"complex_human_instruction": None}

    return TinyPipeline(quiet(pipe), inputs)


# --- sound --------------------------------------------------------------------------------------------------


def audioldm2() -> TinyPipeline:
    """Two text conditions, one of them masked."""
    pipe = diffusers.AudioLDM2Pipeline(
        vae=vae(in_channels=1, out_channels=1),
        text_encoder=None,
        text_encoder_2=_AbsentTextEncoder(),
        projection_model=None,
        language_model=_AbsentTextEncoder(),
        tokenizer=None,
        tokenizer_2=None,
        feature_extractor=None,
        unet=unet(
            diffusers.AudioLDM2UNet2DConditionModel,
            cross_attention_dim=(
                (None, WIDTH, WIDTH),
                (None, WIDTH, WIDTH),
            ),  # a block: self, language model, T5
        ),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.0015,
            beta_end=0.0195,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
        ),
        vocoder=_vocoder(),
    )

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return _embeddings(n, seed) | {
            "generated_prompt_embeds": first_rows(n, TOKENS, WIDTH, seed=seed + 1),
            "negative_generated_prompt_embeds": equal_rows(n, TOKENS, WIDTH, seed=seed + 1),
            "attention_mask": _masks(n, TOKENS, ragged),
            "negative_attention_mask": _masks(n, TOKENS, ragged=False),
            "audio_length_in_s": 0.02,
        }

    return TinyPipeline(quiet(pipe), inputs, output_field="audios")


def musicldm() -> TinyPipeline:
    """The prompt is one vector, given to the denoiser as class labels."""
    pipe = diffusers.MusicLDMPipeline(
        vae=vae(in_channels=1, out_channels=1),
        text_encoder=_AbsentTextEncoder(),
        tokenizer=None,
        feature_extractor=None,
        unet=unet(
            cross_attention_dim=(8, 16),
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=WIDTH,
            class_embeddings_concat=True,
        ),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
        vocoder=_vocoder(),
    )

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return {
            "prompt_embeds": first_rows(n, WIDTH, seed=seed),
            "negative_prompt_embeds": torch.zeros(n, WIDTH),
            "audio_length_in_s": 0.02,
        }

    return TinyPipeline(quiet(pipe), inputs, output_field="audios")


# --- video ------------------------------------------------------------------------------------------------


def wan() -> TinyPipeline:
    """Video. Calls its denoiser for the prompts, then for the negative ones."""
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=16,
        num_layers=2,
        rope_max_seq_len=32,
    )
    pipe = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,  # latents are enough
        transformer=randomised(transformer),
        scheduler=diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    )

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return _embeddings(n, seed) | {"height": 32, "width": 32, "num_frames": 5}

    return TinyPipeline(quiet(pipe), inputs, output_field="frames")


PIPELINES: dict[str, Callable[[], TinyPipeline]] = {
    "sd": sd,
    "sd_controlnet": sd_controlnet,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "pixart": pixart,
    "sana": sana,
    "audioldm2": audioldm2,
    "musicldm": musicldm,
}
