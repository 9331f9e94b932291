"""Refuse denoiser calls whose rows cannot be folded, skipped or cut into chunks, before they spoil an image."""

import math
from typing import Any

import torch
from diffusers.utils.torch_utils import unwrap_module

from ..errors import CotrunkError
from ..pipelines.compatibility import remembering_part
from .call_state import CallState
from .chunks import Chunks
from .equality import ENCODER_NOISE, ROUNDING
from .rows import Folding

TIMESTEPS = ("timestep", "timesteps", "t")  # names of that argument


class ModuleChecks:
    """The checks of one module during one call of the pipeline.

    Args:
        module: a denoiser or a side network.
        state: of the call.
        chunks: runs the module's rows; it learns here if they cannot be divided.
    """

    def __init__(self, module: torch.nn.Module, state: CallState, chunks: Chunks) -> None:
        self.module, self.state, self.chunks = module, state, chunks
        self._fitting: set[tuple[tuple[int, ...], int]] = set()
        self._first_timestep: float | None = None  # of this call of the pipeline

    @property
    def kind(self) -> str:
        return type(unwrap_module(self.module)).__name__

    def check_module(self, calls: int) -> None:
        """Raise `CotrunkError` if rows of this module cannot run without the others.

        Checked before the first row, and again after the first step, when a list that was empty may hold rows.

        Args:
            calls: calls of the module in this step before this one.
        """
        if self._first_timestep is not None and (self.state.step != 1 or calls):
            return
        why = remembering_part(self.module)
        if why is not None:
            if not self.state.row_plan.is_plain() or self.state.max_rows or self.state.row_sizes:
                raise CotrunkError(f"{self.kind} cannot run some rows without the others: {why}")
            self.chunks.is_divisible = False

    def check_rows(self, rows: int, images: int) -> None:
        """Raise `CotrunkError` for a call whose rows are not a batch of the images, unless all rows are computed."""
        if self.chunks.is_counted and not self.state.row_plan.is_plain():
            raise CotrunkError(
                f"The pipeline calls its {self.kind} with {rows} rows for {images} images, and cotrunk does not know "
                "which image each row belongs to: use sharing=None, and neither skipping nor guidance_interval."
            )

    def check_guidance(self, copies: int) -> None:
        """Raise `CotrunkError` if guidance is changed in some steps, and takes more rows than predicted.

        Args:
            copies: rows per image.
        """
        plan = self.state.row_plan
        if copies > 2 and self.chunks.is_counted and (plan.interval is not None or plan.trunk.guidance < 1):
            raise CotrunkError(
                f"The pipeline calls its {self.kind} with {copies} rows per image, and guidance_interval and "
                "trunk_guidance support two: leave guidance_interval out, and use trunk_guidance=1."
            )

    def check_timestep(self, named: dict[str, Any]) -> None:
        """Raise `CotrunkError` if the pipeline goes on to another timestep without a call of `scheduler.step`."""
        if self.state.step:
            return
        timestep = next((named[name] for name in TIMESTEPS if name in named), None)
        value = None if timestep is None else float(torch.as_tensor(timestep).flatten()[0])
        if self._first_timestep is None:
            self._first_timestep = math.nan if value is None else value
        elif value is not None and value != self._first_timestep and not self.state.row_plan.is_plain():
            raise CotrunkError(
                f"The pipeline moves its {self.kind} to another timestep without a call of scheduler.step, and "
                "cotrunk counts those calls: use sharing=None, and neither skipping nor guidance_interval."
            )

    def check_members(
        self,
        folding: Folding,
        named: dict[str, Any],
        sample: Any,
        sources: tuple[int, ...],
        copies: int,
        *,
        is_known: bool,
    ) -> None:
        """Raise `CotrunkError` if the rows of this call cannot be folded as planned.

        Args:
            sample: the argument with the latents, in which members with noise of their own differ.
            copies: rows per image (2 with concatenated guidance).
            is_known: whether the number of images is known.
        """
        is_first = (sources, folding.rows) not in self._fitting
        if is_first or not folding.is_identity:
            if why := folding.misshapen(named):
                self._refuse_misshapen(folding, copies, why, several=is_known and len(sources) > 1)
                self.chunks.is_divisible = False
            else:
                self._fitting.add((sources, folding.rows))
        if folding.spared["sharing"]:
            # the first call of a partition is checked at once; later calls too, because a callback may change arguments
            own_noise = self.state.own_noise is not None
            compared = {name: value for name, value in named.items() if not (own_noise and value is sample)}
            differs = folding.differences(compared, ENCODER_NOISE if own_noise else ROUNDING)
            self.state.equality.expect(self.state.step, self.kind, differs, at_once=is_first)

    def _refuse_misshapen(self, folding: Folding, copies: int, why: str, *, several: bool) -> None:
        """Raise `CotrunkError` if some rows would run without the others, now or at a later step."""
        row_plan, rows = self.state.row_plan, folding.rows
        if folding.spared["sharing"]:
            raise CotrunkError(f"Prompts cannot share steps in a {self.kind}: {why}. Use sharing=None.")
        # with a single image, either all rows run or none does
        skips = bool(row_plan.policies) and several
        if not folding.is_identity or skips or (row_plan.interval is not None and copies == 2):
            raise CotrunkError(
                f"No rows of a {self.kind} can be skipped: {why}. Use neither skipping nor guidance_interval."
            )
        if (self.state.max_rows or rows) < rows or self.chunks.filled(rows) > rows:
            raise CotrunkError(f"A {self.kind} cannot run in chunks: {why}. Leave max_rows and row_sizes out.")
