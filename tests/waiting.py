"""A worker of the service on a tiny pipeline, in this process, and requests for it."""

import functools
from pathlib import Path
from typing import Any

import tiny

from cotrunk.service.launch import WorkerSettings
from cotrunk.service.store import ImageRequest, ImageRow, Store
from cotrunk.service.worker.loop import Worker

STEPS = 5
SETTINGS = {"sharing": {"share": 0.4, "similarity": 0.96}}  # two of five steps
SIMILAR = ["a small red boat", "a small red coat", "a small red goat"]
ALONE = "alone"


@functools.cache
def pipeline() -> Any:
    """Return a tiny pipeline that takes texts; tests must not change it."""
    return tiny.sd_with_text().pipe


def break_second_image(monkeypatch: Any) -> None:
    """Let the second image of each call of `pipeline()` be NaN."""
    vae = pipeline().vae
    decode = vae.decode

    def broken(latents: Any, *args: Any, **kwargs: Any) -> Any:
        found = decode(latents, *args, **kwargs)
        found[0][1] = float("nan")
        return found

    monkeypatch.setattr(vae, "decode", broken)


def request(prompt: str, *, output: dict[str, Any] | None = None, **options: Any) -> ImageRequest:
    """Return a request for one image; `options` are fields of `ImageRequest`, or of its settings."""
    own = {name: options.pop(name) for name in ("seed", "group", "wait_ms", "custom_id") if name in options}
    settings = {"model": "tiny", "width": 32, "height": 32, "steps": STEPS, "guidance_scale": None}
    settings |= {"negative_prompt": None, "output": {"format": "png", "quality": None, "partials": 0} | (output or {})}
    return ImageRequest(prompt, settings | options, rows=2 * STEPS, **own)


def launch(folder: Path, **options: Any) -> WorkerSettings:
    """Return the settings of a worker whose data lies in a folder."""
    given: dict[str, Any] = {
        "database": f"sqlite:///{folder}/jobs.sqlite",
        "images": str(folder / "images"),
        "data": str(folder),
        "model": "tiny",
        "settings": SETTINGS,
        "trunks": "off",
        "wait_ms": 0,
        "batch_wait_ms": 0,
    }
    return WorkerSettings(**given | options)


class Service:
    """A database in a folder, and a worker that does what it is asked piece by piece."""

    def __init__(self, folder: Path, pipe: Any = None, name: str = "one", **options: Any) -> None:
        self.launch = launch(folder, **options)
        self.folder = folder / "images"
        self.store = Store(self.launch.database)
        self.worker = Worker(name, self.launch, pipeline() if pipe is None else pipe, self.store, None)

    def ask(self, *requests: ImageRequest, owner: str = "me", kind: Any = "images") -> str:
        """Record a job, and return its id."""
        return self.store.accept(owner, kind, list(requests), body={})[0].id

    def work(self) -> None:
        """Let the worker do everything that there is to do now."""
        while self.worker.turn():
            pass
        self.worker.finish()

    def images(self, job: str, owner: str = "me") -> list[ImageRow]:
        """Return the images of a job."""
        return self.store.images(owner, job)
