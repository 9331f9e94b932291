"""The service in a thread of a test, with a worker that does what the test says: for tests of the page."""

import asyncio
import io
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image, ImageDraw
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cotrunk.service.api.app import make_app
from cotrunk.service.api.limits import Limits
from cotrunk.service.api.link import WorkerLink
from cotrunk.service.api.signing import signer_in
from cotrunk.service.channel import Message
from cotrunk.service.images import ImageFiles
from cotrunk.service.shapes import ModelFacts, PlannedGroup, Rows
from cotrunk.service.store import Group, ImageRow, Job, Store

STEPS, BRANCH, SIDE = 20, 8, 128
FACTS: ModelFacts = {
    "model": "mini",
    "pipeline": "FakePipeline",
    "width": SIDE,
    "height": SIDE,
    "multiple": 8,
    "steps": STEPS,
    "guidance_scale": 5.0,
    "negative_prompt": True,
    "device": "cpu",
    "dtype": "float32",
}
WORKER, LEASE = "worker", 600.0
FAILURE = "The worker stopped three times while it generated this image: try it alone."


def rows_of(members: int, images: int = 1) -> Rows:
    """Return the rows of images of groups with so many members."""
    saved = images * 2.0 * BRANCH * (1 - 1 / members)
    independent = images * 2.0 * STEPS
    rest = {"skipping": 0.0, "guidance": 0.0, "replay": 0.0}
    return {"independent": independent, "computed": independent - saved, "sharing": saved, **rest}  # type: ignore[typeddict-item]


def tree_of(images: list[int]) -> dict[str, Any]:
    """Return a trunk that branches once, or twice if there are more than three images."""

    def branch(images: list[int], start: int, stop: int, *children: dict[str, Any]) -> dict[str, Any]:
        return {"images": images, "start": start, "stop": stop, "similarity": 0.8, "children": [*children]}

    if len(images) == 1:
        return branch(images, 0, STEPS)
    leaves = [branch([image], BRANCH, STEPS) for image in images]
    if len(images) > 3:
        late = BRANCH + 4
        pair = branch(images[:2], BRANCH, late, *(branch([image], late, STEPS) for image in images[:2]))
        leaves = [pair, *leaves[2:]]
    return branch(images, 0, BRANCH, *leaves)


def grouped(prompts: list[str]) -> list[list[int]]:
    """Return the groups of some prompts: those that end with the same word."""
    groups: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(prompt.split()[-1], []).append(number)
    return [*groups.values()]


