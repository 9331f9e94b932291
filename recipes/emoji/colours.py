"""Name the colours of an image, and change them.

Only colours that people agree on have a name here. Hues between orange and yellow, between blue and green, or near
brown are called by different names, so captions do not mention them.
"""

import numpy as np
from PIL import Image

# ranges of hue in degrees, for strong colours that are not dark; hues between them have no name
HUES = {
    "orange": (16, 33),
    "yellow": (42, 65),
    "green": (82, 162),
    "blue": (196, 250),
    "purple": (262, 298),
    "pink": (308, 340),
}
COLOURS = ("red", *HUES, "brown", "black", "gray", "white")


def hsv(rgb: np.ndarray) -> np.ndarray:
    """Convert (h, w, 3) bytes to hue in degrees, and saturation and value in 0..1."""
    scale = np.array([360 / 255, 1 / 255, 1 / 255])
    return np.asarray(Image.fromarray(rgb).convert("HSV")).astype(np.float64) * scale


def colour_shares(rgb: np.ndarray, alpha: np.ndarray) -> dict[str, float]:
    """Return the share of each named colour in the area of an image, the largest first.

    Args:
        rgb: (h, w, 3) bytes.
        alpha: (h, w) in 0..1, the weight of each pixel.
    """
    hue, saturation, value = np.moveaxis(hsv(rgb), -1, 0)
    names = np.full(hue.shape, "", dtype="U6")
    strong = (saturation > 0.35) & (value > 0.4)
    for name, (start, end) in HUES.items():
        names[strong & (hue >= start) & (hue <= end)] = name
    reddish = (hue >= 346) | (hue <= 11)
    names[reddish & (saturation > 0.6) & (value > 0.5)] = "red"
    names[reddish & (saturation > 0.2) & (saturation < 0.5) & (value > 0.8)] = "pink"
    # brown is dark orange, and tan is pale orange
    warm = (hue >= 6) & (hue <= 45) & (saturation > 0.3)
    names[warm & (value < 0.8)] = "brown"
    names[warm & (value >= 0.8) & (saturation < 0.6)] = ""
    names[(hue > 33) & (hue < 66) & (value < 0.75) & (names != "brown")] = ""
    pale = (saturation < 0.14) | ((saturation < 0.27) & (hue > 160) & (hue < 260))  # bluish greys count as grey
    names[pale] = np.where(value[pale] > 0.86, "white", "gray")
    names[(value < 0.27) | ((value < 0.36) & (saturation < 0.5))] = "black"
    total = float(alpha.sum()) or 1.0
    weights = {colour: float(alpha[names == colour].sum()) / total for colour in COLOURS}
    return {c: w for c, w in sorted(weights.items(), key=lambda item: -item[1]) if w}


def turned(rgb: np.ndarray, degrees: float) -> np.ndarray:
    """Return the image with all hues rotated; grey, black and white stay."""
    image = np.array(Image.fromarray(rgb).convert("HSV"))
    image[..., 0] = (image[..., 0].astype(int) + round(degrees * 255 / 360)) % 256
    return np.asarray(Image.fromarray(image, "HSV").convert("RGB"))


def main_colour(shares: dict[str, float]) -> str | None:
    """Return the largest colour if it fills at least half of the image, else None."""
    name, share = next(iter(shares.items()), ("", 0.0))
    return name if share >= 0.5 else None
