"""Families of one or a few: DeepFloyd IF, aMUSEd, Kandinsky 3, PRX, Cosmos, Krea, Nucleus, Ernie, HiDream, Hunyuan."""

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from building_blocks import TOKENS, WIDTH, clip, flow_scheduler, quiet, randomised, seeded, shifted_vae, unet, vae

from . import encoders
from .assembly import made, one_encoder
from .case import WITH_IMAGES, Case, Variant
from .classes import pipeline_class
from .dit import hunyuan_image_transformer
from .parts import (
    attention_masks,
    embeds,
    image_of,
    inpainting_mask,
    mask,
    negative_mask,
    negatives,
    rows,
    texts,
    unpadded_embeds,
)
from .qwen import qwen_vae

SIZE = {"height": 32, "width": 32}


def prx_transformer(**config: Any) -> Any:
    given = {
        "in_channels": 4,
        "patch_size": 2,
        "context_in_dim": WIDTH,
        "hidden_size": 16,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 2,
        "axes_dim": [4, 4],
    }
    from diffusers.models.transformers.transformer_prx import PRXTransformer2DModel

    return randomised(PRXTransformer2DModel(**given | config))


def prx(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    given = embeds(prompts) | SIZE | attention_masks(prompts, torch.bool) | {"guidance_scale": 4.0}
    return given | {"negative_prompt": None, "use_resolution_binning": False}


def prx_pixel(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return prx(prompts, variant) | {"output_type": "pt"}


def prx_pixel_pipeline() -> Any:
    parts = {"transformer": prx_transformer(in_channels=3), "scheduler": flow_scheduler()}
    return quiet(pipeline_class("PRXPixelPipeline")(**parts, text_encoder=None, tokenizer=None))


def cosmos_transformer() -> Any:
    return randomised(
        diffusers.CosmosTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            mlp_ratio=2,
            text_embed_dim=WIDTH,
            adaln_lora_dim=4,
            max_size=(4, 32, 32),
            patch_size=(1, 2, 2),
            rope_scale=(2.0, 1.0, 1.0),
            concat_padding_mask=False,
            extra_pos_embed_type="learnable",
        )
    )


class NoChecker(diffusers.ModelMixin):
    """A stand-in for Cosmos's guardrail, which is a package of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def cosmos(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return embeds(prompts) | SIZE | {"guidance_scale": 4.0}


KREA_LAYERS = 2


def krea_transformer() -> Any:
    return randomised(
        diffusers.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=WIDTH,
            num_text_layers=KREA_LAYERS,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
        )
    )


def krea(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return SIZE | {
        "prompt_embeds": rows(prompts, TOKENS, KREA_LAYERS, WIDTH),
        "negative_prompt_embeds": negatives(prompts, TOKENS, KREA_LAYERS, WIDTH),
        "prompt_embeds_mask": mask(prompts, dtype=torch.bool),
        "negative_prompt_embeds_mask": negative_mask(prompts, dtype=torch.bool),
        "guidance_scale": 4.0,
    }


def nucleus_transformer() -> Any:
    return randomised(
        diffusers.NucleusMoEImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            mlp_ratio=8.0,
            num_experts=2,
            moe_intermediate_dim=16,
            capacity_factors=[8.0, 8.0],
        )
    )


def nucleus_pipeline() -> Any:
    parts = {"transformer": nucleus_transformer(), "scheduler": flow_scheduler(), "vae": qwen_vae()}
    return quiet(pipeline_class("NucleusMoEImagePipeline")(**parts, text_encoder=None, processor=None))


def nucleus(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    masks = {"prompt_embeds_mask": mask(prompts), "negative_prompt_embeds_mask": negative_mask(prompts)}
    return embeds(prompts) | masks | SIZE | {"guidance_scale": 4.0}


def ernie_transformer() -> Any:
    return randomised(
        diffusers.ErnieImageTransformer2DModel(
            hidden_size=16,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=32,
            in_channels=16,
            out_channels=16,
            patch_size=1,
            text_in_dim=WIDTH,
            rope_axes_dim=(2, 2, 4),
        )
    )


def ernie(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return unpadded_embeds(prompts) | SIZE | {"guidance_scale": 4.0}


def kandinsky_unet() -> Any:
    return randomised(
        diffusers.Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=8,
            groups=4,
            attention_head_dim=4,
            layers_per_block=2,
            block_out_channels=(8, 16),
            cross_attention_dim=8,
            encoder_hid_dim=WIDTH,
        )
    )


def vq_model(**config: Any) -> Any:
    """Return an autoencoder of discrete latents."""
    with seeded():
        return diffusers.VQModel(
            block_out_channels=[8, 16],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=4,
            norm_num_groups=4,
            **config,
        ).eval()


def kandinsky(name: str) -> Callable[[], Any]:
    return lambda: quiet(
        pipeline_class(name)(
            tokenizer=None,
            text_encoder=None,
            unet=kandinsky_unet(),
            scheduler=diffusers.DDPMScheduler(),
            movq=vq_model(num_vq_embeddings=12, vq_embed_dim=4),
        )
    )


def kandinsky_text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    masks = {"attention_mask": mask(prompts), "negative_attention_mask": negative_mask(prompts)}
    return embeds(prompts) | SIZE | masks | {"guidance_scale": 1.5}


def kandinsky_from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    given = {key: value for key, value in kandinsky_text(prompts, variant).items() if key not in SIZE}
    return given | {"image": image_of(prompts, variant), "strength": 0.8, "num_inference_steps": 5}


def deepfloyd(name: str, channels: int = 3, super_resolution: bool = False) -> Callable[[], Any]:
    def build() -> Any:
        config = {"class_embed_type": "timestep"} if super_resolution else {}
        made = {
            "tokenizer": None,
            "text_encoder": None,
            "unet": unet(
                attention_head_dim=4,
                in_channels=channels,
                out_channels=6,
                addition_embed_type="text",
                addition_embed_type_num_heads=2,
                encoder_hid_dim=WIDTH,
                **config,
            ),
            "scheduler": diffusers.DDPMScheduler(variance_type="learned_range"),
            "safety_checker": None,
            "feature_extractor": None,
            "watermarker": None,
            "requires_safety_checker": False,
        }
        if super_resolution:
            made["image_noising_scheduler"] = diffusers.DDPMScheduler()
        return quiet(pipeline_class(name)(**made))

    return build


PIXEL_SIZE = {"height": 16, "width": 16}


def floyd(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return embeds(prompts) | PIXEL_SIZE | {"guidance_scale": 4.0, "output_type": "pt"}


def floyd_from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    given = embeds(prompts) | {"guidance_scale": 4.0, "output_type": "pt"}
    return given | {"image": image_of(prompts, variant, 16), "strength": 0.8, "num_inference_steps": 5}


def floyd_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return floyd_from_image(prompts, variant) | {"mask_image": inpainting_mask(prompts, variant, 16)}


def floyd_larger(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return floyd(prompts, variant) | {"image": image_of(prompts, variant, 8), "noise_level": 20}


def floyd_larger_from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    given = embeds(prompts) | {"guidance_scale": 4.0, "output_type": "pt", "strength": 0.8, "num_inference_steps": 5}
    return given | {
        "image": image_of(prompts, variant, 8),
        "original_image": image_of(prompts, variant, 16),
        "noise_level": 20,
    }


def floyd_larger_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return floyd_larger_from_image(prompts, variant) | {"mask_image": inpainting_mask(prompts, variant, 16)}


def amused(name: str) -> Callable[[], Any]:
    def build() -> Any:
        transformer = randomised(
            diffusers.UVit2DModel(
                hidden_size=16,
                cond_embed_dim=WIDTH,
                micro_cond_encode_dim=2,
                micro_cond_embed_dim=10,
                encoder_hidden_size=WIDTH,
                vocab_size=32,
                codebook_size=32,
                in_channels=16,
                block_out_channels=16,
                num_res_blocks=1,
                block_num_heads=2,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                sample_size=8,
            )
        )
        vqvae = vq_model(num_vq_embeddings=32, lookup_from_codebook=True, mid_block_add_attention=False)
        return quiet(
            pipeline_class(name)(
                vqvae=vqvae,
                tokenizer=None,
                text_encoder=None,
                transformer=transformer,
                scheduler=diffusers.AmusedScheduler(mask_token_id=31),
            )
        )

    return build


def amused_text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return {
        "prompt_embeds": rows(prompts, WIDTH),
        "encoder_hidden_states": rows(prompts, TOKENS, WIDTH, seed=1),
        "negative_prompt_embeds": negatives(prompts, WIDTH),
        "negative_encoder_hidden_states": negatives(prompts, TOKENS, WIDTH, seed=1),
        "guidance_scale": 4.0,
        "output_type": "pt",
    } | PIXEL_SIZE


def amused_from_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    given = {key: value for key, value in amused_text(prompts, variant).items() if key not in PIXEL_SIZE}
    return given | {"image": image_of(prompts, variant, 16), "strength": 0.8, "num_inference_steps": 5}


def amused_inpainted(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return amused_from_image(prompts, variant) | {"mask_image": inpainting_mask(prompts, variant, 16)}


def hunyuan_image(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return SIZE | {
        "prompt_embeds": rows(prompts, TOKENS, WIDTH),
        "prompt_embeds_mask": mask(prompts),
        "prompt_embeds_2": rows(prompts, TOKENS, WIDTH, seed=2),
        "prompt_embeds_mask_2": mask(prompts),
        "negative_prompt_embeds": negatives(prompts, TOKENS, WIDTH),
        "negative_prompt_embeds_mask": negative_mask(prompts),
        "negative_prompt_embeds_2": negatives(prompts, TOKENS, WIDTH, seed=2),
        "negative_prompt_embeds_mask_2": negative_mask(prompts),
    }


def hunyuan_image_vae() -> Any:
    with seeded():
        return diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 64),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=32,
            scaling_factor=0.5,
        ).eval()


def hunyuan_image_pipeline() -> Any:
    return quiet(
        pipeline_class("HunyuanImagePipeline")(
            scheduler=flow_scheduler(),
            vae=hunyuan_image_vae(),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=hunyuan_image_transformer(),
            guider=diffusers.guiders.ClassifierFreeGuidance(guidance_scale=4.0),
        )
    )


TEXT_MASK = {"encoder_attention_mask": "encoder_hidden_states"}
QWEN_MASK = {"encoder_hidden_states_mask": "encoder_hidden_states"}
TWO_MASKS = TEXT_MASK | {"encoder_attention_mask_2": "encoder_hidden_states_2"}
EDM = lambda: diffusers.FlowMatchEulerDiscreteScheduler()  # noqa: E731

CASES = [
    Case(
        "PRXPipeline",
        one_encoder("PRXPipeline", prx_transformer),
        prx,
        masks={"attention_mask": "encoder_hidden_states"},
        together="none",
        fast=True,
    ),
    Case(
        "PRXPixelPipeline",
        prx_pixel_pipeline,
        prx_pixel,
        masks={"attention_mask": "encoder_hidden_states"},
        together="none",
    ),
    Case(
        "Cosmos2TextToImagePipeline",
        one_encoder(
            "Cosmos2TextToImagePipeline",
            cosmos_transformer,
            vae=qwen_vae,
            scheduler=lambda: flow_scheduler(use_karras_sigmas=True),
            safety_checker=NoChecker,
        ),
        cosmos,
        skipping_steps=12,
    ),
    Case("Krea2Pipeline", one_encoder("Krea2Pipeline", krea_transformer, vae=qwen_vae), krea, masks=TEXT_MASK),
    Case(
        "NucleusMoEImagePipeline",
        nucleus_pipeline,
        nucleus,
        masks=QWEN_MASK,
    ),
    Case(
        "ErnieImagePipeline",
        one_encoder("ErnieImagePipeline", ernie_transformer),
        ernie,
        masks={"text_lens": "text_bth"},
    ),
    Case("HunyuanImagePipeline", hunyuan_image_pipeline, hunyuan_image, masks=TWO_MASKS),
    Case("Kandinsky3Pipeline", kandinsky("Kandinsky3Pipeline"), kandinsky_text, masks=TEXT_MASK),
    Case(
        "Kandinsky3Img2ImgPipeline",
        kandinsky("Kandinsky3Img2ImgPipeline"),
        kandinsky_from_image,
        WITH_IMAGES,
        masks=TEXT_MASK,
    ),
    Case("IFPipeline", deepfloyd("IFPipeline"), floyd, fast=True),
    Case("IFImg2ImgPipeline", deepfloyd("IFImg2ImgPipeline"), floyd_from_image, WITH_IMAGES),
    Case("IFInpaintingPipeline", deepfloyd("IFInpaintingPipeline"), floyd_inpainted, WITH_IMAGES),
    Case(
        "IFSuperResolutionPipeline",
        deepfloyd("IFSuperResolutionPipeline", 6, super_resolution=True),
        floyd_larger,
        WITH_IMAGES,
    ),
    Case(
        "IFImg2ImgSuperResolutionPipeline",
        deepfloyd("IFImg2ImgSuperResolutionPipeline", 6, super_resolution=True),
        floyd_larger_from_image,
        WITH_IMAGES,
    ),
    Case(
        "IFInpaintingSuperResolutionPipeline",
        deepfloyd("IFInpaintingSuperResolutionPipeline", 6, super_resolution=True),
        floyd_larger_inpainted,
        WITH_IMAGES,
    ),
    Case("AmusedPipeline", amused("AmusedPipeline"), amused_text, fast=True),
    Case("AmusedImg2ImgPipeline", amused("AmusedImg2ImgPipeline"), amused_from_image, WITH_IMAGES),
    Case("AmusedInpaintPipeline", amused("AmusedInpaintPipeline"), amused_inpainted, WITH_IMAGES),
]


def hidream_transformer() -> Any:
    return randomised(
        diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[WIDTH, WIDTH],
            text_emb_dim=2 * WIDTH,
            num_routed_experts=2,
            num_activated_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=[0, 1],
            force_inference_output=True,
        )
    )


def hidream() -> Any:
    parts = {
        "scheduler": flow_scheduler,
        "vae": shifted_vae,
        "transformer": hidream_transformer,
        "text_encoder": lambda: encoders.clip_with_projection(32),
        "tokenizer": lambda: encoders.tokenizer(32),
        "text_encoder_2": lambda: encoders.clip_with_projection(32),
        "tokenizer_2": lambda: encoders.tokenizer(32),
        "text_encoder_3": encoders.t5,
        "tokenizer_3": lambda: encoders.tokenizer(32),
        "text_encoder_4": encoders.llama,
        "tokenizer_4": lambda: encoders.tokenizer(32),
    }
    pipe = quiet(pipeline_class("HiDreamImagePipeline")(**made(parts)))
    pipe.default_sample_size = 16  # every image gets as many pixels as one of this size
    return pipe


def hidream_text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return texts(prompts) | SIZE | {"guidance_scale": 4.0, "max_sequence_length": 32}


CASES.append(Case("HiDreamImagePipeline", hidream, hidream_text, ("texts",)))


def kandinsky5_transformer() -> Any:
    return randomised(
        diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=WIDTH,
            in_text_dim2=WIDTH,
            time_dim=16,
            out_visual_dim=4,
            patch_size=(1, 2, 2),
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 2, 2),
        )
    )


class TextProcessor:
    """A tokenizer in place of the processor of a vision-language model."""

    def __init__(self) -> None:
        self.tokenizer = encoders.tokenizer(1024)

    def __call__(self, text: Any, images: Any = None, videos: Any = None, **settings: Any) -> Any:
        return self.tokenizer(text, **settings)


def kandinsky5() -> Any:
    parts = {
        "transformer": kandinsky5_transformer,
        "vae": lambda: vae(block_out_channels=[4] * 4),
        "text_encoder": encoders.qwen_with_head,
        "tokenizer": TextProcessor,
        "text_encoder_2": clip,
        "tokenizer_2": encoders.tokenizer,
        "scheduler": flow_scheduler,
    }
    pipe = quiet(pipeline_class("Kandinsky5T2IPipeline")(**made(parts)))
    pipe.resolutions = [(64, 64)]
    return pipe


def kandinsky5_text(prompts: Sequence[int], variant: Variant) -> dict[str, Any]:
    return texts(prompts) | {"height": 64, "width": 64, "guidance_scale": 4.0}


CASES.append(
    Case("Kandinsky5T2IPipeline", kandinsky5, kandinsky5_text, ("texts",), field="image", together="equal lengths")
)
