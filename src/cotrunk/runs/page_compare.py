"""The section of the page that compares: each image next to the same image made in other ways."""

from typing import cast

from ..drawing.thumbnails import fit
from ..drawing.wording import amount, percent
from .arm import ALL_STEPS, EQUAL_COST, INDEPENDENT, SHARED, Compared
from .page_parts import Page, compared_image, linked_image, prompt_text, section
from .report import RunReport
from .report_figures import Distance

COMPARED_PROMPTS = 60
COMPARED_IMAGES = 120  # each is shown up to four times
BOX = 160  # side of the thumbnails, in pixels
ORDER = (INDEPENDENT, ALL_STEPS, SHARED, EQUAL_COST)  # from left to right and from top to bottom


def compare_section(page: Page) -> str:
    """Return the section; call it only for a run with a comparison."""
    report = page.report
    prompts = sorted({image.prompt for image in report.images})
    kept = set(prompts[:COMPARED_PROMPTS])
    order = sorted(range(len(report.images)), key=lambda index: report.images[index].prompt)
    order = [index for index in order if report.images[index].prompt in kept][:COMPARED_IMAGES]
    box = fit(page.side, BOX)
    lead = (
        "The same images, made in different ways from the same noise. At equal cost, independent images take fewer "
        "steps, so that they use about as many rows as this run. PSNR says how close images are to the independent "
        "ones: the median of the images, and the worst one. Above 40 dB, differences are hard to see."
    )
    if (alone := report.distances.get(ALL_STEPS)) is not None:
        lead += f" <b>Skipping alone: {_decibels(alone)}</b>, between this run and the same run in all steps."
    if len(kept) < len(prompts):
        lead += f" The first {len(kept)} of {len(prompts)} prompts are shown."
    elif len(order) < len(report.images):
        lead += f" The first {len(order)} of {len(report.images)} images are shown."
    sets = "".join(_set(page, index, box) for index in order)
    body = f'<div class="scroll">{_table(report)}</div><div class="cards" style="--box:{box}px">{sets}</div>'
    return section("Compare", lead, body)


def _table(report: RunReport) -> str:
    full = report.rows.independent
    lines = ""
    for name in _arms(report):
        if name == SHARED:
            steps, rows, seconds, found = (
                report.steps_of_run(),
                report.rows.used,
                report.seconds.denoise,
                report.distances.get(INDEPENDENT),
            )
        else:
            arm = report.compare[cast("Compared", name)]
            steps = report.steps_of_arm(cast("Compared", name))
            rows, seconds, found = arm.rows, arm.seconds.denoise, arm.distance
        near = "the reference" if name == INDEPENDENT else "-" if found is None else _decibels(found)
        own = ' class="own"' if name == SHARED else ""
        lines += (
            f'<tr{own}><th scope="row">{_title(report, name)}</th><td>{steps}</td><td>{amount(rows)}</td>'
            f"<td>{percent(1 - rows / full) if full else '-'}</td><td>{seconds:,.1f}</td><td>{near}</td></tr>"
        )
    names = ("Method", "Steps", "Rows", "Saved", "Seconds, denoising", "PSNR (worst image)")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _set(page: Page, index: int, box: int) -> str:
    figures, names = "", _arms(page.report)
    for name in names:
        way = _label(page.report, name)
        if name == SHARED:
            image = linked_image(page, index, box, way)
        else:
            image = compared_image(page, index, box, cast("Compared", name), way)
        own = ' class="own"' if name == SHARED else ""
        figures += f"<figure{own}>{image}<figcaption>{way}</figcaption></figure>"
    return (
        f'<article class="card compared">{prompt_text(page, index)}'
        f'<div class="ways" style="--ways:{len(names)}">{figures}</div></article>'
    )


def _arms(report: RunReport) -> list[str]:
    return [name for name in ORDER if name == SHARED or name in report.compare]


def _title(report: RunReport, name: str) -> str:
    """Return the name of an arm in the table."""
    titles = {INDEPENDENT: "Independent", ALL_STEPS: "Shared, all steps", EQUAL_COST: "Independent, equal cost"}
    return titles.get(name, f"{_label(report, SHARED).capitalize()} (this run)")  # type: ignore[call-overload]


def _label(report: RunReport, name: str) -> str:
    """Return the short name of an arm, under its images."""
    if name == INDEPENDENT:
        return "independent"
    if name == EQUAL_COST:
        steps = str(report.steps_of_arm(EQUAL_COST))
        return f"{steps} step{'' if steps == '1' else 's'}"
    skips = report.rows.spared.skipping > 0 or report.rows.spared.guidance > 0
    shares = report.why_nothing_shared is None
    return "shared" if name == ALL_STEPS or not skips else "shared and skipped" if shares else "skipped"


def _decibels(distance: Distance) -> str:
    return f"{distance.median:.1f}\u202fdB ({distance.worst:.1f})"
