"""What an image file says about itself: the text that web UIs write, and the recipe that `cotrunk redo` reads.

PNG files hold texts: `parameters` as web UIs write it, `cotrunk` with the recipe in JSON, and single facts. JPEG and
WebP files hold EXIF: `parameters` as UserComment, which is where web UIs put it, and the recipe as ImageDescription.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from .. import __version__
from ..errors import CotrunkError
from .output import JPEG_QUALITY, Output

SOFTWARE = f"cotrunk {__version__}"
RECIPE = "cotrunk"  # the key of the recipe in a PNG
UNICODE = b"UNICODE\0"  # how a UserComment says that UTF-16 follows
JPEG_EXIF = 65_000  # bytes: a JPEG file has room for 65,533
LARGEST_TEXT = 2**26  # bytes of the metadata of one image that are read


def parameters_text(prompt: str, negative: str | None, facts: Mapping[str, object]) -> str:
    """Return the text that web UIs write into their images: the prompts, then one line of facts.

    Args:
        facts: Steps, Sampler, "CFG scale", Seed, Size, Model, ...; None leaves one out.
    """
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in facts.items() if value is not None)
    return "\n".join([prompt, *([f"Negative prompt: {negative}"] if negative else []), line])


def _quoted(value: object) -> str:
    """Return a value of the line of facts, in quotes where its own commas or colons would end it."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def encoded(image: Any, output: Output, parameters: str, recipe: str, texts: Mapping[str, str]) -> bytes:
    """Return the content of an image file.

    Args:
        image: of Pillow.
        parameters, recipe: an empty text leaves it out.
        texts: single facts, for PNG only: the recipe holds them too.

    Raises:
        CotrunkError: the format cannot hold such an image.
    """
    options: dict[str, Any]
    if output.format == "png":
        options = {"pnginfo": _png_texts(parameters, recipe, texts)}
    else:
        options = {"exif": _exif(parameters, recipe, is_short=output.format == "jpeg")}
        if output.format == "jpeg":
            options |= {"quality": output.quality or JPEG_QUALITY, "subsampling": 0}
        elif output.quality is None:
            options |= {"lossless": True, "exact": True}  # exact: also under transparent pixels
        else:
            options |= {"quality": output.quality}
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=output.format.upper(), **options)
    except (OSError, ValueError, KeyError) as error:  # a mode or a size that the format does not have
        raise CotrunkError(
            f"An image of {image.size[0]}x{image.size[1]} in mode {image.mode} cannot be written as {output.format} "
            f"({error}): use the format png."
        ) from error
    return buffer.getvalue()


def _png_texts(parameters: str, recipe: str, texts: Mapping[str, str]) -> PngInfo:
    info = PngInfo()
    for name, value in {"parameters": parameters, **texts}.items():
        if value:
            if value.isascii():
                info.add_text(name, value)
            else:
                info.add_itxt(name, value)
    if recipe:
        info.add_itxt(RECIPE, recipe, zip=True)
    return info


def _exif(parameters: str, recipe: str, *, is_short: bool) -> bytes:
    comment = UNICODE + parameters.encode("utf-16-be")
    if is_short:  # leave out what does not fit
        comment = comment if len(comment) <= JPEG_EXIF else b""
        recipe = recipe if len(comment) + len(recipe) <= JPEG_EXIF else ""
    if not parameters and not recipe:
        return b""
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = SOFTWARE
    if parameters and comment:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    if recipe:
        exif[ExifTags.Base.ImageDescription] = recipe
    return exif.tobytes()


def read_recipe(path: Path) -> Any:
    """Return the recipe in an image file, as JSON values that are not checked.

    Raises:
        CotrunkError: it is not an image, or holds no recipe.
    """
    try:
        with Image.open(path, formats=("PNG", "WEBP", "JPEG")) as image:
            if image.format == "PNG":
                image.load()  # texts may come after the pixels
                found = getattr(image, "text", {}).get(RECIPE)
            else:
                found = image.getexif().get(ExifTags.Base.ImageDescription)
    except FileNotFoundError:
        raise CotrunkError(
            f"There is no file {path}: name an image that cotrunk generated, or the folder of a run."
        ) from None
    except Exception as error:  # Pillow raises many types for a damaged file
        raise CotrunkError(
            f"{path} is not a readable PNG, WebP or JPEG image: name one that cotrunk generated."
        ) from error
    if not isinstance(found, str) or len(found) > LARGEST_TEXT:
        raise CotrunkError(
            f"{path} holds no recipe of cotrunk: name the folder of its run with --images, or an image with its "
            "metadata (some editors and websites remove it)."
        )
    try:
        return json.loads(found)
    except (ValueError, RecursionError):
        raise CotrunkError(f"The recipe in {path} is damaged: name the folder of its run with --images.") from None
