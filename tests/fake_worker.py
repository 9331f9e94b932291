"""A worker in a thread, without torch: it forms a group of each bucket and writes tiny images."""

import io
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from cotrunk.service.api.link import WorkerLink
from cotrunk.service.channel import Channel, ClosedError
from cotrunk.service.shapes import ModelFacts, Rows
from cotrunk.service.store import ImageRow, Store

FACTS: ModelFacts = {
    "model": "mini",
    "pipeline": "FakePipeline",
    "width": 16,
    "height": 16,
    "multiple": 8,
    "steps": 30,
    "guidance_scale": 5.0,
    "negative_prompt": True,
    "device": "cpu",
    "dtype": "float32",
}


def rows(independent: float, computed: float) -> Rows:
    return {
        "independent": independent,
        "computed": computed,
        "sharing": independent - computed,
        "skipping": 0.0,
        "guidance": 0.0,
        "replay": 0.0,
    }


class FakeWorker:
    """A worker of a store. Its images are of one color that depends on prompt and seed.

    Args:
        store: with the jobs.
        folder: of the images.
        refuse: returns why an image fails; None for an image that is done.

    Attributes:
        link: what the API process knows about it.
        is_held: True leaves images waiting.
    """

    def __init__(
        self, store: Store, folder: Path, refuse: Callable[[ImageRow], str | None] = lambda image: None
    ) -> None:
        self.store, self.folder, self.refuse = store, folder, refuse
        self.link, self.is_held, self.name = WorkerLink(), False, uuid.uuid4().hex
        ours, theirs = socket.socketpair()
        self._channel, self._api = Channel(theirs), Channel(ours)
        self.link.connect(self._api)
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._work, self._listen)]
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "FakeWorker":
        self._channel.send("ready", **FACTS)
        self._channel.send("speed", rows_per_second=100.0, rows=0, seconds=0.0)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.link.connect(None)
        self._api.close()
        for thread in self._threads:
            thread.join(10)

    def _listen(self) -> None:
        """Do what the supervisor does in the API process."""
        try:
            while True:
                for message in self._api.receive(0.05):
                    self.link.take(message)
        except (ClosedError, ValueError, OSError):
            pass

    def _work(self) -> None:
        try:
            while True:
                self._channel.receive(0.02)
                if not self.is_held:
                    self._plans()
                    self._images()
        except ClosedError:
            pass

    def _images(self) -> None:
        buckets: dict[str, list[ImageRow]] = {}
        for image in self.store.waiting(1000):
            alone = image.id if image.request.group == "alone" else image.bucket
            buckets.setdefault(alone, []).append(image)
        for found in buckets.values():
            by_id = {image.id: image for image in found}
            for group in self.store.lease(self.name, [([*by_id], {"trees": []})], 60):
                self._channel.send("event")
                for image in group.images:
                    self._image(by_id[image], group.id, [other for other in group.images if other != image])

    def _image(self, image: ImageRow, group: str, others: list[str]) -> None:
        if reason := self.refuse(image):
            self.store.fail(self.name, image.id, reason)
            self._channel.send("event")
            return
        asked, output = image.request.settings, image.request.settings["output"]
        size = asked["width"] or 16, asked["height"] or 16
        color = hash((image.request.prompt, image.request.seed)) % 2**24
        drawn = Image.new("RGB", size, (color >> 16, color >> 8 & 255, color & 255))
        for index in range(output["partials"]):
            name = f"{image.id}.partial-{index}.png"
            drawn.save(self.folder / name)
            self.store.event(image.job, "partial", {"image": image.id, "index": index, "step": index, "file": name})
            self._channel.send("event")
        buffer = io.BytesIO()
        drawn.save(buffer, format=output["format"].upper())
        name = f"{image.id}.{output['format']}"
        (self.folder / name).write_bytes(buffer.getvalue())
        steps = asked["steps"] or 30
        trunk = {"id": "trunk_1", "seed": 5, "steps": 6, "branch": 6, "hit": True} if others else None
        result: dict[str, Any] = {
            "file": name,
            "bytes": len(buffer.getvalue()),
            "width": size[0],
            "height": size[1],
            "seed": image.request.seed,
            "steps": steps,
            "guidance_scale": asked["guidance_scale"],
            "group": group,
            "shared_with": others,
            "rows": rows(2.0 * steps, (1.5 if others else 2.0) * steps),
            "trunk": trunk,
            "waited": max(0.0, time.time() - image.accepted),
            "seconds": 0.01,
        }
        self.store.finish(self.name, image.id, result)
        self._channel.send("event")

    def _plans(self) -> None:
        for plan in self.store.waiting_plans():
            if not self.store.start_plan(plan.job.id):
                continue
            count = len(plan.requests)
            group = {
                "images": [*range(count)],
                "tree": {"stop": 6, "images": [*range(count)]},
                "similarity": 0.9,
                "steps_shared": 6,
                "rows": rows(60.0 * count, 50.0 * count),
            }
            result = {"groups": [group], "steps": 30, "rows": rows(60.0 * count, 50.0 * count), "seconds": 1.5}
            self.store.finish_plan(plan.job.id, result)
            self._channel.send("event")
