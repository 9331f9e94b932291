"""Check that a machine sees what a job names. It loads neither torch nor diffusers, so many machines can do it soon."""

from ..pipelines.loading import check_controlnet, check_model
from ..pipelines.weighted_lora import loras_of
from .job import Job


def check_found(job: Job) -> None:
    """Check that the model of a job, its LoRAs and its ControlNets exist, on disk or on the hub.

    Raises:
        CotrunkError: one of them does not.
    """
    own = [lora for row in job.prompts for lora in loras_of(row.lora)]
    check_model(job.source, dict.fromkeys([*job.lora, *own]))
    for name in job.controlnet:
        check_controlnet(name)
