"""The files of a report: run.json, and for a large run its lists in files of their own.

The run.json of a large run names them: {"file": "images.jsonl", "count": 100000}. They have one entry per line. Only
the first `count` lines belong to the report: a run that is killed while it writes longer lists leaves the earlier
run.json.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..files import read_entries, read_json, write_entries, write_text

NAME = "run.json"
FORMAT = 1
LARGE_FORMAT = 2  # of a large run
PROMPTS, GROUPS, IMAGES = "prompts.jsonl", "groups.jsonl", "images.jsonl"


def write_divided(folder: Path, report: Mapping[str, Any], groups: Sequence[Any], images: Sequence[Any]) -> None:
    """Write run.json and the files of its lists.

    Args:
        report: the JSON values of the report, without groups and images.
        groups, images: dataclasses of JSON values.

    Raises:
        CotrunkError: a file cannot be written.
    """
    encoded = lambda found: {each.name: getattr(found, each.name) for each in fields(found)}  # noqa: E731
    lists = {PROMPTS: report["job"]["prompts"], GROUPS: groups, IMAGES: images}
    for name, entries in lists.items():
        write_entries(folder / name, entries, encoded)
    place = {name: {"file": name, "count": len(entries)} for name, entries in lists.items()}
    job = {**report["job"], "prompts": place[PROMPTS]}
    content = {**report, "format": LARGE_FORMAT, "job": job, "images": place[IMAGES], "groups": place[GROUPS]}
    write_text(folder / NAME, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_report(folder: Path, *, with_images: bool = True) -> Any:
    """Return the JSON values of the report in the folder of a run, with its lists in their places.

    Args:
        with_images: whether the lists of groups and images are wanted, which take most of the time.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is damaged.
    """
    content = read_json(folder / NAME)
    if not isinstance(content, dict) or content.get("format") != LARGE_FORMAT:
        return content
    job = content.get("job")
    if not isinstance(job, dict):
        raise ValueError("it has no job")
    content |= {"format": FORMAT, "job": {**job, "prompts": _entries(folder, PROMPTS, job.get("prompts"))}}
    if with_images:
        content["groups"] = _entries(folder, GROUPS, content.get("groups"))
        content["images"] = _entries(folder, IMAGES, content.get("images"))
    return content


def _entries(folder: Path, name: str, place: Any) -> list[Any]:
    """Return the entries that run.json places in a file."""
    count = place.get("count") if isinstance(place, dict) and place.get("file") == name else None
    if type(count) is not int or count < 0:
        raise ValueError(f"it does not say how many entries {name} has")
    return read_entries(folder / name, count)
