"""Find out where a model is, on disk or on the hub, before a library tries to load it."""

from pathlib import Path
from typing import Any

from ..errors import CotrunkError, first_line


def is_here(
    model: str, *files: str, embedded: str, owner: str | None = None, what: str = "model", revision: str | None = None
) -> bool:
    """Return whether a model is on disk, as a folder or in the cache; False if it must be downloaded.

    Without this check the libraries retry an unreachable hub for a minute and then report a missing file.

    Args:
        model: a folder or a hub id.
        *files: every downloaded model of this kind has one of these files.
        embedded: what needs no download, for the error to recommend.
        owner: the hub account whose models may be given by name alone.
        what: what it is called: a model, a LoRA, ...
        revision: a branch, tag or commit on the hub; None for the newest.

    Raises:
        CotrunkError: there is no such folder, and the hub has no such model or cannot be reached.
    """
    if is_folder(model):
        return True
    if is_file(model):
        raise CotrunkError(f"{model} is a file: give the folder that save_pretrained wrote.")
    from huggingface_hub import HfApi, errors, try_to_load_from_cache

    hub_id = model if owner is None or "/" in model else f"{owner}/{model}"
    wanted: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        HfApi().model_info(hub_id, timeout=10, **wanted)
    except errors.HFValidationError:
        raise CotrunkError(
            f"There is no {what} {model!r}: use {embedded}, a folder, or a hub id such as owner/name."
        ) from None
    except errors.RevisionNotFoundError:
        raise CotrunkError(
            f"The {what} {model!r} has no revision {revision!r} on the hub: use a branch, a tag or a commit."
        ) from None
    except errors.RepositoryNotFoundError:
        raise CotrunkError(
            f"The hub has no {what} {model!r}, or it is private: check its name, or log in with hf auth login."
        ) from None
    except Exception as error:  # no connection: the class depends on the version of huggingface_hub
        if any(isinstance(try_to_load_from_cache(hub_id, file, **wanted), str) for file in files):
            return True
        with_revision = "" if revision is None else f" (revision {revision!r})"
        raise CotrunkError(
            f"There is no folder {model!r}{with_revision}, and the hub cannot be reached ({first_line(error)}): use "
            f"{embedded}, a folder, or try again with a connection."
        ) from error
    return False


def is_folder(name: str) -> bool:
    """Return whether this is the name of a folder."""
    try:
        return name != "" and Path(name).is_dir()
    except (OSError, ValueError):  # longer than a path can be, or with a null character
        return False


def is_file(name: str) -> bool:
    """Return whether this is the name of a file."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False
