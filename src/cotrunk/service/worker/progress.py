"""What clients see of a call while it runs: steps and previews, as events."""

import logging
import time
from collections import defaultdict, deque
from typing import Any

from ...engine.call_state import StepEvent
from ...errors import first_line
from ..channel import Channel
from ..images import ImageFiles
from ..store import Store
from .asked import partials_of
from .delivery import png
from .partials import Previews, preview_steps
from .wave import Call
from .writer import Writer

log = logging.getLogger("cotrunk.worker")
KEPT = 10.0  # seconds after a call for which its previews stay: clients may be about to read them
EVERY = 0.5  # seconds between two events about the steps of one call


class Progress:
    """Writes the events of calls. What cannot be written is left out: no image depends on it.

    Args:
        store: the database.
        channel: to the API process; None if there is none.
        files: the folder of images, and of previews.
        writer: writes while the call goes on.
        pipe: the pipeline.
    """

    def __init__(self, store: Store, channel: Channel | None, files: ImageFiles, writer: Writer, pipe: Any) -> None:
        self._store, self._channel, self._files, self._writer = store, channel, files, writer
        self._previews = Previews(pipe)
        self._last = time.monotonic()
        self._shown = list[str]()  # previews of the running call
        self._old = deque[tuple[float, list[str]]]()  # those of the latest calls, and when each call ended

    def begin(self) -> None:
        """Note that a call begins."""
        self._last = time.monotonic()

    def end(self) -> None:
        """Note that a call has ended."""
        if self._shown:
            self._old.append((time.monotonic(), self._shown))
            self._shown = []
        self.notify()

    def tidy(self, kept: float | None = None) -> None:
        """Let the writer remove previews of calls that ended some time ago.

        Args:
            kept: seconds after the end of a call; by default, so many that clients have read its previews.

        Raises:
            WriterError: something earlier could not be written.
        """
        kept = KEPT if kept is None else kept
        while self._old and time.monotonic() - self._old[0][0] >= kept:
            self._writer.do(self._remove, self._old.popleft()[1])

    def step(self, call: Call, event: StepEvent) -> None:
        """Let the writer write what is due after a step."""
        done = event.step + 1
        # while the writer is behind, the latest steps are left out
        if done < event.timesteps and time.monotonic() - self._last >= EVERY and not self._writer.is_busy:
            self._last = time.monotonic()
            jobs = defaultdict(list)
            for member in call.members:
                if member.is_wanted:
                    jobs[member.job].append(member.id)
            steps = {"step": done, "steps": event.timesteps}
            self._writer.do(self._tell, [(job, "step", {"images": images, **steps}) for job, images in jobs.items()])
        for index, member in enumerate(call.members):
            if member.is_wanted and (partials := partials_of(member.request)):
                steps_of = preview_steps(partials, event.timesteps)
                if done in steps_of and (preview := self._previews.image(event, index)) is not None:
                    number = steps_of.index(done)
                    name = f"{member.id}.partial-{number}.png"
                    data = {"image": member.id, "index": number, "step": done, "file": name}
                    self._shown.append(name)
                    self._writer.do(self._write, member.job, data, preview)

    def _write(self, job: str, data: dict[str, Any], preview: Any) -> None:
        try:
            self._files.write(data["file"], png(preview))
        except Exception as error:
            log.warning("A preview cannot be written: %s", first_line(error))
        else:
            self._tell([(job, "partial", data)])

    def _remove(self, names: list[str]) -> None:
        try:
            for name in names:
                self._files.remove_file(name)
        except Exception as error:
            log.warning("Previews cannot be removed: %s", first_line(error))

    def _tell(self, events: list[tuple[str, str, dict[str, Any]]]) -> None:
        try:
            self._store.tell(events)
        except Exception as error:
            log.warning("Events cannot be written: %s", first_line(error))
        self.notify()

    def notify(self) -> None:
        """Tell the API process that there are new events."""
        if self._channel is not None:
            self._channel.send("event")
