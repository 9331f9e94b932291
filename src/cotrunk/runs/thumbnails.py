"""Small copies of images, as data URIs inside the page."""

import base64
import io
from pathlib import Path

from PIL import Image

SIDE = 192  # longest side of a thumbnail, in pixels
PNG_BYTES = 40_000  # largest PNG inside the page; a larger one becomes a JPEG


def thumbnail(path: Path) -> tuple[str, int, int] | None:
    """Return an image as data URI, width and height; None if it is unreadable, so that the page survives a bad file."""
    try:
        if not path.is_file():  # reading a pipe would never end
            return None
        with Image.open(path) as opened:
            image = opened.convert("RGBA" if opened.has_transparency_data else "RGB")
    except Exception:  # pillow raises half a dozen classes on damaged files
        return None
    is_large = max(image.size) > SIDE
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    # Small images keep every pixel unless that takes much room. In a shrunken image, what JPEG drops is not visible.
    buffer, kind = io.BytesIO(), "png"
    image.save(buffer, kind)
    if image.mode == "RGB" and (is_large or buffer.tell() > PNG_BYTES):
        buffer, kind = io.BytesIO(), "jpeg"
        image.save(buffer, kind, quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind};base64,{data}", *image.size


def fit(side: int, box: int) -> int:
    """Return the longest side on the page. Small images grow by whole factors only, which keeps their pixels even."""
    return min(box, side * max(1, box // side))
