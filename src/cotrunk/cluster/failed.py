"""The record of groups that could not be generated: one file each in `failed/`, with the traceback."""

import json

from ..planning.tree import Branch
from ..runs.report_figures import FailedGroup
from ..storage.files import StoredFiles
from .waves import Recipe

FOLDER = "failed"
DIED = "The process that generated this group ended without an exception: look for a lack of memory in the logs of Ray."


def write(store: StoredFiles, wave: str, recipe: Recipe, tree: Branch, group: int, trace: str) -> str:
    """Write the record of a group, and return its name.

    Args:
        store: of the run.
        wave: its id.
        recipe: of the wave.
        tree: the group.
        group: its number in the run.
        trace: the traceback of its last failure.
    """
    name = f"{FOLDER}/{wave}-{group}.json"
    data = {
        "wave": wave,
        "group": group,
        "images": [recipe.numbers[image] for image in tree.images],
        "prompts": [recipe.plan.prompts[recipe.plan.prompt_of(image)] for image in tree.images],
        "error": next((line for line in reversed(trace.strip().splitlines()) if line.strip()), ""),
        "traceback": trace,
    }
    store.put(name, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
    return name


def read(store: StoredFiles, name: str) -> FailedGroup:
    """Return what the report says about a group; without its images if the record was removed.

    Args:
        store: of the run.
        name: of the record.
    """
    data = json.loads(store.get(name) or b"{}")
    return FailedGroup(data.get("group", 0), tuple(data.get("images", ())), data.get("error", ""), name)


def names(store: StoredFiles) -> list[str]:
    """Return the names of the records that are there."""
    return [name for name in store.names(FOLDER) if name.endswith(".json")]


def clear(store: StoredFiles) -> None:
    """Remove the records of an earlier attempt, whose groups are tried again now."""
    for name in names(store):
        store.remove(name)
