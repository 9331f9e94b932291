"""The page people look at: one HTML file from a run's numbers and pictures, with no script and no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from ..files import write_bytes
from .tree_svg import axis, branch_steps, leaf_order, pruned, strip_svg, tree_svg

THUMBNAIL = 192  # longest side of an inlined picture, in pixels
# More pictures make a page slow to open; the files stay in images/.
PAGE_IMAGES = 400
GROUP_IMAGES = 40  # of one group, which would leave no room for others
COMPARED_PROMPTS = 60
COMPARED_IMAGES = 120  # each in three ways
PNG_BYTES = 40_000  # of a picture that is inlined as it is; a larger one as JPEG
PROMPT_LENGTH = 5_000  # characters; run.json has the rest
STRIP_HELP = """<li>The strip beside a picture runs over its steps: green where the denoiser ran for its whole group,
grey where it ran for this image alone, empty where its output was predicted from earlier ones. Half as high: without
guidance, one row instead of two.</li>"""
NAMED_FORKS = 12  # branch steps of a group that are written out
LONG_PROMPT = 90  # characters; longer ones are folded to four lines and open on a click


def write_page(run: dict[str, Any], folder: Path) -> Path:
    """Write `folder/index.html` from the content of `run.json` and the pictures beside it."""
    thumbnails = (_thumbnail(folder / image["file"]) for image in run["images"])
    # A run's pictures are equally large: the first that opens tells.
    page = _Page(run, folder, next((max(found[1:]) for found in thumbnails if found), THUMBNAIL))
    groups = _shown(run["groups"])
    template = resources.files("cotrunk.runs").joinpath("page.html").read_text(encoding="utf-8")
    text = Template(template).substitute(_header(run, groups), sections="\n".join(_sections(page, groups)))
    path = folder / "index.html"
    # A prompt can hold a lone surrogate (JSON allows it, UTF-8 does not): it must not cost the page.
    write_bytes(path, lambda file: file.write(text.encode("utf-8", "replace")))
    return path


@dataclass(frozen=True)
class _Page:
    """What every part of the page needs."""

    run: dict[str, Any]
    folder: Path
    side: int  # longest side of the run's thumbnails

    @property
    def flagged(self) -> dict[str, list[int]]:
        """Folder of an arm -> its images that a safety checker blackened."""
        return {arm["folder"]: arm["flagged"] for arm in self.run.get("compare", {}).values()}

    def image(self, index: int) -> dict[str, Any]:
        return self.run["images"][index]

    def prompt(self, index: int) -> str:
        return self.run["prompts"][self.image(index)["prompt"]]


def _shown(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups the page has room for, largest saving first, each with the images that it has room for (`shown`)."""
    shown: list[dict[str, Any]] = []
    room = PAGE_IMAGES
    for group in sorted(groups, key=lambda group: group["rows"]["used"] - group["rows"]["independent"]):
        order = leaf_order(group["tree"])
        count = min(len(order), GROUP_IMAGES)
        if count <= room:
            # evenly over the tree, so that every part of it is seen
            shown.append(group | {"shown": [order[i * len(order) // count] for i in range(count)]})
            room -= count
    return shown


# The header: what was run, what it saved.


def _header(run: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, str]:
    """The values of the template's header and footer, escaped."""
    rows, seconds = run["rows"], run["seconds"]
    used, independent = _number(rows["used"]), _number(rows["independent"])
    claim = f"{_count(len(run['images']), 'image')} for {used} denoiser rows"
    saved = "nothing saved"
    if rows["saving"] > 0:
        claim += f" instead of {independent}"
        saved = f"saved {_percent(rows['saving'])}"
    steps = str(run["steps"])
    if run["timesteps"] != run["steps"]:
        steps += f" ({run['timesteps']} denoiser evaluations)"
    denoise, total = _duration(seconds["denoise"]), _duration(seconds["total"])
    fragments = {
        "skipping": _skipping_facts(run),
        "strip_help": STRIP_HELP if _has_strips(run) else "",
        "notes": "".join(f'<p class="note">{note}</p>' for note in _notes(run, groups)),
    }
    values = {
        "title": f"cotrunk: {claim}, {saved}",
        "mood": "" if rows["saving"] > 0 else " nothing",
        "claim": claim,
        "saved": saved,
        "lead": f"Denoising took {denoise}; the whole run took {total}.{_spared(rows['spared'])}",
        "used": used,
        "independent": independent,
        "spared": _number(max(rows["independent"] - rows["used"], 0)),
        "fill": f"{100 * min(rows['used'] / max(rows['independent'], 1), 1):.2f}",
        "steps": steps,
        "share": _percent(run["share"]),
        "versions": _listed([f"{name} {number}" for name, number in run["versions"].items()]),
    }
    values |= {name: run[name] for name in ("model", "scheduler", "guidance_scale", "mode", "similarity", "seed")}
    return {name: _safe(value) for name, value in values.items()} | fragments


def _spared(spared: dict[str, int]) -> str:
    """How many rows each way of saving saved; nothing where there was only sharing."""
    if not spared["skipping"] and not spared["guidance"]:
        return ""
    ways = {"sharing": "sharing", "skipping": "skipping", "guidance": "steps without guidance"}
    parts = [f"{_number(count)} by {ways[name]}" for name, count in spared.items() if count]
    return f" Rows saved: {_listed(parts)}."


def _skipping_facts(run: dict[str, Any]) -> str:
    facts = {}
    if run["tolerance"] is not None:
        facts["Skipping tolerance"] = _safe(run["tolerance"])
    if run["guidance_interval"] is not None:
        start, stop = run["guidance_interval"]
        facts["Guided between"] = f"{_percent(start)} and {_percent(stop)} of the steps"
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())


def _has_strips(run: dict[str, Any]) -> bool:
    return run["tolerance"] is not None or run["guidance_interval"] is not None


def _notes(run: dict[str, Any], groups: list[dict[str, Any]]) -> Iterator[str]:
    """What must be said plainly before anything else."""
    images, saving = len(run["images"]), run["rows"]["saving"]
    if run["status"] not in ("done", "failed images", "flagged images"):
        yield f"This run is not complete (status: {_safe(run['status'])})."
    if flagged := sum(image["flagged"] for image in run["images"]):
        yield (
            f"The model's safety checker put a black picture in place of {_count(flagged, 'image')}, marked as flagged "
            "below. Another prompt or seed may pass it."
        )
    if failed := sum(image["failed"] for image in run["images"]):
        yield f"{_count(failed, 'image')} failed and {'is' if failed == 1 else 'are'} marked so below."
    partners = sum(len(group["images"]) for group in run["groups"] if len(group["images"]) > 1)
    if why := run["why_nothing_shared"]:
        yield f"Each image was made on its own: {_safe(why)}."
    elif saving < 0.05:
        yield f"Little was shared: {partners} of {images} images had a similar enough prompt to share with."
    shown = sum(len(group["shown"]) for group in groups)
    if shown < images:
        yield (
            f"This page shows {shown:,} of {images:,} images, the groups with the largest saving first. "
            f'The other {images - shown:,} are left out; their files are in <a href="images/">images/</a>.'
        )


# The groups: a tree each, then the images that share with nobody.


def _sections(page: _Page, groups: list[dict[str, Any]]) -> Iterator[str]:
    shared = [group for group in groups if len(group["images"]) > 1]
    if shared:
        lead = "Largest saving first. A green line is computed once for all the images it leads to."
        cards = [_group(page, group, number) for number, group in enumerate(shared, start=1)]
        yield _section("Groups", lead, f'<div class="cards">{"".join(cards)}</div>')
    alone = [index for group in groups if len(group["images"]) == 1 for index in group["shown"]]
    if alone:
        lead = f"{_count(len(alone), 'image')} that shared no step."
        box = _fit(page.side, 104)
        tiles = [f'<li class="tile">{_picture(page, i, box)}{_words(page, i)}</li>' for i in alone]
        yield _section("Alone", lead, f'<ol class="gallery" style="--box:{box}px">{"".join(tiles)}</ol>')
    if page.run.get("compare"):
        yield _compare(page)


def _group(page: _Page, group: dict[str, Any], number: int) -> str:
    rows, timesteps, order = group["rows"], page.run["timesteps"], group["shown"]
    tree, forks, images = pruned(group["tree"], set(order)), sorted(branch_steps(group["tree"])), len(group["images"])
    # Many leaves get smaller thumbnails, so that a tree still fits a screen or two.
    box = _fit(page.side, 96 if len(order) <= 8 else 72 if len(order) <= 16 else 48)
    leaves = [
        f'<li><div class="picture">{_picture(page, index, box)}</div>'
        f'<div class="words">{_words(page, index)}</div></li>'
        for index in order
    ]
    unit = "step" if timesteps == page.run["steps"] else "denoiser evaluation"
    named = [str(step) for step in forks[:NAMED_FORKS]]
    if len(forks) > len(named):
        named.append(f"{len(forks) - len(named)} more")
    where = f"{unit}{'s' if len(forks) > 1 else ''} {_listed(named)}"
    drawing = tree_svg(tree, order, timesteps, f"{images:,} images share a trunk that branches at {where}")
    spared = f"{_number(rows['independent'] - rows['used'])} of {_number(rows['independent'])} rows saved"
    facts = f"Branches at {where} of {timesteps}. Smallest similarity {group['similarity']:.2f}."
    if len(order) < images:
        facts += f" {len(order)} of its images are shown."
    return f"""<article class="card{" wide" if len(order) > 8 else ""}">
<header><h3>Group {number}: {images:,} images</h3><p class="saved">{spared}</p>
<p class="quiet">{facts}</p></header>
<div class="tree" style="--box:{box}px"><div class="drawing">{drawing}</div>
<ol class="leaves">{"".join(leaves)}</ol>{axis(forks, timesteps, unit)}</div></article>"""


# The comparison: every picture beside its two rivals.


def _compare(page: _Page) -> str:
    run, other = page.run, page.run["compare"]
    own = {"steps": run["steps"], "rows": run["rows"]["used"], "seconds": run["seconds"], "folder": ""}
    arms = [
        ("Shared (this run)", "shared", own),
        ("Independent, same noise", "independent", other["independent"]),
        ("Independent, equal cost", "equal cost", other["equal_cost"]),
    ]
    columns = ("Way", "Steps", "Rows", "Seconds, denoising")
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    table = "".join(
        f'<tr><th scope="row">{title}</th><td>{_safe(arm["steps"])}</td><td>{_number(arm["rows"])}</td>'
        f"<td>{arm['seconds']['denoise']:,.1f}</td></tr>"
        for title, _, arm in arms
    )
    images = run["images"]
    prompts = sorted({image["prompt"] for image in images})
    kept = set(prompts[:COMPARED_PROMPTS])
    order = sorted(range(len(images)), key=lambda index: images[index]["prompt"])
    order = [index for index in order if images[index]["prompt"] in kept][:COMPARED_IMAGES]
    box = _fit(page.side, 160)
    trios = []
    for index in order:
        figures = "".join(
            f"<figure>{_picture(page, index, box, arm['folder'], name)}<figcaption>{name}</figcaption></figure>"
            for _, name, arm in arms
        )
        three = f'<div class="three">{figures}</div>'
        trios.append(f'<article class="card trio">{_prompt(page, index)}{three}</article>')
    lead = (
        "The same prompts made three ways. Independent images start from the same noise as the shared ones; "
        "at equal cost they get only about as many rows as sharing used, by taking fewer steps."
    )
    if len(kept) < len(prompts):
        lead += f" The first {len(kept)} of {len(prompts)} prompts are shown."
    elif len(order) < len(images):
        lead += f" The first {len(order)} of {len(images)} images are shown."
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{table}</tbody></table>"
    body = f'<div class="scroll">{table}</div><div class="cards" style="--box:{box}px">{"".join(trios)}</div>'
    return _section("Compare", lead, body)


# Pictures.


def _picture(page: _Page, index: int, box: int, arm: str = "", caption: str = "") -> str:
    """A linked thumbnail of an image, or of its rival in the folder `arm`; a placeholder if there is none."""
    image = page.image(index)
    path = f"{arm}/{Path(image['file']).name}" if arm else image["file"]
    failed = image["failed"] and not arm
    flagged = image["flagged"] if not arm else index in page.flagged[arm]
    thumbnail = None if failed else _thumbnail(page.folder / path)
    if flagged and thumbnail is not None:
        title = "The model's safety checker put a black picture here."
        return f'<div class="lost"><a href="{escape(quote(path))}" title="{title}">flagged</a></div>'
    if thumbnail is None:
        return f'<div class="lost">{"failed" if failed else "missing"}</div>'
    uri, width, height = thumbnail
    side = max(width, height)
    factor = _fit(side, box) / side
    prompt = page.prompt(index) or "empty prompt"
    alt = (prompt if len(prompt) <= 160 else f"{prompt[:159]}…") + (f" ({caption})" if caption else "")
    grown = ' class="grown"' if factor > 1 else ""
    size = f'width="{width * factor:.0f}" height="{height * factor:.0f}"'
    return (
        f'<a href="{escape(quote(path))}" title="seed {_safe(image["seed"])}">'
        f'<img src="{uri}" {size} alt="{escape(alt)}"{grown}></a>'
    )


def _thumbnail(path: Path) -> tuple[str, int, int] | None:
    """A picture as data URI, width and height; None if unreadable: one bad file must not cost the page."""
    from PIL import Image

    try:
        if not path.is_file():  # a pipe, say, would never end
            return None
        with Image.open(path) as opened:
            picture = opened.convert("RGBA" if opened.has_transparency_data else "RGB")
    except Exception:  # what pillow meets in a damaged file: half a dozen classes
        return None
    large = max(picture.size) > THUMBNAIL
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    # Small pictures keep every pixel, unless that takes much room; of a shrunken one nobody misses what JPEG drops.
    buffer, kind = io.BytesIO(), "png"
    picture.save(buffer, kind)
    if picture.mode == "RGB" and (large or buffer.tell() > PNG_BYTES):
        buffer, kind = io.BytesIO(), "jpeg"
        picture.save(buffer, kind, quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind};base64,{data}", *picture.size


def _fit(side: int, box: int) -> int:
    """Longest side on the page: small pictures grow by whole factors only, so that their pixels stay even."""
    return min(box, side * max(1, box // side))


# Words.


def _section(title: str, lead: str, body: str) -> str:
    return f'<section class="part"><h2>{title}</h2><p class="quiet">{lead}</p>{body}</section>'


def _words(page: _Page, index: int) -> str:
    image = page.image(index)
    label = f"{_safe(Path(image['file']).stem)} · {_number(image['rows'])} rows"
    strip = strip_svg(image["steps"]) if _has_strips(page.run) and image["steps"] else ""
    return f'{_prompt(page, index)}{strip}<p class="number">{label}</p>'


def _prompt(page: _Page, index: int) -> str:
    text = page.prompt(index)
    if len(text) > PROMPT_LENGTH:
        text = f"{text[:PROMPT_LENGTH]}… ({len(text) - PROMPT_LENGTH:,} more characters are in run.json)"
    if len(text) > LONG_PROMPT:
        return f'<details class="prompt"><summary dir="auto">{escape(text)}</summary></details>'
    if not text.strip():
        return '<p class="prompt quiet">(empty prompt)</p>'
    return f'<p class="prompt" dir="auto">{escape(text)}</p>'


def _safe(value: object) -> str:
    return escape(str(value))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == round(value) else f"{value:,.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + "\u202f%"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} hours {minutes % 60} minutes"