def drawn(prompt: str) -> bytes:
    """Return an image whose color depends on the prompt."""
    color = next((name for name in ("red", "green", "blue", "yellow") if name in prompt), "gray")
    image = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(image).ellipse((16, 16, 112, 112), fill=color)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class Away:
    """Stands before the service like a proxy whose service may be away: it then answers 502 and ends what runs.

    Args:
        app: the service.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.is_away = app, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1"):
            await self.app(scope, receive, send)
            return
        if self.is_away:
            await PlainTextResponse("Bad Gateway", 502)(scope, receive, send)
            return
        answer = asyncio.ensure_future(self.app(scope, receive, send))
        while not answer.done():
            await asyncio.wait([answer], timeout=0.02)
            if self.is_away:
                answer.cancel()
                await asyncio.wait([answer])
                return
        await answer


class PageService:
    """The service, until the block ends.

    Args:
        static: the built page.
        folder: for the database and the images.
        limits: of requests.
        needs_key: whether requests need a key; `key` is one.
    """

    def __init__(self, static: Path, folder: Path, limits: Limits | None = None, *, needs_key: bool = False) -> None:
        self.store = Store(f"sqlite:///{folder}/service.db")
        self.owner = "tester" if needs_key else "local"
        self.key = self.store.add_key(self.owner) if needs_key else None
        self.files, self.link = ImageFiles(str(folder / "images")), WorkerLink()
        made = make_app(self.store, self.files, "mini", self.link, signer_in(folder), limits or Limits(), page=static)
        self.proxy = Away(made)
        config = uvicorn.Config(self.proxy, host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._server.run, self._plan)]
        self._groups: dict[str, list[list[ImageRow]]] = {}
        self._leased: dict[str, Group] = {}

    def __enter__(self) -> "PageService":
        for thread in self._threads:
            thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.link.take(Message("ready", {**FACTS}))
        self.link.take(Message("speed", {"rows_per_second": 20.0, "rows": 60.0, "seconds": 3.0}))
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        for thread in self._threads:
            thread.join(10)
        self.store.close()

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/"

    def job(self) -> Job:
        """Return the newest job."""
        newest = self.store.jobs(self.owner, 1, kind="images")[0]
        found = self.store.job(self.owner, newest.id, whole=True)
        assert found is not None
        return found

    def advance(self, groups: int = 1, until: str = "done") -> None:
        """Take the next groups of the newest job to "grouped", "step", "partial", "done" or "failed"."""
        job = self.job()
        if job.id not in self._groups:
            images = self.store.images(self.owner, job.id)
            places = grouped([image.request.prompt for image in images])
            if images[0].request.group == "alone":
                places = [[number] for number in range(len(images))]
            self._groups[job.id] = [[images[place] for place in group] for group in places]
        for images in self._groups[job.id][:groups]:
            self._generate(job, images, until)
            self.link.woken()
        if until in ("done", "failed"):
            del self._groups[job.id][:groups]

    def _generate(self, job: Job, images: list[ImageRow], until: str) -> None:
        names = [image.id for image in images]
        shown = {"members": names, "tree": tree_of([*range(len(images))]), "trunk": None}
        for group in self.store.lease(WORKER, [(names, {})], LEASE, lambda group, own: shown):
            self._leased |= dict.fromkeys(group.images, group)
        if until == "grouped":
            return
        self.store.event(job.id, "step", {"images": names, "step": BRANCH + 3, "steps": STEPS})
        if until == "step":
            return
        for image in images:
            file = f"{image.id}.partial-0.png"
            self.files.write(file, drawn(image.request.prompt))
            data = {"image": image.id, "index": 0, "step": BRANCH + 3, "file": file}
            self.store.event(job.id, "partial", data)
        if until == "partial":
            return
        for image in images:
            if until == "failed":
                self.store.fail(WORKER, image.id, FAILURE)
            else:
                self._finish(image, [name for name in names if name != image.id])

    def _finish(self, image: ImageRow, others: list[str]) -> None:
        content, asked = drawn(image.request.prompt), image.request.settings
        self.files.write(f"{image.id}.png", content)
        result: dict[str, Any] = {
            "file": f"{image.id}.png",
            "bytes": len(content),
            "width": SIDE,
            "height": SIDE,
            "seed": image.request.seed,
            "steps": asked["steps"] or STEPS,
            "guidance_scale": asked["guidance_scale"] or FACTS["guidance_scale"],
            "group": self._leased[image.id].id if image.id in self._leased else "",
            "shared_with": others,
            "rows": rows_of(len(others) + 1),
            "trunk": None,
            "waited": 0.1 + image.number,
            "seconds": 1.5,
        }
        self.store.finish(WORKER, image.id, result)

    def _plan(self) -> None:
        """Make the plans that are asked for."""
        while not self._server.should_exit:
            for plan in self.store.waiting_plans():
                if not self.store.start_plan(plan.job.id):
                    continue
                places = grouped([request.prompt for request in plan.requests])
                groups: list[PlannedGroup] = [
                    {
                        "images": images,
                        "tree": tree_of(images),
                        "similarity": 0.8,
                        "steps_shared": BRANCH,
                        "rows": rows_of(len(images), len(images)),
                    }
                    for images in places
                    if len(images) > 1
                ]
                count = len(plan.requests)
                saved = sum(group["rows"]["sharing"] for group in groups)
                alone = rows_of(1, count)
                rows = {**alone, "computed": alone["independent"] - saved, "sharing": saved}
                result = {"groups": groups, "steps": STEPS, "rows": rows, "seconds": 0.05 * rows["computed"]}  # type: ignore[operator]
                self.store.finish_plan(plan.job.id, result)
                self.link.woken()
            time.sleep(0.02)
