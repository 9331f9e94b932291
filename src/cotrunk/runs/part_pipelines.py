"""The pipeline of each part of a job: the loaded one, in the class that its input images need, and with its LoRAs."""

from typing import Any

from ..errors import CotrunkError
from ..pipelines.compatibility import check_makes_images
from ..pipelines.image_inputs import (
    ImageInputs,
    check_inpaints,
    class_for,
    load_controlnets,
    pipeline_for,
)
from ..pipelines.lora import load_lora, remove_lora
from ..pipelines.offload import device_of
from ..pipelines.weighted_lora import loras_of
from .found import check_found
from .job import Job
from .row_inputs import inputs_of


def has_own_loras(job: Job) -> bool:
    """Return whether a prompt has LoRAs of its own."""
    return any(row.lora is not None for row in job.prompts)


class PartPipelines:
    """The pipelines of a job's parts. They share all weights, so only one of them may run at a time.

    Attributes:
        base: the pipeline as it was loaded.

    Args:
        pipe: the loaded pipeline of the job; without its LoRAs if prompts have their own.
        job: the whole job.
        denoiser: whether the pipeline has its denoiser; without it there are neither LoRAs nor ControlNets.

    Raises:
        CotrunkError: the pipeline does not make images, or a ControlNet cannot be loaded.
    """

    def __init__(self, pipe: Any, job: Job, *, denoiser: bool = True) -> None:
        check_makes_images(pipe)
        self.base, self._controlnets = pipe, list[Any]()
        self._switches_loras = denoiser and has_own_loras(job)
        self._loras: Any = ()
        self._changed: dict[str, Any] = {}
        self._made: dict[ImageInputs, Any] = {}
        if job.controlnet:
            self._controlnets = load_controlnets(job.controlnet, pipe.dtype, device_of(pipe))

    def of(self, job: Job) -> Any:
        """Return the pipeline of a part, with the part's LoRAs.

        Args:
            job: of the part.

        Raises:
            CotrunkError: no class of this pipeline takes the part's input images, or a LoRA does not fit.
        """
        if self._switches_loras and self._loras != job.lora:
            if self._loras:
                remove_lora(self.base, self._changed)
            self._loras = ()  # stays so if loading fails
            self._changed = load_lora(self.base, job.lora) if job.lora else {}
            self._loras = job.lora
        inputs = inputs_of(job, job.prompts[0]).kinds
        if inputs not in self._made:
            self._made[inputs] = pipeline_for(self.base, inputs, self._controlnets if inputs.control else ())
        return self._made[inputs]


def check_parts(job: Job) -> None:
    """Check, before anything is loaded, that the job's model, LoRAs and ControlNets exist and take its input images.

    Raises:
        CotrunkError: one of them does not exist, no class of the model takes the images, or prompts have LoRAs of their
            own while weights are offloaded.
    """
    check_found(job)
    if job.offload is not None and any(loras_of(row.lora) for row in job.prompts):
        raise CotrunkError(
            f"Prompts have LoRAs of their own, which cannot be exchanged with --offload {job.offload}: leave it out, "
            "or run each LoRA by itself with --lora."
        )
    kind = job.source.pipeline_class()
    if kind is not None:
        for inputs in {inputs_of(job, row).kinds for row in job.prompts}:
            found = class_for(kind, inputs, controlnet=bool(job.controlnet))
            if inputs.mask:
                check_inpaints(found, job.source.unet_channels())
