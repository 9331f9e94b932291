"""A pipeline to examine, and the inputs that its prompts bring."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# What the prompts come with: embeddings alone; texts; one input image for all; an input image per prompt.
Variant = Literal["embeds", "texts", "one", "own"]

# Prompts 0 and 1 bring equal input images where each prompt has its own, prompt 2 another one.
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
        denoisers: the components that run at every step and hear the prompts.
        fast: whether `make test` runs it; the others are marked slow.
        steps: inference steps of a call, if its inputs do not say otherwise.
        skipping_steps: those of a call that skips.
        output_type: what the pipeline gives back; latents where it can.
        field: where its output holds the images.
        only_texts: whether prompts are texts in every variant.
        company: which prompts the pipeline can run together: any; texts of equal lengths, where its denoiser knows no
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
    company: Literal["any", "equal lengths", "none"] = "any"
    note: str = ""

    @property
    def notes(self) -> list[str]:
        """Where the case is not as the others."""
        company = {
            "any": "",
            "equal lengths": "Texts of different lengths do not share, as the denoiser knows no mask.",
            "none": "The pipeline takes one prompt per call, so nothing is shared.",
        }
        return [note for note in (company[self.company], self.note) if note]

    def speaks(self, variant: Variant) -> bool:
        """Whether prompts are texts."""
        return self.only_texts or variant == "texts"
