"""Run the linear layers of a text encoder with weights that oneDNN packed for this CPU.

In float32, torch calls MKL for linear layers, which on processors of AMD computes half as fast as oneDNN does. Results
differ by rounding alone.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

LARGEST = 2**30  # parameters of a model: packing copies them


@contextmanager
def packed_linears(model: torch.nn.Module) -> Iterator[None]:
    """Run the linear layers of a model with packed weights as long as the context lasts, if that is possible.

    It is possible in float32 on the CPU. Layers of a subclass, or with hooks of their own, stay as they are.

    Args:
        model: in evaluation mode. Its weights must not change meanwhile.
    """
    parameters = list(model.parameters())
    is_usual = all(each.device.type == "cpu" and each.dtype == torch.float32 for each in parameters)
    size = sum(each.numel() for each in parameters)
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_onednn or not is_usual or size > LARGEST or torch.is_grad_enabled():
        yield
        return
    with ExitStack() as changed:
        for layer in model.modules():
            if type(layer) is torch.nn.Linear and "forward" not in vars(layer) and not layer._forward_hooks:
                layer.forward = _packed(layer)  # type: ignore[method-assign, assignment]
                changed.callback(delattr, layer, "forward")
        yield


def _packed(layer: torch.nn.Linear) -> Callable[[Tensor], Tensor]:
    """Return the function of a linear layer, with its weights packed."""
    weight = layer.weight.to_mkldnn()
    bias = None if layer.bias is None else layer.bias.to_mkldnn()
    return lambda inputs: torch.ops.aten.mkldnn_linear(inputs.to_mkldnn(), weight, bias).to_dense()
