"""What clients see of a call while it runs: steps and previews, as events."""

import time
from collections import defaultdict
from typing import Any

from ...engine.call_state import StepEvent
from ..channel import Channel
from ..images import ImageFiles
from ..store import Store
from .asked import partials_of
from .delivery import png
from .partials import Previews, preview_steps
from .wave import Call

EVERY = 0.5  # seconds between two events about the steps of one call


class Progress:
    """Writes the events of calls.

    Args:
        store: the database.
        channel: to the API process; None if there is none.
        files: the folder of images, and of previews.
        pipe: the pipeline.
    """

    def __init__(self, store: Store, channel: Channel | None, files: ImageFiles, pipe: Any) -> None:
        self._store, self._channel, self._files = store, channel, files
        self._previews = Previews(pipe)
        self._last = time.monotonic()

    def begin(self) -> None:
        """Note that a call begins."""
        self._last = time.monotonic()

    def step(self, call: Call, event: StepEvent) -> None:
        """Write what is due after a step."""
        done, wrote = event.step + 1, False
        if time.monotonic() - self._last >= EVERY and done < event.timesteps:
            self._last, wrote = time.monotonic(), True
            jobs = defaultdict(list)
            for member in call.members:
                jobs[member.job].append(member.id)
            for job, images in jobs.items():
                self._store.event(job, "step", {"images": images, "step": done, "steps": event.timesteps})
        for index, member in enumerate(call.members):
            if partials := partials_of(member.request):
                steps = preview_steps(partials, event.timesteps)
                if done in steps and (preview := self._previews.image(event, index)) is not None:
                    number = steps.index(done)
                    name = f"{member.id}.partial-{number}.png"
                    self._files.write(name, png(preview))
                    data = {"image": member.id, "index": number, "step": done, "file": name}
                    self._store.event(member.job, "partial", data)
                    wrote = True
        if wrote:
            self.notify()

    def notify(self) -> None:
        """Tell the API process that there are new events."""
        if self._channel is not None:
            self._channel.send("event")
