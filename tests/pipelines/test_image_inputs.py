"""Which pipeline class takes which input images, and pipelines of these classes."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from building_blocks import controlnet
from tiny import pixart, sd, sd_with_text

from cotrunk import CotrunkError
from cotrunk.pipelines.image_inputs import (
    TEXT_ALONE,
    ImageInputs,
    class_for,
    control_argument,
    load_controlnets,
    pipeline_for,
)

IMAGE = ImageInputs(image=True)
MASK = ImageInputs(image=True, mask=True)
CONTROL = ImageInputs(control=True)
ALL = ImageInputs(image=True, mask=True, control=True)


@pytest.mark.parametrize(
    ("kind", "inputs", "controlnet", "expected"),
    [
        ("StableDiffusionPipeline", TEXT_ALONE, False, "StableDiffusionPipeline"),
        ("StableDiffusionPipeline", IMAGE, False, "StableDiffusionImg2ImgPipeline"),
        ("StableDiffusionPipeline", MASK, False, "StableDiffusionInpaintPipeline"),
        ("StableDiffusionPipeline", CONTROL, True, "StableDiffusionControlNetPipeline"),
        ("StableDiffusionPipeline", ALL, True, "StableDiffusionControlNetInpaintPipeline"),
        ("StableDiffusionXLPipeline", IMAGE, False, "StableDiffusionXLImg2ImgPipeline"),
        (
            "StableDiffusionXLPipeline",
            ImageInputs(image=True, control=True),
            True,
            "StableDiffusionXLControlNetImg2ImgPipeline",
        ),
        ("StableDiffusion3Pipeline", MASK, False, "StableDiffusion3InpaintPipeline"),
        ("FluxPipeline", ImageInputs(image=True, strength=True), False, "FluxImg2ImgPipeline"),
        ("FluxPipeline", CONTROL, True, "FluxControlNetPipeline"),
        ("FluxControlPipeline", CONTROL, False, "FluxControlPipeline"),
        ("FluxControlPipeline", ImageInputs(image=True, control=True), False, "FluxControlImg2ImgPipeline"),
        ("FluxKontextPipeline", TEXT_ALONE, False, "FluxKontextPipeline"),
        ("FluxKontextPipeline", IMAGE, False, "FluxKontextPipeline"),
        ("StableDiffusionImg2ImgPipeline", IMAGE, False, "StableDiffusionImg2ImgPipeline"),
        ("StableDiffusionImg2ImgPipeline", MASK, False, "StableDiffusionInpaintPipeline"),
        ("StableDiffusionControlNetPipeline", CONTROL, False, "StableDiffusionControlNetPipeline"),
        ("StableDiffusionControlNetPipeline", ALL, False, "StableDiffusionControlNetInpaintPipeline"),
    ],
)
def test_the_class_follows_from_the_inputs(kind: str, inputs: ImageInputs, controlnet: bool, expected: str) -> None:
    assert class_for(getattr(diffusers, kind), inputs, controlnet=controlnet).__name__ == expected


@pytest.mark.parametrize(
    ("kind", "inputs", "controlnet", "message"),
    [
        ("PixArtSigmaPipeline", IMAGE, False, "diffusers has no image-to-image pipeline for the model of PixArtSigma"),
        ("PixArtSigmaPipeline", MASK, False, "diffusers has no inpainting pipeline for the model of PixArtSigma"),
        ("PixArtSigmaPipeline", CONTROL, True, "no text-to-image pipeline with a ControlNet for the model of PixArt"),
        ("StableDiffusionPipeline", CONTROL, False, "takes no control image: name its ControlNet with --controlnet"),
        ("StableDiffusionImg2ImgPipeline", TEXT_ALONE, False, r"needs an input image \(image\): give --image"),
        ("StableDiffusionInpaintPipeline", IMAGE, False, r"needs an input image \(mask_image\): give --mask-image"),
        ("StableDiffusionControlNetPipeline", TEXT_ALONE, False, r"\(image\): give --control-image"),
        ("FluxControlPipeline", TEXT_ALONE, False, r"\(control_image\): give --control-image"),
        ("FluxKontextPipeline", ImageInputs(image=True, strength=True), False, "has no strength: leave --strength out"),
    ],
)
def test_inputs_that_a_model_does_not_take(kind: str, inputs: ImageInputs, controlnet: bool, message: str) -> None:
    with pytest.raises(CotrunkError, match=message):
        class_for(getattr(diffusers, kind), inputs, controlnet=controlnet)


@pytest.mark.parametrize("inputs", [TEXT_ALONE, IMAGE, MASK, CONTROL, ALL, ImageInputs(image=True, control=True)])
def test_a_pipeline_of_that_class_has_the_same_parts(inputs: ImageInputs) -> None:
    pipe, nets = sd_with_text().pipe, [controlnet()] if inputs.control else []
    made = pipeline_for(pipe, inputs, nets)
    assert type(made) is class_for(type(pipe), inputs, controlnet=inputs.control)
    assert all(made.components[name] is part for name, part in pipe.components.items() if part is not None)
    assert (made is pipe) == (inputs == TEXT_ALONE)
    if inputs.control:
        assert made.controlnet is nets[0]


def test_several_controlnets_are_one() -> None:
    nets = [controlnet(seed=1), controlnet(seed=2)]
    made = pipeline_for(sd_with_text().pipe, CONTROL, nets)
    assert list(made.controlnet.nets) == nets
    assert control_argument(type(made)) == "image"
    assert control_argument(diffusers.StableDiffusionControlNetImg2ImgPipeline) == "control_image"
    assert control_argument(diffusers.StableDiffusionImg2ImgPipeline) is None


def test_precision_is_kept() -> None:
    pipe = sd().pipe.to(dtype=torch.bfloat16)
    assert pipeline_for(pipe, IMAGE).unet.dtype == torch.bfloat16


def test_latents_that_inpainting_does_not_take() -> None:
    pipe = sd_with_text().pipe
    pipe.unet.register_to_config(in_channels=16)
    with pytest.raises(
        CotrunkError, match="StableDiffusionInpaintPipeline takes latents of 4 channels, and this model"
    ):
        pipeline_for(pipe, MASK)


def test_a_controlnet_is_loaded_from_a_folder(tmp_path: Path) -> None:
    controlnet().save_pretrained(tmp_path / "net")
    (net,) = load_controlnets([str(tmp_path / "net")], torch.bfloat16, "cpu")
    assert isinstance(net, diffusers.ControlNetModel)
    assert net.dtype == torch.bfloat16
    pixart().pipe.transformer.save_pretrained(tmp_path / "transformer")
    (tmp_path / "empty").mkdir()
    wrong: list[tuple[Any, str]] = [
        (tmp_path / "transformer", "is a PixArtTransformer2DModel, not a ControlNet: choose another --controlnet"),
        (tmp_path / "empty", "cannot be loaded as a ControlNet"),
        ("no such net", "There is no ControlNet 'no such net'"),
    ]
    for name, message in wrong:
        with pytest.raises(CotrunkError, match=message):
            load_controlnets([str(name)], torch.float32, "cpu")
