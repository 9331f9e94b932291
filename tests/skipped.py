"""Pipelines that run with skipping, twelve steps by default."""

from typing import Any

import numpy as np
import torch
from running import run
from tiny import TinyPipeline
from torch import Tensor

from cotrunk import Skipping

STEPS = 12
EVERY_THIRD = Skipping(rule="fixed", every=3)
FIXED = "CCCPPCPPCPPC"  # every third from the first prediction that could be tried; the last is computed


def skipped(
    tiny: TinyPipeline, inputs: dict[str, Any], skipping: Skipping | None = EVERY_THIRD, **arguments: Any
) -> Any:
    arguments = {"sharing": None, "num_inference_steps": STEPS, "skipping": skipping} | arguments
    return run(tiny, inputs, **arguments)


def pixels(tiny: TinyPipeline, result: Any) -> Tensor:
    return torch.as_tensor(np.asarray(result.output[tiny.output_field]))
