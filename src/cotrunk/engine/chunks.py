"""Run the rows of one module in forwards of a limited size."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .call_state import CallState
from .policy import LayerCalls
from .rows import assemble, pick


class Chunks:
    """Runs the rows of one module: at most `max_rows` in one forward, filled up to one of `row_sizes`.

    Args:
        call: runs the module.
        state: of the call of the pipeline: holds both limits.
        is_counted: whether filled rows count.
        is_divisible: whether some rows can run without the others. It becomes False if a call shows that they cannot.
        layers: layers of the module that a policy has taken over.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        state: CallState,
        *,
        is_counted: bool,
        is_divisible: bool,
        layers: LayerCalls | None = None,
    ) -> None:
        self.call, self.state, self.layers = call, state, layers
        self.is_counted, self.is_divisible = is_counted, is_divisible

    def filled(self, rows: int) -> int:
        """Return the number of rows of a forward that runs `rows` rows, copies included."""
        most = self.state.max_rows or math.inf
        larger = [size for size in self.state.row_sizes or () if rows <= size <= most]
        return min(larger) if larger and self.is_divisible else rows

    def run(
        self,
        named: dict[str, Any],
        positional: int,
        live: Sequence[int],
        calls: int,
        device: torch.device,
        *,
        listed: bool,
    ) -> tuple[list[Any], list[int]]:
        """Run these rows and return the outputs of the chunks, and the number of rows of each.

        If the device runs out of memory, halve the chunk and go on from there.

        Args:
            named: arguments with these rows only; the first `positional` of them are passed by position.
            live: the rows by their number in the pipeline's call.
            calls: denoiser calls of this step before this one.
            listed: the module takes and returns a list with one tensor per row.
        """
        state, outputs, sizes, rows, done = self.state, list[Any](), list[int](), len(live), 0
        while done < rows:
            size = min(state.max_rows or rows, rows - done)
            filled = self.filled(size)
            which = [*range(done, done + size), *[done + size - 1] * (filled - size)]
            part = named if size == filled == rows else pick(named, rows, which)
            values = list(part.items())
            try:
                with self._layers_running([(calls, live[place]) for place in which]):
                    output = self.call(*[value for _, value in values[:positional]], **dict(values[positional:]))
                if filled > size:
                    output = assemble([output], [filled], torch.arange(size, device=device), listed=listed)
                    state.rows_filled += (filled - size) * self.is_counted
                outputs.append(output)
                sizes.append(size)
                done += size
                continue
            except torch.OutOfMemoryError:
                if size == 1 or not self.is_divisible:
                    raise
            # not inside `except`: the exception holds the frames, and they hold the tensors that must be freed
            state.max_rows = math.ceil(size / 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return outputs, sizes

    def _layers_running(self, rows: list[tuple[int, int]]) -> AbstractContextManager[None]:
        return nullcontext() if self.layers is None else self.layers.forward(rows)
