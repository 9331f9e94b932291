"""Whether a model is here, on the hub, or nowhere: asked before a library tries to load it."""

from pathlib import Path

from ..errors import CotrunkError


def is_here(model: str, file: str, embedded: str, owner: str | None = None) -> bool:
    """Whether a model is a folder or was downloaded before; False if it is to be downloaded, which may work.

    The libraries alone would ask a hub that does not answer again and again for a minute, then name a missing file.

    Args:
        file: one that every downloaded model of this kind has.
        embedded: the model of this kind that needs no download, for the remedy.
        owner: whose models may go by their name alone on the hub.

    Raises:
        CotrunkError: no folder, and no such model on the hub, or no hub.
    """
    try:
        is_folder, is_file = model != "" and Path(model).is_dir(), Path(model).is_file()
    except OSError:  # longer than a path can be
        is_folder = is_file = False
    if is_folder:
        return True
    if is_file:
        raise CotrunkError(f"{model} is a file: give the folder that save_pretrained wrote.")
    from huggingface_hub import HfApi, errors, try_to_load_from_cache

    hub_id = model if owner is None or "/" in model else f"{owner}/{model}"
    try:
        HfApi().model_info(hub_id, timeout=10)
    except errors.HFValidationError:
        raise CotrunkError(
            f"There is no model {model!r}: use {embedded}, a folder, or a hub id such as owner/name."
        ) from None
    except errors.RepositoryNotFoundError:
        raise CotrunkError(
            f"The hub shows no model {model!r}: check its name; if it is private, log in with hf auth login."
        ) from None
    except Exception as error:  # no connection: other classes in every version of huggingface_hub
        if isinstance(try_to_load_from_cache(hub_id, file), str):
            return True
        raise CotrunkError(
            f"There is no folder {model!r}, and the hub cannot be asked for it ({first_line(error)}): use {embedded}, "
            "a folder, or try again with a connection."
        ) from error
    return False


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
