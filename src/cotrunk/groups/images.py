"""Read image files as a viewer shows them: upright, on white, in 8-bit RGB."""

from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from ..errors import CotrunkError

READER_VERSION = 2  # part of the names of caches, so that those of another version are not used
SIXTEEN_BITS = ("PNG", "PPM")  # formats whose 16-bit values Pillow stores as 32-bit integers


def read_image(path: Path) -> Image.Image:
    """Return the first frame of an image file as RGB (see `as_rgb`).

    Raises:
        Exception: one of Pillow's many types for a damaged file; call `unreadable` first.
    """
    with Image.open(path) as image:
        return as_rgb(image)


def read_scaled(path: Path, height: int, width: int) -> torch.Tensor:
    """Return an image as (3, height, width) in [-1, 1], cropped from its centre and scaled.

    Raises:
        CotrunkError: the file cannot be read.
    """
    try:
        image = read_image(path)
    except Exception as error:  # Pillow raises many types for a file that was damaged since
        raise CotrunkError(f"{path} cannot be read any more: make the groups again with cotrunk dataset.") from error
    # fit crops before it scales: a very long image scaled as a whole would take gigabytes
    values = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS), np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)


def unreadable(path: Path) -> str | None:
    """Return why an image file cannot be used, or None if it can."""
    try:
        if not path.is_file():
            return "there is no such file"
        read_image(path)  # decodes it, because the header does not show that a file is truncated
    except CotrunkError as error:
        return str(error)
    except Exception as error:  # a name too long, no permission, or Pillow's many types for a damaged file
        return f"it is not a readable image ({type(error).__name__})"
    return None


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, as a viewer shows it on a white page.

    It is rotated by its EXIF orientation, transparent parts are white, and 16-bit and floating-point grey is scaled to
    8 bits.

    Raises:
        CotrunkError: it is unknown which grey value is white.
    """
    image.load()  # some formats have their EXIF data after the pixels, and Pillow rotates TIFF here
    orientation = _orientation(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    rgb = Image.new("RGB", image.size)  # without the metadata of the file, some of which Pillow cannot write
    rgb.paste(image.convert("RGB"))
    rgb.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # viewers ignore broken EXIF data
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale a grey image of more than 8 bits to 8 bits; Pillow would clip values above 255.

    If the image marks one grey value as transparent, the result has an alpha channel.
    """
    values, white = np.asarray(image), 65535
    tags = getattr(image, "tag_v2", {})  # TIFF: Pillow does not rescale its values
    if image.mode == "F":
        white = 1
        if not (values.min() >= 0 and values.max() <= 1):  # also true for a NaN
            raise CotrunkError("its floating-point values are outside 0 to 1: save it with 8 or 16 bits")
    elif image.mode == "I" and image.format not in SIXTEEN_BITS:
        raise CotrunkError("it is unknown which of its 32-bit values is white: save it with 8 or 16 bits")
    elif tags.get(ExifTags.Base.BitsPerSample) == (12,):
        white = 4095
    scaled = np.round(values.astype(np.float64) * (255 / white)).clip(0, 255).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # zero is white
        scaled = 255 - scaled
    grey = Image.fromarray(scaled)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey
