"""One progress bar for a whole run, in place of the pipeline's own bar for each of its calls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .call_state import StepEvent
from .patch import replaced


class RunBar:
    """Counts planned denoiser rows. A skipped row is done as well, because it is not known in advance what is skipped.

    The bar is the pipeline's own (`pipe.progress_bar`): of tqdm, as HTML in a notebook, with the user's
    `pipe.set_progress_bar_config(...)`. A pipeline without such a method has no bar.
    """

    def __init__(self, bar: Any, images: int) -> None:
        self._bar, self._images = bar, images
        self._rows = self._done = 0
        if bar is not None:
            bar.unit = " rows"

    def on_step(self, event: StepEvent) -> None:
        """Show the rows of the batch in progress."""
        self._show(self._rows + event.rows + event.rows_spared["skipping"] + event.rows_spared["guidance"])

    def batch(self, rows: int, images: int) -> None:
        """Add a finished batch with its rows, computed or skipped."""
        self._rows, self._done = self._rows + rows, self._done + images
        self._show(self._rows)

    def also(self, on_step: Callable[[StepEvent], None] | None) -> Callable[[StepEvent], None] | None:
        """Return what is called after each step: this bar, then the user's function."""
        if self._bar is None:
            return on_step

        def both(event: StepEvent) -> None:
            self.on_step(event)
            if on_step is not None:
                on_step(event)

        return both

    def _show(self, rows: int) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._done} of {self._images} images", refresh=False)
            self._bar.update(min(rows, self._bar.total) - self._bar.n)


@contextmanager
def run_bar(pipe: Any, rows: int, images: int) -> Iterator[RunBar]:
    """Show the progress of a run of so many planned rows; the pipeline's own bars are off meanwhile."""
    if not hasattr(pipe, "progress_bar"):
        yield RunBar(None, images)
        return
    with (
        pipe.progress_bar(total=rows) as bar,
        replaced(pipe, "_progress_bar_config", {**getattr(pipe, "_progress_bar_config", {}), "disable": True}),
    ):
        yield RunBar(bar, images)
