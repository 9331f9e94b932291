"""Which class of a pipeline takes which input images, and the pipeline of that class.

The classes of one model share their parts. diffusers' tables for `AutoPipeline` say which they are: Stable Diffusion
from text, from an image, with a mask, and each of them with ControlNets.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers

from ..errors import CotrunkError, first_line
from .class_tables import OPTIONAL_IMAGE, REFERENCES
from .compatibility import check_makes_images
from .loading import check_controlnet
from .own_defaults import STATED, own_default

INPAINTED = (4, 9)  # input channels of the UNets that diffusers inpaints with
_WITH_CONTROLNET = "-controlnet"  # ends the names of families with ControlNets


@dataclass(frozen=True)
class ImageInputs:
    """Which input images a call gets, in addition to its prompts."""

    image: bool = False
    mask: bool = False
    control: bool = False
    strength: bool = False

    @property
    def task(self) -> str:
        return "mask" if self.mask else "image" if self.image else "text"


TEXT_ALONE = ImageInputs()


def needs_call_per_image(pipe: Any) -> bool:
    """Return whether prompts with different images need calls of their own."""
    return type(pipe).__name__ in REFERENCES  # to these, a list of images belongs to all prompts


def control_argument(kind: type) -> str | None:
    """Return the argument of a pipeline class that takes control images; None if it takes none."""
    parameters = inspect.signature(kind.__call__).parameters
    if "control_image" in parameters:
        return "control_image"
    return "image" if "controlnet" in inspect.signature(kind).parameters and "image" in parameters else None


def class_for(kind: type, inputs: ImageInputs, *, controlnet: bool) -> type:
    """Return the class of the same model family that takes these inputs.

    Args:
        kind: the class of the model as it is stored.
        controlnet: whether ControlNets are given in addition to the model.

    Raises:
        CotrunkError: there is none, or the class needs another input.
    """
    found = _related(kind, inputs, controlnet=controlnet)
    parameters, control = inspect.signature(found.__call__).parameters, control_argument(found)
    as_control = ("control-image", inputs.control)
    needed = {"image": ("image", inputs.image), "mask_image": ("mask-image", inputs.mask)}
    needed |= {"control_image": as_control} | ({"image": as_control} if control == "image" else {})
    for argument, (option, is_given) in needed.items():
        if argument in parameters and not is_given and not found.__name__.startswith(OPTIONAL_IMAGE):
            raise CotrunkError(f"{found.__name__} needs an input image ({argument}): give --{option}.")
    if inputs.control and control is None:
        raise CotrunkError(f"{found.__name__} takes no control image: name its ControlNet with --controlnet.")
    if inputs.strength and "strength" not in parameters:
        raise CotrunkError(f"{found.__name__} has no strength: leave --strength out.")
    return found


def check_text_to_image(pipe: Any) -> None:
    """Check that a pipeline makes images from text alone, because tuning and evaluation pass nothing else.

    Raises:
        CotrunkError: it makes something else, or needs an input image.
    """
    check_makes_images(pipe)
    try:
        class_for(type(pipe), TEXT_ALONE, controlnet=False)
    except CotrunkError as error:
        need = str(error).partition(":")[0]
        raise CotrunkError(f"{need}, and this command passes texts alone: choose another model.") from None


def _tasks() -> Mapping[str, tuple[str, Mapping[str, type]]]:
    """Return, for the task of a class, what users call it and diffusers' table: name of a model family -> its class."""
    from diffusers.pipelines import auto_pipeline  # a second to import

    return {
        "text": ("text-to-image", auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING),
        "image": ("image-to-image", auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING),
        "mask": ("inpainting", auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING),
    }


def _related(kind: type, inputs: ImageInputs, *, controlnet: bool) -> type:
    parameters = inspect.signature(kind.__call__).parameters
    if inputs.task == "text" and not controlnet:
        return kind
    takes_image = "image" in parameters and control_argument(kind) != "image"
    is_suitable = {"text": True, "image": takes_image, "mask": "mask_image" in parameters}[inputs.task]
    tasks = _tasks()
    family = next(
        (name for _, table in tasks.values() for name, own in table.items() if own.__name__ == kind.__name__), ""
    )
    if is_suitable and (not controlnet or family.endswith(_WITH_CONTROLNET)):
        return kind
    if controlnet and not family.endswith(_WITH_CONTROLNET):
        family += _WITH_CONTROLNET
    what, table = tasks[inputs.task]
    if family not in table:
        with_nets = " with a ControlNet" if controlnet else ""
        raise CotrunkError(
            f"diffusers has no {what} pipeline{with_nets} for the model of {kind.__name__}: choose another model, or "
            "leave the input images out."
        )
    return table[family]


def pipeline_for(pipe: Any, inputs: ImageInputs, controlnets: Sequence[Any] = ()) -> Any:
    """Return the pipeline for these inputs: `pipe` itself, or one of another class with the same parts.

    Raises:
        CotrunkError: as `class_for`.
    """
    kind = class_for(type(pipe), inputs, controlnet=bool(controlnets))
    if kind is type(pipe) and not controlnets:
        return pipe
    if inputs.mask:
        check_inpaints(kind, getattr(getattr(getattr(pipe, "unet", None), "config", None), "in_channels", None))
    parts: dict[str, Any] = {}
    if controlnets:
        parts["controlnet"] = controlnets[0] if len(controlnets) == 1 else list(controlnets)
    try:
        names = {"text": "Text2Image", "image": "Image2Image", "mask": "Inpainting"}
        made = getattr(diffusers, f"AutoPipelineFor{names[inputs.task]}").from_pipe(pipe, **parts)
    except Exception as error:  # diffusers raises many types for parts that do not fit
        raise CotrunkError(
            f"{type(pipe).__name__} cannot become a {kind.__name__} ({first_line(error)}): choose another model."
        ) from error
    made.set_progress_bar_config(disable=True)
    # the model's own steps and guidance, not those of the other class
    own = {name: own_default(pipe, name) for name in ("num_inference_steps", "guidance_scale")}
    setattr(made, STATED, {name: value for name, value in own.items() if value is not None})
    return made


def check_inpaints(kind: type, channels: int | None) -> None:
    """Check that diffusers can inpaint with a UNet.

    Args:
        kind: the class of the inpainting pipeline.
        channels: the input channels of the UNet; None if there is no UNet.

    Raises:
        CotrunkError: it cannot.
    """
    if channels not in (None, *INPAINTED):
        raise CotrunkError(
            f"{kind.__name__} takes latents of {INPAINTED[0]} channels, and this model has {channels}: leave "
            "--mask-image out, or choose another model."
        )


def load_controlnets(names: Sequence[str], dtype: Any, device: str) -> list[Any]:
    """Load ControlNets from folders or the hub.

    Raises:
        CotrunkError: one does not exist, or is not a ControlNet.
    """
    loaded = []
    for name in names:
        local = check_controlnet(name)
        try:
            net = diffusers.AutoModel.from_pretrained(name, torch_dtype=dtype, local_files_only=local)
        except Exception as error:  # the libraries raise many types for a folder with other contents
            raise CotrunkError(
                f"{name} cannot be loaded as a ControlNet ({first_line(error)}): choose another --controlnet."
            ) from error
        if "ControlNet" not in type(net).__name__:
            raise CotrunkError(f"{name} is a {type(net).__name__}, not a ControlNet: choose another --controlnet.")
        loaded.append(net.to(device).eval())
    return loaded
