"""The progress of a job on the terminal: a spinner while it loads and plans, then a bar."""

import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..runs import events
from .console import err, out, say, warn_of
from .inputs import warn_unlocked


class JobProgress:
    """Shows the events of a job; an instance is the callback of `run_job` and `plan_job`."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._shown = ExitStack()  # the spinner or the bar

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._shown.close()

    def __call__(self, event: events.Event) -> None:
        """Show an event."""
        match event:
            case events.Unlocked(folder):
                warn_unlocked(folder)
            case events.Loading(model, has_denoiser):
                self._spin(f"Loading {'' if has_denoiser else 'the text encoder of '}{escape(model)}")
            case events.Planning(prompts):
                self._spin(f"Comparing {prompts:,} prompts")
            case events.Embedded(done, prompts):
                self._spin(f"Embedding: {done:,} of {prompts:,} prompts" if done < prompts else "Grouping prompts")
            case events.Planned(plan, warning):
                self._shown.close()
                warn_of(plan.findings, plan.prompts)
                if warning is not None:
                    say("yellow", "warning", warning.rstrip("."))
            case events.WarmingUp(compiles):
                self._spin("Compiling" if compiles else "Warming up")
            case events.Denoising(rows, images, rows_done, images_done):
                self._shown.close()
                self._bar = self._shown.enter_context(Bar(rows, images, rows_done, images_done))
            case events.StepDone(rows) if self._bar is not None:
                self._bar.step(rows)
            case events.BatchDone(_, images, rows) if self._bar is not None:
                self._bar.batch(rows, len(images))
            case events.Machines(count) if self._bar is not None:
                self._bar.machines = count
            case events.DenoisingDone():
                self._shown.close()
            case events.Interrupted(done, images):
                self._shown.close()
                err.print(f"Stopped: {done} of {images} images are finished. Continue with --resume.")
            case events.Extended(prompts):
                self._shown.close()
                few = "1 prompt was" if prompts == 1 else f"{prompts:,} prompts were"
                err.print(f"{few} appended: they share among themselves, so that finished images stay as they are.")
            case events.Retrying(images):
                self._shown.close()
                err.print(f"Generating {images:,} image{'' if images == 1 else 's'} again with new seeds.")
            case events.AlreadyFinished():
                out.print("This run is finished: there is nothing to resume. Its page was written again.")

    def close(self) -> None:
        """Hide the spinner or the bar."""
        self._shown.close()

    def _spin(self, text: str) -> None:
        self._shown.close()
        self._shown.enter_context(err.status(text))


class Bar:
    """Progress counted in planned denoiser rows, with images and the time left. A planned row is done when it is
    computed or skipped, because what skipping saves is not known in advance.

    Args:
        rows, images: totals of the whole run.
        rows_done, images_done: those that an earlier part of the run has finished.
    """

    def __init__(self, rows: int, images: int, rows_done: int, images_done: int) -> None:
        self.total, self.images = rows, images
        self.before = self.rows = rows_done
        self.images_done = images_done
        self.machines = 1  # of a cluster
        self.begin = time.perf_counter()
        self.bar = Progress(
            BarColumn(24),
            TextColumn("{task.completed:.0f}/{task.total:.0f} rows, {task.fields[images]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=err,
            speed_estimate_period=120,
        )
        self.task = self.bar.add_task("", total=rows, completed=rows_done, images=self._images(rows_done))

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def step(self, rows: int) -> None:
        """Show the rows of the batch in progress after one of its steps."""
        self._update(self.rows + rows)

    def batch(self, rows: int, images: int) -> None:
        """Add a finished batch."""
        self.rows, self.images_done = self.rows + rows, self.images_done + images
        self._update(self.rows)

    def _update(self, rows: int) -> None:
        self.bar.update(self.task, completed=rows, images=self._images(rows))

    def _images(self, rows: int) -> str:
        # the rate comes from rows, so that it is known before the first batch ends
        rate = (rows - self.before) / max(self.total, 1) * self.images / max(time.perf_counter() - self.begin, 1e-9)
        where = f", {self.machines} machines" if self.machines > 1 else ""
        return f"{self.images_done}/{self.images} images, {rate:.2f} images/s{where}"
