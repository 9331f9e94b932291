"""How trunks are sampled where the user leaves it to the pipeline: own noise and no guidance, where both work."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..pipelines.automatic import why_guided, why_not_own_noise
from ..settings import Sharing


def chosen(pipe: Any, arguments: Mapping[str, Any], rows: int, sharing: Sharing) -> tuple[Sharing, str | None]:
    """Return the sharing with a value in place of each "auto", and a sentence if one of them is a second choice.

    Own noise without guidance keeps the most variety (docs/sharing.md). Common noise goes with full guidance, as
    published.

    Args:
        pipe: the pipeline; it may lack its denoiser.
        arguments: of the call.
        rows: of one evaluation of one image.
        sharing: as the user gave it.
    """
    noise, guidance = sharing.noise, sharing.trunk_guidance
    no_own = why_not_own_noise(pipe) if noise == "auto" else None
    if noise == "auto":
        noise = "own" if no_own is None else "common"
    guided = why_guided(pipe, arguments, rows) if guidance == "auto" and noise == "own" else None
    if guidance == "auto":
        guidance = 0.0 if noise == "own" and guided is None else 1.0
    sentence = None
    if no_own is not None:
        sentence = f"The images of a group start from one noise, because {no_own}."
    elif guided is not None:
        sentence = f"Trunks have full guidance, because {guided}."
    return replace(sharing, noise=noise, trunk_guidance=guidance), sentence
