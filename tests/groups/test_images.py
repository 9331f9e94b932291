"""Images of users are read as a viewer shows them: upright, on white, in 8 bits."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from cotrunk.groups.captions import Pair
from cotrunk.groups.dataset import images_of
from cotrunk.groups.images import read_image, read_scaled, unreadable

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def upright() -> Image.Image:
    """Return an image, red above white, twice as high as wide, with four different corners."""
    image = Image.new("RGB", (16, 32), WHITE)
    image.paste(RED, (0, 0, 16, 16))
    image.paste(BLACK, (0, 0, 4, 4))
    image.paste(BLACK, (0, 24, 4, 32))
    return image


def stored(orientation: int) -> Image.Image:
    """Return the pixels of a file that a viewer shows as `upright`, given its orientation."""
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    turns |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    return upright().transpose(Image.Transpose[turns[orientation]]) if orientation in turns else upright()


@pytest.mark.parametrize("form", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 do not exist
def test_an_image_is_rotated_upright(tmp_path: Path, form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"a.{form}"
    how: dict[str, Any] = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(form, {})
    stored(orientation).save(path, exif=exif, **how)
    read = read_image(path)
    assert read.size == (16, 32)
    assert np.abs(np.asarray(read, int) - np.asarray(upright(), int)).mean() < 8  # JPEG is lossy
    cut = read_scaled(path, 32, 16)  # the upright image is cropped
    assert cut[:, 4, 8] == pytest.approx([1, -1, -1], abs=0.1)
    assert cut[:, 28, 8] == pytest.approx([1, 1, 1], abs=0.1)


def test_broken_exif_data_is_ignored(tmp_path: Path) -> None:
    upright().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0nonsense")
    assert read_image(tmp_path / "a.jpg").size == (16, 32)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(colour: int, depth: int, pixel: bytes, transparent: bytes = b"") -> bytes:
    """Return a PNG of one pixel, in forms that Pillow does not write."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, depth, colour, 0, 0, 0))
    key = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + head + key + chunk(b"IDAT", zlib.compress(b"\0" + pixel)) + chunk(b"IEND", b"")


def shorts(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def saved(image: Image.Image, form: str, **more: Any) -> Callable[[Path], None]:
    return lambda path: image.save(path, form, **more)


def palette() -> Image.Image:
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return image


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.array([[value]], np.uint16))


def tags(**values: int) -> ImageFileDirectory_v2:
    own = ImageFileDirectory_v2()
    for name, value in values.items():
        own[ExifTags.Base[name]] = value
    return own


