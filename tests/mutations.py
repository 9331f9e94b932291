"""JSON files as damage, other programs and other versions leave them: with one value changed."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

DEEP: Any = 1
for _ in range(300):
    DEEP = [DEEP]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 10**5, 10**30, -(10**30), 2**63, 10**3000, 0.5, 1.0, -0.5, 1e300, 1e-300),
    *(float("inf"), float("-inf"), float("nan"), "", "x", "1", "\x1b[2J", "\ud800", "<i>", "../../x", "a" * 5000),
    *([], [0], [[0]], [None], {}, {"a": 1}, DEEP),
]
REMOVED = object()


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values in a document."""
    if path:
        yield path
    if isinstance(document, list):
        document = dict(enumerate(document))
    for key, value in document.items() if isinstance(document, dict) else ():
        yield from places(value, (*path, key))


def mutants(document: Any, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield what was changed, and the text of the changed file."""
    draw, where = random.Random(seed), list(places(document))
    for _ in range(count):
        changed, path = copy.deepcopy(document), draw.choice(where)
        value = draw.choice([*VALUES, REMOVED])
        owner = changed
        for key in path[:-1]:
            owner = owner[key]
        if value is REMOVED:
            del owner[path[-1]]
        elif draw.random() < 0.1 and isinstance(owner, list):
            owner.append(value)
        elif draw.random() < 0.1 and isinstance(owner, dict):
            owner["another"] = value
        else:
            owner[path[-1]] = value
        yield f"{path}: {str(value)[:40]}", json.dumps(changed)
    whole = json.dumps(document)
    for text in (
        "",
        "1",
        "[]",
        "{}",
        "null",
        '"x"',
        "[" * 100_000,
        '{"a":' * 100_000,
        whole[: len(whole) // 2],
        "\0" * 100,
    ):
        yield f"all: {text[:20]}", text
