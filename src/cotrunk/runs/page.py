"""The page of a run: one HTML file made from its report and its images, without scripts and without a network."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from urllib.parse import quote

from ..drawing.thumbnails import SIDE
from ..drawing.wording import amount, count, duration, listed, percent, safe
from ..files import write_bytes
from ..storage.files import StoredFiles
from ..storage.listing import Listing
from .large import is_large
from .page_compare import compare_section
from .page_groups import ShownGroup, group_sections, shown_groups
from .page_parts import IMAGE_SOURCES, Page, style
from .page_sheets import marked_address, write_sheets
from .parts import DIFFERENCES, class_and_weights
from .report import PartReport, RunReport
from .report_figures import FailedGroup, Spared

STRIP_HELP = """<li>The strip next to an image shows its steps from left to right. Green: the denoiser ran once for its
whole group. Grey: it ran for this image alone. Empty: its output was predicted from earlier outputs. Violet: it was
replayed from a trunk. A strip is half as high where guidance was off, which takes one row instead of two.</li>"""
NAME = "index.html"
FAILURES = 5  # groups that could not be generated whose tracebacks have a link
ERROR_LENGTH = 200  # characters of their errors
LITTLE = 0.05  # below this saving, the page says that little was shared


def write_page(report: RunReport, folder: Path, stored: StoredFiles | None = None) -> Path:
    """Write `folder/index.html` from a report and the images of the run.

    Args:
        report: of the run.
        folder: for the page, and the further pages of a large run.
        stored: where the images are; None if they are in the folder.
    """
    stored = StoredFiles(str(folder)) if stored is None else stored
    page = Page(report, folder, stored, Listing(stored))
    page = replace(page, side=_longest_side(page))
    groups = shown_groups(report.groups)
    sections = [*group_sections(page, groups), *([compare_section(page)] if report.compare else [])]
    if page.is_large:
        sections.append(write_sheets(page))
    template = resources.files("cotrunk.runs").joinpath("page.html").read_text(encoding="utf-8")
    text = Template(template).substitute(
        _header(page, groups),
        style=style(),
        image_sources=IMAGE_SOURCES if page.is_large else "data:",
        sections="\n".join(sections),
    )
    path = folder / NAME
    # A name may hold half a surrogate pair: file names allow it and UTF-8 does not. The page shows a question mark.
    write_bytes(path, lambda file: file.write(text.encode("utf-8", "replace")))
    return path


def _longest_side(page: Page) -> int:
    """Return the longest side of the thumbnails. All images of a part have one size: that of the first that opens."""
    part_of = {prompt: number for number, part in enumerate(page.report.parts) for prompt in part.prompts}
    found = dict[int, int]()
    for image in page.report.images:
        part = part_of.get(image.prompt, 0)
        if part not in found and (opened := page.inline_thumbnail(image.file)):
            found[part] = max(opened[1:])
    return max(found.values(), default=SIDE)


def _header(page: Page, groups: Sequence[ShownGroup]) -> dict[str, str]:
    """Return the values of the template's header and footer, escaped."""
    report, rows, job = page.report, page.report.rows, page.report.job
    used, independent = amount(rows.used), amount(rows.independent)
    claim, saved = f"{count(len(report.images), 'image')} for {used} denoiser rows", "nothing saved"
    if rows.saving > 0:
        claim += f" instead of {independent}"
        saved = f"saved {percent(rows.saving)}"
    steps = report.steps_of_run()
    if report.timesteps != report.steps and not report.parts:
        steps += f" ({report.timesteps} denoiser evaluations)"
    denoise, total = duration(report.seconds.denoise), duration(report.seconds.total)
    sharing = report.sharing
    values = {
        "title": f"cotrunk: {claim}, {saved}",
        "mood": "" if rows.saving > 0 else " nothing",
        "claim": claim,
        "saved": saved,
        "lead": f"Denoising took {denoise}; the whole run took {total}.{_spared(rows.spared)}",
        "used": used,
        "independent": independent,
        "spared": amount(max(rows.independent - rows.used, 0)),
        "fill": f"{100 * min(rows.used / max(rows.independent, 1), 1):.2f}",
        "model": " with ".join(filter(None, (job.model, listed([*map(str, job.lora)])))),
        "scheduler": report.pipeline.scheduler,
        "steps": steps,
        "guidance_scale": report.guidance_of_run(),
        "mode": "independent" if sharing is None else sharing.mode,
        "share": percent(0 if sharing is None else sharing.share),
        "similarity": "not used" if report.threshold is None else report.threshold,
        "seed": job.seed,
        "versions": listed([f"{name} {number}" for name, number in report.versions.items()]),
    }
    fragments = {
        "skipping": _skipping_facts(report),
        "strip_help": STRIP_HELP if page.has_strips else "",
        "notes": "".join(f'<p class="note">{note}</p>' for note in _notes(report, groups)),
    }
    return {name: safe(value) for name, value in values.items()} | fragments


