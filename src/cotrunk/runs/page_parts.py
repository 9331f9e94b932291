"""What every section of the page is made of: linked thumbnails, prompts, captions."""

import io
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from ..drawing.thumbnails import SIDE, fit, small_file, thumbnail
from ..drawing.tree_svg import strip_svg
from ..drawing.wording import amount, safe
from ..errors import CotrunkError
from ..storage.files import StoredFiles
from ..storage.listing import Listing
from .arm import Compared
from .large import is_large, thumbnail_file
from .report import ImageReport, RunReport

IMAGE_SOURCES = "'self' file:"  # where the pages of a large run may load images from: their own folder
ALONE_BOX = 104  # side of the thumbnails of images that share nothing, in pixels
PROMPT_LENGTH = 5_000  # characters of a prompt on the page; run.json has the rest
LONG_PROMPT = 90  # characters; a longer prompt is folded to four lines and opens on a click
ALT_LENGTH = 160  # characters of a prompt in the alternative text of an image


@dataclass(frozen=True)
class Page:
    """A report, and what its page is made from.

    The thumbnails of a large run are files, those of another run are inside the page.

    Attributes:
        report: of the run.
        folder: of the page.
        stored: where the images are.
        listing: which of them are there.
        side: the longest side of the thumbnails in pixels.
    """

    report: RunReport
    folder: Path
    stored: StoredFiles
    listing: Listing
    side: int = SIDE

    @property
    def is_large(self) -> bool:
        """Return whether the run is a large one."""
        return is_large(len(self.report.images))

    def thumbnail(self, file: str) -> tuple[str, int, int] | None:
        """Return the address, width and height of the thumbnail of a file; None if the image is unreadable."""
        return self.linked_thumbnail(file) if self.is_large else self.inline_thumbnail(file)

    def inline_thumbnail(self, file: str) -> tuple[str, int, int] | None:
        """Return the data URI, width and height of a small copy; None if the image is unreadable."""
        return thumbnail(self.read(file))

    def linked_thumbnail(self, file: str) -> tuple[str, int, int] | None:
        """Return the address, width and height of a thumbnail that is a file, which is made unless it exists.

        An image that is small enough is its own thumbnail.
        """
        name = thumbnail_file(file)
        content = self.read(name)
        try:
            if content is None:
                if (image := self.read(file)) is None:
                    return None
                with Image.open(io.BytesIO(image)) as opened:
                    if max(opened.size) <= SIDE:
                        return escape(quote(file)), *opened.size
                    content = small_file(opened)
                self.stored.put(name, content)
            with Image.open(io.BytesIO(content)) as opened:
                return escape(quote(name)), *opened.size
        except CotrunkError:
            raise
        except Exception:  # Pillow raises many types for a damaged file
            return None

    def read(self, file: str) -> bytes | None:
        """Return the content of a file; None if it is not there, or is a pipe, whose reading would never end."""
        return self.stored.get(file) if self.listing.has(file) else None

    def image(self, index: int) -> ImageReport:
        """Return the report of an image."""
        return self.report.images[index]

    def prompt(self, index: int) -> str:
        """Return the prompt of an image."""
        return self.report.job.prompts[self.image(index).prompt].prompt

    @property
    def has_strips(self) -> bool:
        """Return whether images may differ in the steps at which their output was computed."""
        report = self.report
        has_trunks = any(group.trunk is not None for group in report.groups)
        return has_trunks or report.pipeline.skipping is not None or report.job.settings.guidance_interval is not None


def section(title: str, lead: str, body: str) -> str:
    """Return a section with a heading."""
    return f'<section class="part"><h2>{title}</h2><p class="quiet">{lead}</p>{body}</section>'


def linked_image(page: Page, index: int, box: int, way: str = "") -> str:
    """Return the linked thumbnail of an image, or a placeholder where there is none. `way` says how it was made."""
    image = page.image(index)
    return _linked(page, index, image.file, box, way, image.failed, image.flagged)


def compared_image(page: Page, index: int, box: int, arm: Compared, way: str) -> str:
    """Return the linked thumbnail of the same image from another arm. `way` says how it was made."""
    comparison = page.report.compare[arm]
    file = f"{comparison.folder}/{page.image(index).file.removeprefix('images/')}"
    return _linked(page, index, file, box, way, False, index in comparison.flagged)


def _linked(page: Page, index: int, file: str, box: int, way: str, failed: bool, flagged: bool) -> str:
    found = None if failed else page.thumbnail(file)
    if flagged and found is not None:
        title = "The model's safety checker put a black image here."
        return f'<div class="lost"><a href="{escape(quote(file))}" title="{title}">flagged</a></div>'
    if found is None:
        return f'<div class="lost">{"failed" if failed else "missing"}</div>'
    uri, width, height = found
    side = max(width, height)
    factor = fit(side, box) / side
    prompt = page.prompt(index) or "empty prompt"
    alt = prompt if len(prompt) <= ALT_LENGTH else f"{prompt[: ALT_LENGTH - 1]}…"
    alt += f" ({way})" if way else ""
    grown = ' class="grown"' if factor > 1 else ""
    lazy = ' loading="lazy"' if page.is_large else ""
    size = f'width="{width * factor:.0f}" height="{height * factor:.0f}"'
    return (
        f'<a href="{escape(quote(file))}" title="seed {page.image(index).seed}">'
        f'<img src="{uri}" {size} alt="{escape(alt)}"{grown}{lazy}></a>'
    )


def name_of(image: ImageReport) -> str:
    """Return the name of an image's file below the folder of the images, without its suffix."""
    return safe(image.file.removeprefix("images/").removesuffix(Path(image.file).suffix))


def style() -> str:
    """Return the style sheet of all pages."""
    return resources.files("cotrunk.runs").joinpath("page.css").read_text(encoding="utf-8")


def caption(page: Page, index: int) -> str:
    """Return the prompt of an image, the strip of its steps, its number and its rows."""
    image = page.image(index)
    label = f"{name_of(image)} · {amount(image.rows)} rows"
    label += " · generated again" if image.retries else ""
    strip = strip_svg(image.steps) if page.has_strips and image.steps else ""
    return f'{prompt_text(page, index)}{strip}<p class="number">{label}</p>'


def prompt_text(page: Page, index: int) -> str:
    """Return the prompt of an image, folded if it is long."""
    text = page.prompt(index)
    if len(text) > PROMPT_LENGTH:
        text = f"{text[:PROMPT_LENGTH]}… ({len(text) - PROMPT_LENGTH:,} more characters are in run.json)"
    if len(text) > LONG_PROMPT:
        return f'<details class="prompt"><summary dir="auto">{escape(text)}</summary></details>'
    if not text.strip():
        return '<p class="prompt quiet">(empty prompt)</p>'
    return f'<p class="prompt" dir="auto">{escape(text)}</p>'
