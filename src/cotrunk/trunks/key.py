"""The key of a prompt's trunks: a digest of everything apart from the recipe that can change a row of a trunk.

Trunks under different keys never match. Arguments that cannot be read are refused: such prompts have no key, and their
trunks are never stored.
"""

import inspect
from typing import Any

from ..errors import CotrunkError
from ..pipelines.batch_compatibility import runs_apart, text_lengths
from ..pipelines.cost import argument
from ..planning.request import Request
from ..planning.trunk_recipe import Precision
from ..settings import Settings, Sharing
from .digest import digest_of
from .index import FORMAT
from .numerics import numerics
from .pipeline_state import pipeline_digest

# arguments that are set by cotrunk, are prompts, or say what a finished image becomes
WITHOUT_EFFECT = ("prompt", "generator", "num_images_per_prompt", "return_dict", "output_type")
OF_ROWS = ("skipping", "guidance_interval")  # the settings that count; steps are among the arguments


def trunk_keys(
    request: Request,
    settings: Settings,
    sharing: Sharing,
    precision: Precision = "float16",
    pipeline: str | None = None,
) -> list[str]:
    """Return the key of each prompt.

    Args:
        request: the prompts and the arguments of the call.
        settings: of the run, without "auto". Skipping and the guidance interval count, but not how much runs at once.
        sharing: with noise and trunk guidance as `trunk_choice` chose them. Its threshold, its limits and its branch
            points do not count: they decide which prompts use a trunk, and until when.
        precision: of new trunks.
        pipeline: the pipeline's digest, where it is known; None computes it.

    Raises:
        CotrunkError: something cannot be read, or there are no texts from which a trunk could be computed again.
    """
    if request.prompts is None or request.has_embeddings:
        raise CotrunkError(
            "Trunks are not stored: prompt_embeds hold no texts from which a trunk could be computed again. Give "
            "prompts, or run without a trunk cache."
        )
    arguments = request.arguments
    if why := runs_apart(request.pipe, arguments.arguments):
        raise CotrunkError(f"Trunks are not stored: {why}. Run without a trunk cache.")
    # what the call takes by itself, which is not what the pipeline states for the command line
    parameters = inspect.signature(request.pipe.__call__).parameters
    defaults = _of_rows({name: argument(request.pipe, {}, name) for name in parameters})
    whole = {
        "format": FORMAT,
        "pipeline": pipeline_digest(request.pipe) if pipeline is None else pipeline,
        "trunks": [sharing.noise, sharing.trunk_guidance, sharing.encoder],
        "settings": {name: value for name, value in settings.to_json().items() if name in OF_ROWS},
        "precision": precision,
        "numerics": numerics(request.pipe),
    }
    base = digest_of("the settings", whole)
    common = {name: digest_of(name, _one(value)) for name, value in (defaults | _of_rows(arguments.common)).items()}
    lengths = text_lengths(request.pipe, arguments)  # prompts of other lengths cannot be in one trunk call
    keys = []
    for prompt in range(arguments.prompts):
        values = arguments.of([prompt])
        own = {name: digest_of(name, _one(values[name])) for name in _of_rows(arguments.own)}
        keys.append(digest_of("the prompt", [base, common | own, lengths[prompt]]))
    return keys


def _of_rows(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that can change a row."""
    return {name: value for name, value in arguments.items() if name not in WITHOUT_EFFECT}


def _one(value: Any) -> Any:
    """Return the entry of a list of one: an image for one prompt may be given with or without a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value
