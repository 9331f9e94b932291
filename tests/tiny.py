"""Nine diffusers pipelines small enough to run in milliseconds: random weights, nothing downloaded.

`PIPELINES[name]()` builds one; `tiny.pipe(**tiny.inputs(3))` runs it on three prompts. Prompts exist only as
embeddings, except in `sd_with_text`, whose text encoder takes strings.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
)

WIDTH = 16  # of every prompt embedding
TOKENS = 7  # of every prompt embedding
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


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


# --- weights ------------------------------------------------------------------------------------------------


@contextmanager
def _seeded(seed: int = 0) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _randomised(model: nn.Module, seed: int = 0) -> nn.Module:
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


def _ready(pipe: diffusers.DiffusionPipeline) -> diffusers.DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- inputs -------------------------------------------------------------------------------------------------


def _prompts(n: int, *shape: int, seed: int) -> Tensor:
    """Return n different rows."""
    return torch.stack([torch.randn(shape, generator=_generator(seed, row)) for row in range(n)])


def _negatives(n: int, *shape: int, seed: int) -> Tensor:
    """Return n equal rows."""
    return torch.randn((1, *shape), generator=_generator(seed, -1)).repeat(n, *[1] * len(shape))


def _generator(seed: int, row: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * (seed + 1) + row)


def _masks(n: int, tokens: int, ragged: bool) -> Tensor:
    """Row i sees all tokens, or, ragged, i fewer (and at least two)."""
    lengths = [max(2, tokens - row) if ragged else tokens for row in range(n)]
    return torch.tensor([[token < length for token in range(tokens)] for length in lengths]).long()


def _embeddings(n: int, seed: int) -> dict[str, Tensor]:
    return {
        "prompt_embeds": _prompts(n, TOKENS, WIDTH, seed=seed),
        "negative_prompt_embeds": _negatives(n, TOKENS, WIDTH, seed=seed),
    }


def _pooled_embeddings(n: int, seed: int) -> dict[str, Tensor]:
    return {
        "pooled_prompt_embeds": _prompts(n, WIDTH, seed=seed + 1),
        "negative_pooled_prompt_embeds": torch.zeros(n, WIDTH),
    }


# --- parts --------------------------------------------------------------------------------------------------


def _vae(channels: int = 4, **config: Any) -> diffusers.AutoencoderKL:
    config = {"block_out_channels": [8, 16], "norm_num_groups": 4, "sample_size": 32} | config
    blocks = len(config["block_out_channels"])
    with _seeded():
        return diffusers.AutoencoderKL(
            latent_channels=channels,
            down_block_types=["DownEncoderBlock2D"] * blocks,
            up_block_types=["UpDecoderBlock2D"] * blocks,
            **config,
        ).eval()


def _unet(kind: type = diffusers.UNet2DConditionModel, **config: Any) -> nn.Module:
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
    return _randomised(kind(**defaults | config))


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
    with _seeded():
        return SpeechT5HifiGan(config).eval()


class _AbsentTextEncoder(diffusers.ModelMixin):
    """The audio pipelines ask their text encoders for kind, dtype and device even when given embeddings."""

    config = SimpleNamespace(model_type="t5")

    def __init__(self) -> None:
        super().__init__()
        self.text_model = torch.nn.Linear(1, 1)
        self.text_model.dtype = torch.float32


# --- images -------------------------------------------------------------------------------------------------


def _sd_parts() -> dict[str, Any]:
    return {
        "vae": _vae(),
        "text_encoder": None,
        "tokenizer": None,
        "unet": _unet(attention_head_dim=4),
        "scheduler": diffusers.DPMSolverMultistepScheduler(**SD_BETAS, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def sd() -> TinyPipeline:
    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return _embeddings(n, seed) | {"height": 32, "width": 32}

    return TinyPipeline(_ready(diffusers.StableDiffusionPipeline(**_sd_parts())), inputs)


def sd_from_image() -> TinyPipeline:
    """Image to image, all prompts from one image."""
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return _embeddings(n, seed) | {"image": image}

    return TinyPipeline(_ready(diffusers.StableDiffusionImg2ImgPipeline(**_sd_parts())), inputs)


def sd_perturbed() -> TinyPipeline:
    """Guided by perturbed attention as well: three rows per image."""
    pipe = _ready(diffusers.StableDiffusionPAGPipeline(**_sd_parts(), pag_applied_layers=["down"]))
    return TinyPipeline(pipe, sd().inputs, rows_per_step=3)


def sd_with_text() -> TinyPipeline:
    """Stable Diffusion that takes strings. A token is a byte: all texts of up to 75 bytes differ to it."""
    tokenizer = _byte_tokenizer(max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    parts = _sd_parts() | {"text_encoder": _randomised(CLIPTextModel(config)), "tokenizer": tokenizer}

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        prompts = [f"a {'very ' * (row if ragged else 0)}small picture {seed}.{row}" for row in range(n)]
        return {"prompt": prompts, "negative_prompt": ["blurred"] * n, "height": 32, "width": 32}

    return TinyPipeline(_ready(diffusers.StableDiffusionPipeline(**parts)), inputs)


def _byte_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
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


def sd_controlnet(controlnets: int = 1) -> TinyPipeline:
    """With more than one `controlnets`, a MultiControlNetModel. All rows have the same control images."""

    def controlnet(seed: int) -> diffusers.ControlNetModel:
        model = diffusers.ControlNetModel(
            in_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            conditioning_embedding_out_channels=(8, 16),
            cross_attention_dim=WIDTH,
            norm_num_groups=4,
            attention_head_dim=4,
        )
        return _randomised(model, seed)

    nets = [controlnet(seed) for seed in range(1, controlnets + 1)]

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        images = [torch.rand(1, 3, 32, 32, generator=_generator(seed, -2 - net)) for net in range(controlnets)]
        images = [image.repeat(n, 1, 1, 1) for image in images]
        control = {"image": images[0] if controlnets == 1 else images}
        if controlnets > 1:
            control["controlnet_conditioning_scale"] = [1.0] * controlnets
        return _embeddings(n, seed) | control | {"height": 32, "width": 32}

    pipe = diffusers.StableDiffusionControlNetPipeline(**_sd_parts(), controlnet=nets[0] if controlnets == 1 else nets)
    return TinyPipeline(_ready(pipe), inputs)


def sdxl() -> TinyPipeline:
    time_width, size_numbers = 8, 6
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=_unet(
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

    return TinyPipeline(_ready(pipe), inputs)


def sd3() -> TinyPipeline:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=WIDTH,
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=_randomised(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return _embeddings(n, seed) | _pooled_embeddings(n, seed) | {"height": 32, "width": 32}

    return TinyPipeline(_ready(pipe), inputs)


def flux() -> TinyPipeline:
    """Guidance is an input of the denoiser, so there are no negative prompts and one row per image."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,  # the pipeline packs 2 x 2 latents of one channel
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        axes_dims_rope=[4, 4, 8],
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
    )
    pipe = diffusers.FluxPipeline(
        transformer=_randomised(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(
            channels=1,
            block_out_channels=[8],
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.06,
            scaling_factor=1.5,
        ),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return {
            "prompt_embeds": _prompts(n, TOKENS, WIDTH, seed=seed),
            "pooled_prompt_embeds": _prompts(n, WIDTH, seed=seed + 1),
            "height": 16,
            "width": 16,
        }

    return TinyPipeline(_ready(pipe), inputs, rows_per_step=1)


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
        vae=_vae(),
        transformer=_randomised(transformer),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    return TinyPipeline(_ready(pipe), _masked_inputs)


def sana() -> TinyPipeline:
    transformer = diffusers.SanaTransformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=WIDTH,
    )
    with _seeded():
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
        transformer=_randomised(transformer),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
    )

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return _masked_inputs(n, seed, ragged) | {"complex_human_instruction": None}

    return TinyPipeline(_ready(pipe), inputs)


