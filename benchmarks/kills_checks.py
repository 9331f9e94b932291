"""What must be true after the kills, for `kills.py`: nothing lost, nothing twice, the images of an undisturbed run."""

from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from kills_load import Asked
from PIL import Image

from cotrunk.pipelines.loading import load_pipeline
from cotrunk.service.launch import WorkerSettings
from cotrunk.service.store import ENDED, Group, ImageRow, Store
from cotrunk.service.worker.formed import Formed
from cotrunk.service.worker.planning import Planner
from cotrunk.service.worker.savings import Savings
from cotrunk.service.worker.wave import Generator
from cotrunk.settings import Settings

LOCAL = "local"  # the owner of jobs that come without a key


@dataclass
class Found:
    """What the checks count. `wrong` must be empty."""

    jobs: int = 0
    images: int = 0
    groups: int = 0
    again: int = 0
    alone: int = 0
    parts: int = 0
    grouped: int = 0
    identical: int = 0
    largest: int = 0
    wrong: list[str] = field(default_factory=list)


def check(store: Store, folder: Path, jobs: list[Asked], batches: list[Asked]) -> tuple[Found, list[ImageRow]]:
    """Compare what the clients have received with what the database and the folder of images hold."""
    found, images = Found(), list[ImageRow]()
    recorded = list[Any]()
    while page := store.jobs(LOCAL, 100, recorded[-1].id if recorded else None):
        recorded += page
    known = {job.id: job for job in recorded}
    found.jobs = len(known)
    every = [*jobs, *batches]
    if Counter(known.keys()) != Counter(asked.job for asked in every):
        found.wrong.append(f"{len(every)} requests were accepted, and {len(known)} jobs are recorded")
    for asked in every:
        own = store.images(LOCAL, asked.job)
        images += own
        states = Counter(image.state for image in own)
        if dict(states) != {"done": asked.images}:
            reasons = {image.reason for image in own if image.reason}
            found.wrong.append(f"{asked.job}: {asked.images} images were asked for, there are {dict(states)} {reasons}")
        if {*asked.done.values()} != {1} or len(asked.done) != asked.images:
            found.wrong.append(f"{asked.job}: delivered {sorted(asked.done.values())} times, of {asked.images} images")
        told = Counter[str]()
        last = 0
        while events := store.events(LOCAL, asked.job, last):
            last = events[-1].id
            told.update(event.data["image"] for event in events if event.kind in ENDED)
        if told != Counter(image.id for image in own):
            found.wrong.append(f"{asked.job}: {sum(told.values())} ends were told of {len(own)} images")
    files = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if files != {f"{image.id}.png" for image in images}:
        found.wrong.append(f"{len(files)} files for {len(images)} images")
    found.parts = sum(path.name.startswith(".") for path in folder.iterdir())
    found.images = len(images)
    found.again = sum(image.attempts > 1 for image in images)
    found.alone = sum(image.attempts > 2 for image in images)
    return found, images


def compare(store: Store, folder: Path, images: list[ImageRow], model: str, found: Found) -> None:
    """Generate every recorded group again, undisturbed, and compare its images with those that were delivered."""
    wanted = {image.id: image for image in images}
    groups = dict.fromkeys(image.group for image in images if image.group)
    found.groups = len(groups)
    generator: Generator | None = None
    for identifier in groups:
        group = store.group(identifier)
        assert group is not None
        generator = generator or _generator(model, Formed.leased(group).settings, folder.parent / "undisturbed")
        found.grouped += len(group.images) if len(group.images) > 1 else 0
        for image, drawn in _drawn(generator, group):
            row = wanted.get(image)
            if row is None or row.group != identifier or row.state != "done":
                continue
            delivered = np.asarray(Image.open(BytesIO((folder / f"{image}.png").read_bytes())), np.int16)
            difference = int(np.abs(delivered - np.asarray(drawn, np.int16)).max())
            found.identical += difference == 0
            found.largest = max(found.largest, difference)
            if difference > 1:  # calls of other sizes round differently: one level of 255
                found.wrong.append(f"{image}: differs from an undisturbed run by {difference} of 255 levels")


def _drawn(generator: Generator, group: Group) -> list[tuple[str, Any]]:
    calls = generator.batches([Formed.leased(group)], lambda call, event: None)
    return [
        (member.id, image)
        for finished in calls
        for member, image in zip(finished.call.members, finished.batch.output.images, strict=True)
    ]


def _generator(model: str, settings: Settings, data: Path) -> Generator:
    """Return a generator as the worker has it, with an empty trunk cache."""
    pipe = load_pipeline(model, "cpu")
    pipe.set_progress_bar_config(disable=True)
    planner = Planner(pipe, settings, WorkerSettings("", "", str(data), model), Savings())
    return Generator(pipe, planner, settings.batching)
