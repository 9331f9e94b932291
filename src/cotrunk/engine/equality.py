"""Check that images which share a row are equal in everything that is not averaged."""

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import CotrunkError
from .transfer import read

# Largest difference between members that counts as rounding, relative to the largest value.
ROUNDING = 1e-5
# The same for members with noise of their own: an encoder adds some of it to input images.
ENCODER_NOISE = 0.02


class EqualityChecks:
    """The comparisons of one call. Their results are read late, so that the device need not wait."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, str, str, torch.Tensor]] = []
        self._other = ""  # a remedy besides sharing=None

    def note_own_noise(self) -> None:
        """Note that images keep their own noise, in which they may differ where a common noise would not."""
        self._other = ' or noise="common"'

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
        def is_due(one: tuple[int, str, str, torch.Tensor]) -> bool:
            return one[0] <= last or one[3].device.type == "cpu"  # another device may not have computed it yet

        due = [one for one in self._pending if is_due(one)]
        self._pending = [one for one in self._pending if not is_due(one)]
        for (step, where, name, _), differs in zip(due, read([flag for *_, flag in due]), strict=True):
            if differs:
                since = f" from step {step} on (changed by a callback, or by the pipeline itself)" if step else ""
                raise CotrunkError(
                    f"Prompts cannot share steps in a {where}: its argument {name} differs among them{since}, and "
                    f"cotrunk does not know how to average it. Use sharing=None{self._other}, or give all prompts of a "
                    "group the same value."
                )


def differ(value: Any, other: Any, tolerance: float = ROUNDING) -> torch.Tensor:
    """Return whether two values differ by more than rounding, as a boolean without dimensions on their device.

    Args:
        value, other: tensors, or anything that can be compared.
        tolerance: largest difference that counts as rounding, relative to the largest value.
    """
    if not isinstance(value, torch.Tensor):
        return torch.tensor(value != other)
    if value.shape != other.shape:
        return torch.tensor(True, device=value.device)
    if not (value.is_floating_point() or value.is_complex()):
        return (value != other).any()
    if not value.numel():
        return torch.tensor(False, device=value.device)
    rounding = max(tolerance, 2 * torch.finfo(value.dtype).eps)
    wide = torch.promote_types(value.dtype, torch.float32)
    value, other = torch.nan_to_num(value.to(wide)), torch.nan_to_num(other.to(wide))
    return (value - other).abs().max() > rounding * other.abs().max()


def any_of(flags: list[torch.Tensor]) -> torch.Tensor:
    """Return whether any of these booleans is true, without waiting for the device."""
    return torch.stack(flags).any()
