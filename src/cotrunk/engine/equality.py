"""Check that images which share a row are equal in everything that is not averaged."""

from collections.abc import Mapping

import torch

from ..errors import CotrunkError


class EqualityChecks:
    """The comparisons of one call. Their results are read late, so that the device need not wait."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, str, str, torch.Tensor]] = []

    def expect(self, step: int, where: str, differs: Mapping[str, torch.Tensor], *, at_once: bool) -> None:
        """Raise `CotrunkError` if images that share a row differ in the values that the row is made of.

        Args:
            step: the current step.
            where: the class that receives the values: a denoiser, a scheduler.
            differs: name of a value -> whether images differ in it, as `Folding.differences` returns it.
            at_once: read the result now. Otherwise it is read at the next step, or at the end of the call.
        """
        self._pending += [(step, where, name, flag) for name, flag in differs.items()]
        self._read(step if at_once else step - 1)

    def finish(self, step: int) -> None:
        """Raise `CotrunkError` if images that shared a row differed anywhere up to this step."""
        self._read(step)

    def _read(self, last: int) -> None:
        found, self._pending = self._pending, []
        for step, where, name, flag in found:
            if step > last and flag.device.type != "cpu":  # the device may not have computed it yet
                self._pending.append((step, where, name, flag))
            elif flag:
                since = f" from step {step} on (changed by a callback, or by the pipeline itself)" if step else ""
                raise CotrunkError(
                    f"Prompts cannot share steps in a {where}: its argument {name} differs among them{since}, and "
                    "cotrunk does not know how to average it. Use sharing=None, or give all prompts of a group the "
                    "same value."
                )
