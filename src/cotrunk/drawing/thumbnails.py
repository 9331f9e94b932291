"""Small copies of images: as data URIs inside a page, or as files next to it."""

import base64
import io

from PIL import Image

SIDE = 192  # longest side of a thumbnail, in pixels
FILE_QUALITY = 80  # of thumbnails in files: about 5 KB each
PNG_BYTES = 40_000  # largest PNG inside the page; a larger one becomes a JPEG


def thumbnail(content: bytes | None) -> tuple[str, int, int] | None:
    """Return the data URI, width and height of a small copy of a file; None if that is not a readable image."""
    if content is None:
        return None
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.load()
            return thumbnail_of(opened)
    except Exception:  # Pillow raises many types for a damaged file
        return None


def thumbnail_of(image: Image.Image) -> tuple[str, int, int]:
    """Return the data URI, width and height of a small copy of an image."""
    small = image.convert("RGBA" if image.has_transparency_data else "RGB")  # a copy
    is_large = max(small.size) > SIDE
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    # Small images stay exact unless their PNG is large. In a scaled-down image, the losses of JPEG are not visible.
    buffer, kind = io.BytesIO(), "png"
    small.save(buffer, kind)
    if small.mode == "RGB" and (is_large or buffer.tell() > PNG_BYTES):
        buffer, kind = io.BytesIO(), "jpeg"
        small.save(buffer, kind, quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind};base64,{data}", *small.size


def small_file(image: Image.Image) -> bytes:
    """Return the content of a WebP file with a small copy of an image."""
    small = image.convert("RGBA" if image.has_transparency_data else "RGB")  # a copy
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "webp", quality=FILE_QUALITY)
    return buffer.getvalue()


def fit(side: int, box: int) -> int:
    """Return the longest side on the page. Small images are enlarged by whole factors, which keeps pixels square."""
    return min(box, side * max(1, box // side))
