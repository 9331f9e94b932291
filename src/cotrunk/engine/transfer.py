"""Values between Python and the device: sent without a wait, and read in one wait.

`torch.tensor(values, device="cuda")` waits until the device has finished everything before it. So does every read of a
result. In between, the device has nothing to do while Python prepares the next forward.
"""

from collections.abc import Sequence
from typing import Any

import torch


def sent(values: Any, device: torch.device) -> torch.Tensor:
    """Return (nested) numbers as a tensor on a device, without waiting for the device."""
    return torch.tensor(values).to(device, non_blocking=True)


def read(flags: Sequence[torch.Tensor]) -> list[bool]:
    """Return the values of booleans without dimensions, with one wait for the device."""
    if not flags:
        return []
    values: list[bool] = torch.stack([flag.to(flags[-1].device, non_blocking=True) for flag in flags]).tolist()
    return values
