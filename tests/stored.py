"""Jobs in a store, for the tests of the service."""

from cotrunk.service.store import ImageRequest, Store


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        return self.time


SETTINGS = {"model": "mini", "steps": 20}


def requests(*prompts: str, rows: int = 40, **more: object) -> list[ImageRequest]:
    return [ImageRequest(prompt, SETTINGS, rows=rows, **more) for prompt in prompts]  # type: ignore[arg-type]


def accept(store: Store, *prompts: str, owner: str = "ann", **more: object) -> str:
    return store.accept(owner, "images", requests(*prompts), body={"prompts": prompts}, **more)[0].id  # type: ignore[arg-type]


def run(store: Store, worker: str = "w1") -> list[str]:
    """Start everything that waits as one group, and return the ids of the images."""
    ids = [image.id for image in store.waiting()]
    return [image for group in store.lease(worker, [(ids, {"seed": 1})], 10) for image in group.images]