# --- sound --------------------------------------------------------------------------------------------------


def audioldm2() -> TinyPipeline:
    """Two text conditions, one of them masked."""
    pipe = diffusers.AudioLDM2Pipeline(
        vae=_vae(in_channels=1, out_channels=1),
        text_encoder=None,
        text_encoder_2=_AbsentTextEncoder(),
        projection_model=None,
        language_model=_AbsentTextEncoder(),
        tokenizer=None,
        tokenizer_2=None,
        feature_extractor=None,
        unet=_unet(
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
            "generated_prompt_embeds": _prompts(n, TOKENS, WIDTH, seed=seed + 1),
            "negative_generated_prompt_embeds": _negatives(n, TOKENS, WIDTH, seed=seed + 1),
            "attention_mask": _masks(n, TOKENS, ragged),
            "negative_attention_mask": _masks(n, TOKENS, ragged=False),
            "audio_length_in_s": 0.02,
        }

    return TinyPipeline(_ready(pipe), inputs, output_field="audios")


def musicldm() -> TinyPipeline:
    """The prompt is one vector, given to the denoiser as class labels."""
    pipe = diffusers.MusicLDMPipeline(
        vae=_vae(in_channels=1, out_channels=1),
        text_encoder=_AbsentTextEncoder(),
        tokenizer=None,
        feature_extractor=None,
        unet=_unet(
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
            "prompt_embeds": _prompts(n, WIDTH, seed=seed),
            "negative_prompt_embeds": torch.zeros(n, WIDTH),
            "audio_length_in_s": 0.02,
        }

    return TinyPipeline(_ready(pipe), inputs, output_field="audios")


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
        transformer=_randomised(transformer),
        scheduler=diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    )

    def inputs(n: int, seed: int = 0, ragged: bool = False) -> dict[str, Any]:
        return _embeddings(n, seed) | {"height": 32, "width": 32, "num_frames": 5}

    return TinyPipeline(_ready(pipe), inputs, output_field="frames")


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
