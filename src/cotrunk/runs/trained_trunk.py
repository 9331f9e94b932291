"""Whether a run samples its trunks as its LoRAs were trained for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import read_json
from ..pipelines.weighted_lora import WeightedLora
from ..planning.plan import Plan


def other_trunk(loras: Sequence[WeightedLora], plan: Plan) -> str | None:
    """Return a sentence about the first LoRA that was trained for trunks with another noise; None if there is none.

    Only the folders that `cotrunk train` wrote say what a LoRA was trained for.
    """
    if plan.sharing is None or all(len(tree.images) == 1 for tree in plan.trees):
        return None
    for lora in loras:
        trained = _trained_noise(Path(lora.name))
        if trained is not None and trained != plan.sharing.noise:
            return (
                f"{lora.name} was trained for trunks with {trained} noise, and this run has {plan.sharing.noise} "
                f"noise: use --noise {trained} with it."
            )
    return None


def _trained_noise(folder: Path) -> str | None:
    """Return the noise of the trunks that a LoRA was trained for; None if nothing says so."""
    try:
        loss: Any = read_json(folder / "settings.json")["loss"]
        return loss["noise"] if loss["objective"] == "sage" and loss["noise"] in ("own", "common") else None
    except (OSError, KeyError, TypeError, ValueError):  # not a folder that cotrunk train wrote
        return None
