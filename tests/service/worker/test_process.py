"""The worker as a process, on the embedded model."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cotrunk
from cotrunk.pipelines.loading import load_pipeline
from cotrunk.service.channel import Channel, Message
from cotrunk.service.launch import WorkerSettings
from cotrunk.service.store import ImageRequest, Store
from cotrunk.service.worker.formed import Formed

pytestmark = pytest.mark.slow
STEPS = 8
SIMILAR = ["red apple, noto style", "green apple, noto style"]


def asked(prompt: str, **options: Any) -> ImageRequest:
    return ImageRequest(prompt, {"model": "mini", "steps": STEPS}, rows=2 * STEPS, **options)


class Process:
    """A worker process, and this end of its channel."""

    def __init__(self, launch: WorkerSettings) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = launch.command(theirs.fileno())
            self.process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
                env=launch.environment(),
                start_new_session=True,
            )
        self.channel = Channel(ours)

    def until(self, kind: str) -> Message:
        """Return the next message of this kind."""
        while True:
            for message in self.channel.receive(120):
                if message.kind == kind:
                    return message


@pytest.fixture
def launch(tmp_path: Path) -> WorkerSettings:
    images = str(tmp_path / "images")
    return WorkerSettings(f"sqlite:///{tmp_path}/jobs.sqlite", images, str(tmp_path), "mini", {"device": "cpu"})


@pytest.fixture
def worker(launch: WorkerSettings) -> Iterator[Process]:
    worker = Process(launch)
    yield worker
    worker.process.kill()
    worker.process.wait()
    worker.channel.close()


def test_a_worker_generates_what_is_recorded_and_ends_in_order(launch: WorkerSettings, worker: Process) -> None:
    facts = worker.until("ready").data
    assert (facts["model"], facts["width"], facts["steps"]) == ("mini", 128, 30)
    store = Store(launch.database)
    job = store.accept("me", "images", [asked(prompt) for prompt in SIMILAR], body={})[0].id
    worker.channel.send("work")
    assert worker.until("speed").data["rows_per_second"] > 0
    while (found := store.job("me", job)) is not None and found.state != "done":
        worker.until("event")
    images = store.images("me", job)
    group = store.group(images[0].group or "")
    assert group is not None
    formed = Formed.leased(group)
    settings = replace(formed.settings, steps=STEPS)
    pipe = load_pipeline("mini", "cpu")
    expected = cotrunk.generate(pipe, plan=formed.plan, settings=settings, guidance_scale=5.0).images
    for image in images:
        assert image.result is not None
        assert image.result["shared_with"]
        assert image.result["guidance_scale"] == 5.0  # of the model
        pixels = np.asarray(Image.open(Path(launch.images) / image.result["file"])).astype(int)
        wanted = np.asarray(expected[formed.images.index(image.id)]).astype(int)
        assert np.abs(pixels - wanted).max() <= 1
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(60) == 0


@pytest.mark.parametrize("how", ["orphan", "kill"])
def test_images_of_a_worker_that_ends_are_generated_by_the_next(
    launch: WorkerSettings, worker: Process, how: str
) -> None:
    worker.until("ready")
    store = Store(launch.database)
    slow = replace(asked(SIMILAR[0]), settings={"model": "mini", "steps": 100})
    job = store.accept("me", "images", [slow, replace(slow, prompt=SIMILAR[1])], body={})[0].id
    worker.channel.send("work")
    while not any(event.kind == "step" for event in store.events("me", job) or ()):
        worker.until("event")
    if how == "orphan":  # its parent is gone
        worker.channel.close()
        assert worker.process.wait(60) == 0
    else:
        worker.process.kill()
        worker.process.wait()
    recorded = store.images("me", job)[0].group
    other = Process(launch)
    other.until("ready")
    while (found := store.job("me", job)) is not None and found.state != "done":
        other.until("event")
    other.process.terminate()
    assert other.process.wait(60) == 0
    images = store.images("me", job)
    assert {image.group for image in images} == {recorded}
    assert [image.attempts for image in images] == ([1, 1] if how == "orphan" else [2, 2])


def test_a_model_that_does_not_exist_is_refused_in_one_sentence(launch: WorkerSettings) -> None:
    worker = Process(replace(launch, model="missing-model"))
    _, errors = worker.process.communicate(timeout=120)
    assert worker.process.returncode == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "missing-model" in line
