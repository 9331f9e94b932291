"""The colours of an image by name, and the same image in another colour.

A colour has a name here only where people would agree on it: between orange and yellow, blue and green, or brown and
anything there are hues that some call the one and some the other, and a caption had better be silent about them.
"""

import numpy as np
from PIL import Image

# hues in degrees, from and to, of colours that are strong and not dark; between them no name
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
    """(h, w, 3) bytes -> hue in degrees, saturation and value in 0..1."""
    scale = np.array([360 / 255, 1 / 255, 1 / 255])
    return np.asarray(Image.fromarray(rgb).convert("HSV")).astype(np.float64) * scale


def colour_shares(rgb: np.ndarray, alpha: np.ndarray) -> dict[str, float]:
    """Share of each named colour in the area of an image, the largest first; what has no name is in no share.

    rgb: (h, w, 3) bytes; alpha: (h, w) in 0..1, the weight of each pixel.
    """
    hue, saturation, value = np.moveaxis(hsv(rgb), -1, 0)
    names = np.full(hue.shape, "", dtype="U6")
    strong = (saturation > 0.35) & (value > 0.4)
    for name, (start, end) in HUES.items():
        names[strong & (hue >= start) & (hue <= end)] = name
    reddish = (hue >= 346) | (hue <= 11)
    names[reddish & (saturation > 0.6) & (value > 0.5)] = "red"
    names[reddish & (saturation > 0.2) & (saturation < 0.5) & (value > 0.8)] = "pink"
    # brown is a dark orange, and tan a pale one
    warm = (hue >= 6) & (hue <= 45) & (saturation > 0.3)
    names[warm & (value < 0.8)] = "brown"
    names[warm & (value >= 0.8) & (saturation < 0.6)] = ""
    names[(hue > 33) & (hue < 66) & (value < 0.75) & (names != "brown")] = ""
    pale = (saturation < 0.14) | ((saturation < 0.27) & (hue > 160) & (hue < 260))  # cool greys are greys
    names[pale] = np.where(value[pale] > 0.86, "white", "gray")
    names[(value < 0.27) | ((value < 0.36) & (saturation < 0.5))] = "black"
    total = float(alpha.sum()) or 1.0
    weights = {colour: float(alpha[names == colour].sum()) / total for colour in COLOURS}
    return {c: w for c, w in sorted(weights.items(), key=lambda item: -item[1]) if w}


def turned(rgb: np.ndarray, degrees: float) -> np.ndarray:
    """The image with every hue turned; greys, black and white stay."""
    image = np.array(Image.fromarray(rgb).convert("HSV"))
    image[..., 0] = (image[..., 0].astype(int) + round(degrees * 255 / 360)) % 256
    return np.asarray(Image.fromarray(image, "HSV").convert("RGB"))


def main_colour(shares: dict[str, float]) -> str | None:
    """The colour that one would name: the largest, where it fills at least half of the image."""
    name, share = next(iter(shares.items()), ("", 0.0))
    return name if share >= 0.5 else None
