"""The further pages of a large run: all images in the order of their numbers, some hundreds on each page.

    DIR/pages/images-001.html  the first images, and so on
    DIR/pages/marked-001.html  those that failed or were flagged, if there are any

They have no scripts, as the first page has none. Their thumbnails are files, which a browser loads when they come into
view. Pages of an earlier report are removed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from string import Template
from urllib.parse import quote

from ..drawing.thumbnails import fit
from ..drawing.wording import amount, count
from ..files import write_bytes
from .large import thumbnail_file
from .page_parts import ALONE_BOX, IMAGE_SOURCES, Page, name_of, prompt_text, section, style

FOLDER = "pages"
SHEET = 500  # images on a page: one loads at once, and 100,000 images are 200 pages
NEAR = 2  # pages before and after one that it links to


@dataclass(frozen=True)
class Sheet:
    """A further page: its address relative to the first page, and the images that it shows."""

    address: str
    images: Sequence[int]

    @property
    def file(self) -> str:
        """Its name, by which other further pages link to it."""
        return self.address.removeprefix(f"{FOLDER}/")


def write_sheets(page: Page) -> str:
    """Write the further pages, and return the section of the first page that links to them."""
    images = page.report.images
    every = _sheets("images", range(len(images)))
    marked = _sheets("marked", [i for i, image in enumerate(images) if image.failed or image.flagged])
    (page.folder / FOLDER).mkdir(exist_ok=True)
    for sheets, what in ((every, "Images"), (marked, "Failed or flagged: images")):
        for number, sheet in enumerate(sheets):
            title = f"{what} {_range(sheet)} of {len(images):,}"
            text = _text(page, title, sheet, _links(sheets, number))
            write_bytes(page.folder / sheet.address, lambda out, text=text: out.write(text))  # type: ignore[misc]
    written = {sheet.file for sheet in (*every, *marked)}
    for file in (page.folder / FOLDER).glob("*-*.html"):
        if file.name not in written and file.name.startswith(("images-", "marked-")):
            file.unlink()
    links = "".join(f'<li><a href="{sheet.address}">{_range(sheet)}</a></li>' for sheet in every)
    lead = f"{count(len(images), 'image')} in the order of their numbers, {SHEET} on a page."
    if marked:
        number = sum(len(sheet.images) for sheet in marked)
        lead += f' <a href="{marked[0].address}">{count(number, "image")} failed or were flagged.</a>'
    return f'<div id="all">{section("All images", lead, f"""<ol class="sheets">{links}</ol>""")}</div>'


def marked_address() -> str:
    """Return the address of the page of images that failed or were flagged."""
    return _address("marked", 0)


def _address(kind: str, number: int) -> str:
    return f"{FOLDER}/{kind}-{number + 1:03}.html"


def _sheets(kind: str, images: Sequence[int]) -> list[Sheet]:
    starts = range(0, len(images), SHEET)
    return [Sheet(_address(kind, number), images[start : start + SHEET]) for number, start in enumerate(starts)]


def _range(sheet: Sheet) -> str:
    return f"{sheet.images[0]:,} to {sheet.images[-1]:,}"


def _text(page: Page, title: str, sheet: Sheet, links: str) -> bytes:
    template = resources.files("cotrunk.runs").joinpath("sheet.html").read_text(encoding="utf-8")
    box = fit(page.side, ALONE_BOX)
    values = {
        "title": title,
        "style": style(),
        "image_sources": IMAGE_SOURCES,
        "links": links,
        "box": box,
        "grown": " grown" if box > page.side else "",
        "tiles": "\n".join(_tile(page, index) for index in sheet.images),
    }
    return Template(template).substitute(values).encode("utf-8", "replace")


def _links(sheets: Sequence[Sheet], number: int) -> str:
    """Return links from one page to the pages next to it, and to the first and the last one."""
    near = {0, len(sheets) - 1, *range(number - NEAR, number + NEAR + 1)}
    found, before = [], -1
    for other in sorted(near.intersection(range(len(sheets)))):
        if other > before + 1:
            found.append("<span>…</span>")
        label, before = f"{sheets[other].images[0]:,}", other
        if other == number:
            found.append(f'<b aria-current="page">{label}</b>')
        else:
            found.append(f'<a href="{sheets[other].file}">{label}</a>')
    if number > 0:
        found.insert(0, f'<a rel="prev" href="{sheets[number - 1].file}">Previous</a>')
    if number < len(sheets) - 1:
        found.append(f'<a rel="next" href="{sheets[number + 1].file}">Next</a>')
    return "".join(found)


def _tile(page: Page, index: int) -> str:
    image = page.image(index)
    link = f"../{escape(quote(image.file))}"
    if image.failed:
        shown = '<div class="lost">failed</div>'
    elif image.flagged:
        shown = f'<div class="lost"><a href="{link}">flagged</a></div>'
    elif (source := _small(page, image.file)) is None:
        shown = '<div class="lost">missing</div>'
    else:
        address = f"../{escape(quote(source))}"
        shown = f'<a href="{link}"><img src="{address}" alt="image {index:,}" loading="lazy"></a>'
    again = " · generated again" if image.retries else ""
    name = name_of(image).rpartition("/")[2]
    label = f"{name} · {amount(image.rows)} rows{again}"
    return f'<li class="tile" id="i{index}">{shown}{prompt_text(page, index)}<p class="number">{label}</p></li>'


def _small(page: Page, file: str) -> str | None:
    """Return the thumbnail of an image, the image itself if it has none, or None if it is missing."""
    return next((name for name in (thumbnail_file(file), file) if page.listing.has(name)), None)
