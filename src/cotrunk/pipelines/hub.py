"""Find out where a model is, on disk or on the hub, before a library tries to load it."""

from pathlib import Path

from ..errors import CotrunkError, first_line


def is_here(model: str, file: str, embedded: str, owner: str | None = None) -> bool:
    """Return whether a model is on disk, as a folder or in the cache; False if it must be downloaded.

    Without this check the libraries retry an unreachable hub for a minute and then report a missing file.

    Args:
        model: a folder or a hub id.
        file: a file that every downloaded model of this kind has.
        embedded: a model of this kind that needs no download, for the error to recommend.
        owner: the hub account whose models may be given by name alone.

    Raises:
        CotrunkError: there is no such folder, and the hub has no such model or cannot be reached.
    """
    try:
        is_folder, is_file = model != "" and Path(model).is_dir(), Path(model).is_file()
    except OSError:  # the name is longer than a path can be
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
            f"The hub has no model {model!r}, or it is private: check its name, or log in with hf auth login."
        ) from None
    except Exception as error:  # no connection: the class depends on the version of huggingface_hub
        if isinstance(try_to_load_from_cache(hub_id, file), str):
            return True
        raise CotrunkError(
            f"There is no folder {model!r}, and the hub cannot be reached ({first_line(error)}): use {embedded}, "
            "a folder, or try again with a connection."
        ) from error
    return False