def _spared(spared: Spared) -> str:
    """Return how many rows each way of saving saved; nothing where sharing was the only one."""
    if not spared.skipping and not spared.guidance and not spared.replay:
        return ""
    ways = (
        (spared.sharing, "sharing"),
        (spared.skipping, "skipping"),
        (spared.guidance, "steps without guidance"),
        (spared.replay, "stored trunks"),
    )
    return f" Rows saved: {listed([f'{amount(rows)} by {way}' for rows, way in ways if rows])}."


def _skipping_facts(report: RunReport) -> str:
    settings, skipping, facts = report.job.settings, report.pipeline.skipping, {}
    if skipping is not None:
        name, value = ("tolerance", skipping.tolerance) if skipping.rule == "error" else ("rule", skipping.rule)
        facts[f"Skipping {name}"] = safe(value)
    if settings.guidance_interval is not None:
        start, stop = settings.guidance_interval
        facts["Guided between"] = f"{percent(start)} and {percent(stop)} of the steps"
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())


def _kind(report: RunReport, part: PartReport) -> Hashable:
    """Return what prompts of one part have in common. Only prompts that were appended have it in common with others."""
    own = class_and_weights(report.job, report.job.prompts[part.prompts[0]])
    return part.steps, part.guidance_scale, part.width, part.height, own


def _later_parts(report: RunReport) -> Iterator[str]:
    """Yield notes about prompts that were appended, and images that were generated again."""
    seen, appended = set[object](), 0
    for part in (part for part in report.parts if not part.is_retry):
        kind = _kind(report, part)
        appended += len(part.prompts) if kind in seen else 0
        seen.add(kind)
    if appended:
        yield f"Prompts appended to an earlier run: {appended:,}. They share only among themselves."
    if retried := sum(image.retries > 0 for image in report.images):
        yield f"Images generated again with a new seed, after they had failed or had been flagged: {retried:,}."


def _failures(failures: Sequence[FailedGroup]) -> str:
    """Return a note about groups that could not be generated, with links to their tracebacks."""
    links = [f'<a href="{escape(quote(each.file))}">group {each.group}</a>' for each in failures[:FAILURES]]
    if len(failures) > FAILURES:
        links.append(f'{len(failures) - FAILURES:,} more in <a href="failed/">failed/</a>')
    errors = listed(sorted({safe(each.error[:ERROR_LENGTH]) for each in failures})[:3])
    return (
        f"{count(len(failures), 'group')} could not be generated, {listed(links)}: {errors}. The same command with "
        "--resume tries again."
    )


def _notes(report: RunReport, groups: Sequence[ShownGroup]) -> Iterator[str]:
    """Yield the notes that a reader must see first."""
    images = len(report.images)
    below = f'<a href="{marked_address()}">on a page of their own</a>' if is_large(images) else "below"
    if report.status == "running":
        yield "This run is not complete: resume it to make the other images."
    if flagged := sum(image.flagged for image in report.images):
        yield (
            f"The model's safety checker put a black image in place of {count(flagged, 'image')}, marked as flagged "
            f"{below}. Another prompt or seed may pass it: --resume --retry-failed tries another seed."
        )
    if failed := sum(image.failed for image in report.images):
        yield f"{count(failed, 'image')} failed and {'is' if failed == 1 else 'are'} marked {below}."
    if report.failures:
        yield _failures(report.failures)
    kinds = {_kind(report, part) for part in report.parts}
    if len(kinds) > 1:
        yield (
            f"The prompts differ in {DIFFERENCES}, so they ran in {len(kinds)} parts; prompts of different parts do "
            "not share."
        )
    yield from _later_parts(report)
    partners = sum(len(group.images) for group in report.groups if len(group.images) > 1 or group.trunk is not None)
    if why := report.why_nothing_shared:
        yield f"Each image was sampled independently: {safe(why)}."
    elif report.rows.saving < LITTLE:
        yield f"Little was shared: {partners} of {images} images had a similar enough prompt to share with."
    yield from map(safe, report.fallbacks)
    shown = sum(len(group.images) for group in groups)
    if shown < images:
        others = (
            '<a href="#all">All images</a> are on further pages.'
            if is_large(images)
            else f'The other {images - shown:,} are not on it; their files are in <a href="images/">images/</a>.'
        )
        yield f"This page shows {shown:,} of {images:,} images, the groups with the largest saving first. {others}"
