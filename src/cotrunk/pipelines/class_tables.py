"""Tables of diffusers classes that need special treatment, by name. Only `schedulers.py` names others.

Names of pipelines and schedulers are prefixes where a table says so: `StableDiffusion3` covers all its variants.
`tests/pipelines/test_class_tables.py` checks every name against the installed diffusers.
"""

from typing import NamedTuple


class OutputForm(NamedTuple):
    """The form of a denoiser's output, which has the shape of its sample except for the channels.

    Attributes:
        sample: the argument that holds the latents.
        dimensions: number of dimensions of the latents.
        output: the class that it returns with `return_dict=True`; its field is `sample`.
        is_packed: latents are (rows, tokens, channels) instead of (rows, channels, ...).
    """

    sample: str
    dimensions: int
    output: str
    is_packed: bool = False


# --- denoisers --------------------------------------------------------------------------------------------------

OUTPUT_FORMS = {
    "AudioLDM2UNet2DConditionModel": OutputForm("sample", 4, "UNet2DConditionOutput"),
    "FluxTransformer2DModel": OutputForm("hidden_states", 3, "Transformer2DModelOutput", is_packed=True),
    "PixArtTransformer2DModel": OutputForm("hidden_states", 4, "Transformer2DModelOutput"),
    "SD3Transformer2DModel": OutputForm("hidden_states", 4, "Transformer2DModelOutput"),
    "SanaTransformer2DModel": OutputForm("hidden_states", 4, "Transformer2DModelOutput"),
    "UNet2DConditionModel": OutputForm("sample", 4, "UNet2DConditionOutput"),
    "WanTransformer3DModel": OutputForm("hidden_states", 5, "Transformer2DModelOutput"),
}

# --- pipelines --------------------------------------------------------------------------------------------------

# prefixes: pipelines whose scheduler does not step once per timestep for each image
OWN_LOOPS = {
    "StableDiffusionPanorama": "steps its scheduler once per view of an image",
    "StableDiffusionParadigms": "steps its scheduler for many timesteps at once",
}
TWO_IMAGES_PER_SCHEDULER = ("CycleDiffusionPipeline",)  # steps a source and a target image with one scheduler
# prefixes: of the two rows of guidance, the first has the prompt
CONDITIONAL_FIRST = ("ZImage", "Lumina", "StableCascade", "Wuerstchen", "AceStep", "OmniGen")
# a prompt may have several reference images, so a list of images belongs to all prompts
REFERENCES = (
    "BriaFibo2Pipeline",
    "Flux2KleinKVPipeline",
    "Flux2KleinPipeline",
    "Flux2Pipeline",
    "QwenImage21Pipeline",
    "QwenImageEditPlusPipeline",
    "ZImageOmniPipeline",
)
# They need one input image per prompt, and do not repeat a single image. Other pipelines for which this holds have
# an argument `strength` or `mask_image`.
ONE_IMAGE_PER_PROMPT = (
    "CogVideoXImageToVideoPipeline",
    "IFSuperResolutionPipeline",
    "StableDiffusionAdapterPipeline",
    "StableDiffusionLatentUpscalePipeline",
    "StableDiffusionUpscalePipeline",
    "StableDiffusionXLAdapterPipeline",
)
REPEATS_ITSELF = ("StableDiffusionInpaintPipelineLegacy",)  # repeats a single image, and does not take a list
# prefixes: they start from an image if one is given, and from the text alone otherwise
OPTIONAL_IMAGE = ("Flux2", "FluxKontext", "OmniGen", "GlmImage")
# prefixes: they pad texts to the longest of the call, and no mask hides the padding from their denoisers
UNMASKED = ("CogView4", "GlmImage", "JoyImageEdit", "Kandinsky5", "OmniGen")
# prefixes: pipelines in which each image needs a call of its own
APART = {
    "Latte": "cuts the padding of a single text and keeps that of several",
    "PRX": "takes one prompt per call",
    "QwenImageEditPlus": "takes one prompt per call",
}

# prefixes: their denoisers or ControlNets read an input image that each image encodes, or blurs, with its own noise
READS_ENCODED = (
    "FluxControl",
    "FluxFill",
    "IFImg2ImgSuperResolution",
    "IFInpaintingSuperResolution",
    "IFSuperResolution",
    "QwenImageControlNet",
    "QwenImageEditInpaint",
    "StableDiffusionUpscale",
)
# their guidance takes more rows than `guidance_rows` predicts
MORE_GUIDANCE = ("StableDiffusionPipelineSafe",)
# prefixes: no row of their denoisers can be skipped
NOT_SKIPPED = {"Flux2KleinKV": "keeps rows of its denoiser for the next call"}

# --- schedulers -------------------------------------------------------------------------------------------------

SINGLE_GENERATOR = ("AmusedScheduler", "VQDiffusionScheduler", "BlockRefinementScheduler")  # draw for a whole batch
FLOW_SCHEDULERS = ("FlowMatch",)  # prefix: their timesteps are sigma times the number of training steps
ENDS_ON_TIMESTEP = ("SCMScheduler",)  # the last timestep is where they end, not one to evaluate
