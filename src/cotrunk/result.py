"""What `generate` returns."""

from dataclasses import dataclass
from typing import Any

from .drawing.notebook import Drawing, images_of, result_html, trees_drawing
from .planning.plan import Cost, Plan
from .planning.tree import counted


@dataclass(frozen=True, repr=False)
class Result:
    """Everything that a run made; `result.images` (or `.audios`, `.frames`) are the pipeline's, in prompt order.

    Attributes:
        output: the pipeline's own output object, over all images.
        plan: what was shared. `plan.save(path)` keeps it, and `generate(pipe, plan=...)` gives the same images again.
        cost: the denoiser rows that were counted: `cost.used`, `cost.independent`, `cost.saving`.
        spared: rows not computed, by reason: "sharing", "guidance", "skipping", "replay" (of stored trunks).
        made: indices of the images in `output`, in its order: all of them, unless a callback interrupted the run.
        failed: indices of images whose latents or decoded values held a NaN or an infinity, or that were interrupted
            before their last step; do not use them.
        flagged: indices of images that the pipeline's own safety checker replaced by black ones.
        seconds: "embed", "denoise", "decode", "total".
    """

    output: Any
    plan: Plan
    cost: Cost
    spared: dict[str, int]
    made: tuple[int, ...]
    failed: tuple[int, ...]
    flagged: tuple[int, ...]
    seconds: dict[str, float]

    def __repr__(self) -> str:
        return f"<Result: {counted(len(self.made), 'image')}, {self.cost}, {self.seconds['total']:.3g} s>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the saving, and each image with its prompt."""
        seconds = self.seconds["total"]
        return result_html(self.output, self.plan, self.cost, self.spared, seconds, self.made, self._lost())

    def trees(self) -> Drawing:
        """Draw the groups: which images shared their steps, and where they branched. A notebook shows the drawing."""
        return trees_drawing(self.plan, images_of(self.output, self.made), self._lost())

    def _lost(self) -> dict[int, str]:
        """Return why images cannot be used, by index."""
        return {**dict.fromkeys(self.flagged, "flagged"), **dict.fromkeys(self.failed, "failed")}

    def __getattr__(self, name: str) -> Any:
        output = vars(self).get("output", {})  # not there yet while a copy is being made
        if not name.startswith("_") and name in output:
            return output[name]
        raise AttributeError(f"the output of this pipeline has no {name!r}, only {', '.join(output)}")