FILES: dict[str, tuple[bytes | Callable[[Path], None], tuple[int, int, int]]] = {
    "nothing but transparency": (saved(Image.new("RGBA", (1, 1), (0, 0, 0, 0)), "PNG"), WHITE),
    "half transparent": (saved(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "PNG"), (127, 127, 127)),
    "opaque": (saved(Image.new("RGBA", (1, 1), (255, 0, 0, 255)), "PNG"), RED),
    "transparent grey": (saved(Image.new("LA", (1, 1), (0, 0)), "PNG"), WHITE),
    "transparent WebP": (saved(Image.new("RGBA", (1, 1), (0, 0, 0, 0)), "WEBP", lossless=True), WHITE),
    "palette": (saved(palette(), "PNG"), RED),
    "palette, transparent": (saved(palette(), "PNG", transparency=1), WHITE),
    "palette, another colour transparent": (saved(palette(), "PNG", transparency=0), RED),
    "palette, half transparent": (saved(palette(), "PNG", transparency=bytes([0, 128])), (255, 127, 127)),
    "GIF, transparent": (saved(palette(), "GIF", transparency=1), WHITE),
    "a transparent colour": (png(2, 8, bytes(RED), shorts(*RED)), WHITE),
    "another transparent colour": (png(2, 8, bytes(RED), shorts(*BLACK)), RED),
    "16-bit colour": (png(2, 16, shorts(65535, 0, 0)), RED),
    "16-bit grey": (png(0, 16, shorts(0x8080)), (128, 128, 128)),
    "16-bit white": (png(0, 16, shorts(65535)), WHITE),
    "16-bit grey, dark": (png(0, 16, shorts(300)), (1, 1, 1)),
    "16-bit grey, transparent": (png(0, 16, shorts(0x1234), shorts(0x1234)), WHITE),
    "16-bit grey, a near value transparent": (png(0, 16, shorts(0x1234), shorts(0x1235)), (18, 18, 18)),
    "16-bit grey with alpha": (png(4, 16, shorts(0, 0)), WHITE),
    "16-bit colour with alpha": (png(6, 16, shorts(65535, 0, 0, 65535)), RED),
    "16-bit TIFF": (saved(grey16(0x8080), "TIFF"), (128, 128, 128)),
    "16-bit TIFF, white is zero": (saved(grey16(0), "TIFF", tiffinfo=tags(PhotometricInterpretation=0)), WHITE),
    "16-bit PGM": (b"P5 1 1 65535\n" + shorts(0x8080), (128, 128, 128)),
    "10-bit PGM": (b"P5 1 1 1023\n" + shorts(1023), WHITE),
    "floating-point TIFF": (saved(Image.new("F", (1, 1), 0.5), "TIFF"), (128, 128, 128)),
    "one bit": (saved(Image.new("1", (1, 1), 1), "PNG"), WHITE),
    "CMYK JPEG": (saved(Image.new("CMYK", (1, 1), (0, 0, 0, 0)), "JPEG"), WHITE),
    "CMYK TIFF": (saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), RED),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_image_has_the_colours_of_a_viewer(tmp_path: Path, name: str) -> None:
    content, expected = FILES[name]
    path = tmp_path / "a.image"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    read = read_image(path)
    assert read.mode == "RGB"
    assert np.abs(np.array(read.getpixel((0, 0))) - expected).max() <= 1
    assert unreadable(path) is None
    # both for training and for evaluation
    assert torch.equal(read_scaled(path, 8, 8)[:, 4, 4], torch.tensor(read.getpixel((0, 0))) / 127.5 - 1)
    assert images_of([[Pair("", path)]], 8, 8)[0][0, :, 4, 4].tolist() == list(read.getpixel((0, 0)))


def test_a_twelve_bit_tiff_is_not_dark(tmp_path: Path) -> None:
    """Pillow reads its values without scaling, and cannot write such files."""
    entries = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    pixels = bytes([0xFF, 0xF0, 0x00])  # 4095 and 0
    content = b"II*\0" + struct.pack("<I", 12) + pixels + b"\0" + struct.pack("<H", len(entries)) + packed + bytes(4)
    (tmp_path / "a.tif").write_bytes(content)
    assert np.asarray(read_image(tmp_path / "a.tif"))[0].tolist() == [[255] * 3, [0] * 3]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("I", (1, 1), 200), "it is unknown which of its 32-bit values is white"),
        (Image.new("F", (1, 1), 200.0), "its floating-point values are outside 0 to 1"),
        (Image.new("F", (1, 1), float("nan")), "its floating-point values are outside 0 to 1"),
    ],
)
def test_an_image_with_unknown_white_is_reported(tmp_path: Path, image: Image.Image, message: str) -> None:
    """A guessed white would give an image that looks almost right."""
    image.save(tmp_path / "a.tif")
    assert (unreadable(tmp_path / "a.tif") or "").startswith(message)


def test_a_truncated_image_is_reported(tmp_path: Path) -> None:
    upright().resize((200, 200)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    assert unreadable(tmp_path / "a.png") == "it is not a readable image (OSError)"


def test_a_very_long_image_is_cropped_before_it_is_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (1, 5000), RED).save(tmp_path / "a.png")
    sizes, resize = list[Any](), Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda self, size, *more, **named: sizes.append(size) or resize(self, size, *more, **named),
    )
    assert read_scaled(tmp_path / "a.png", 64, 64).shape == (3, 64, 64)
    assert sizes == [(64, 64)]


def test_images_are_cropped_from_their_centre(tmp_path: Path) -> None:
    image = Image.new("RGB", (96, 32), WHITE)
    image.paste(RED, (32, 0, 64, 32))
    image.save(tmp_path / "a.png")
    assert ImageOps.fit(read_image(tmp_path / "a.png"), (32, 32)).getpixel((16, 16)) == RED
    assert read_scaled(tmp_path / "a.png", 32, 32)[1].mean() == pytest.approx(-1, abs=0.02)
