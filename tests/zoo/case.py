"""A pipeline to examine, and the inputs of its prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# The inputs of a call: embeddings alone; texts; one input image for all prompts; one input image per prompt.
Variant = Literal["embeds", "texts", "one", "own"]

# With one input image per prompt, prompts 0 and 1 have equal ones, and prompt 2 another one.
OWN_IMAGE = (0, 0, 1)
PROMPTS = tuple(range(len(OWN_IMAGE)))

WITH_IMAGES: tuple[Variant, ...] = ("one", "own")


@dataclass(frozen=True)
class Case:
    """One pipeline class on random weights.

    Attributes:
        pipeline: the name of the class.
        build: makes the pipeline.
        inputs: (prompts, variant) -> the arguments of a call for these prompts, by their numbers.
        variants: the kinds of inputs to try.
        masks: arguments of a denoiser that tell which text tokens there are (masks, or numbers of tokens), and the
            argument that holds the tokens.
        denoisers: the components that run at every step and depend on the prompts.
        fast: whether `make test` runs it; the others are marked slow.
        steps: inference steps of a call, unless its inputs set them.
        skipping_steps: inference steps of a call that skips.
        output_type: what the pipeline returns; latents if it can.
        field: the field of its output that holds the images.
        only_texts: whether prompts are texts in every variant.
        together: which prompts the pipeline can run together: any; texts of equal lengths, where its denoiser knows no
            mask; or none.
        note: what a reader of the document should know.
    """

    pipeline: str
    build: Callable[[], Any]
    inputs: Callable[[Sequence[int], Variant], dict[str, Any]]
    variants: tuple[Variant, ...] = ("embeds",)
    masks: Mapping[str, str] = field(default_factory=dict)
    denoisers: tuple[str, ...] = ("unet", "transformer", "transformer_2", "controlnet")
    fast: bool = False
    steps: int = 4
    skipping_steps: int = 8
    output_type: str = "latent"
    field: str = "images"
    only_texts: bool = False
    together: Literal["any", "equal lengths", "none"] = "any"
    note: str = ""

    @property
    def notes(self) -> list[str]:
        """Return in which ways the case differs from the others."""
        limits = {
            "any": "",
            "equal lengths": "Texts of different lengths do not share, as the denoiser knows no mask.",
            "none": "The pipeline takes one prompt per call, so nothing is shared.",
        }
        return [note for note in (limits[self.together], self.note) if note]

    def speaks(self, variant: Variant) -> bool:
        """Return whether prompts are texts."""
        return self.only_texts or variant == "texts"
