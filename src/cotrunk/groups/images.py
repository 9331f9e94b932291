"""Images from users' files as they are meant to be seen: upright, on white, in 8-bit RGB."""

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ..errors import CotrunkError

WAY = 2  # of reading: what was made from images that were read in another way is made again
SIXTEEN_BITS = ("PNG", "PPM")  # formats whose 32-bit integers in Pillow hold 16-bit values


def read_image(path: Path) -> Image.Image:
    """The first frame of an image file, as `as_rgb` gives it.

    Raises:
        Exception: whatever Pillow raises for a broken file; ask `unreadable` first, or name the file.
    """
    with Image.open(path) as image:
        return as_rgb(image)


def unreadable(path: Path) -> str | None:
    """Why an image file cannot be used; None if it can."""
    try:
        if not path.is_file():
            return "there is no such file"
        read_image(path)  # all of it: the header alone does not show that a file is cut off
    except CotrunkError as error:
        return str(error)
    except Exception as error:  # a name too long, no permission, whatever a broken file makes Pillow say
        return f"it is not a readable picture ({type(error).__name__})"
    return None


def as_rgb(image: Image.Image) -> Image.Image:
    """An image as a viewer shows it on a white page: turned as its EXIF orientation says, transparent parts white,
    16-bit and floating-point grey scaled to 8 bits.

    Raises:
        CotrunkError: grey values of which none is known to be white.
    """
    image.load()  # some formats give their EXIF data after the pixels, and TIFF turns itself
    orientation = _orientation(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    picture = Image.new("RGB", image.size)  # without the notes of the file, some of which Pillow cannot write again
    picture.paste(image.convert("RGB"))
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF data turn nothing, here as in every viewer
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits in 8 bits, with transparency where one grey value of it is transparent. Pillow
    itself cuts off what is above 255."""
    values, white = np.asarray(image), 65535
    tags = getattr(image, "tag_v2", {})  # of TIFF, which keeps its values as they are
    if image.mode == "F":
        white = 1
        if not (values.min() >= 0 and values.max() <= 1):  # a NaN is neither
            raise CotrunkError("its floating-point values go beyond 0 to 1: save it with 8 or 16 bits")
    elif image.mode == "I" and image.format not in SIXTEEN_BITS:
        raise CotrunkError("its 32-bit values do not say which of them is white: save it with 8 or 16 bits")
    elif tags.get(ExifTags.Base.BitsPerSample) == (12,):
        white = 4095
    scaled = np.round(values.astype(np.float64) * (255 / white)).clip(0, 255).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
        scaled = 255 - scaled
    grey = Image.fromarray(scaled)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey
