"""The section of the page that compares: each image next to the same image sampled independently."""

from ..drawing.thumbnails import fit
from ..drawing.wording import amount
from .page_parts import Page, compared_image, linked_image, prompt_text, section
from .report import RunReport

COMPARED_PROMPTS = 60
COMPARED_IMAGES = 120  # each is shown three times
BOX = 160  # side of the thumbnails, in pixels
TITLES = {"independent": "Independent, same noise", "equal_cost": "Independent, equal cost"}


def compare_section(page: Page) -> str:
    """Return the section; call it only for a run with a comparison."""
    report = page.report
    prompts = sorted({image.prompt for image in report.images})
    kept = set(prompts[:COMPARED_PROMPTS])
    order = sorted(range(len(report.images)), key=lambda index: report.images[index].prompt)
    order = [index for index in order if report.images[index].prompt in kept][:COMPARED_IMAGES]
    box = fit(page.side, BOX)
    lead = (
        "The same prompts, generated in three ways. Independent images start from the same noise as the shared ones. "
        "At equal cost, they take fewer steps, so that they use about as many rows as this run."
    )
    if len(kept) < len(prompts):
        lead += f" The first {len(kept)} of {len(prompts)} prompts are shown."
    elif len(order) < len(report.images):
        lead += f" The first {len(order)} of {len(report.images)} images are shown."
    trios = "".join(_trio(page, index, box) for index in order)
    body = f'<div class="scroll">{_table(report)}</div><div class="cards" style="--box:{box}px">{trios}</div>'
    return section("Compare", lead, body)


def _table(report: RunReport) -> str:
    rows = [("Shared (this run)", report.steps, report.rows.used, report.seconds.denoise)]
    rows += [(TITLES[name], arm.steps, arm.rows, arm.seconds.denoise) for name, arm in report.compare.items()]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Method", "Steps", "Rows", "Seconds, denoising"))
    lines = "".join(
        f'<tr><th scope="row">{title}</th><td>{steps}</td><td>{amount(used)}</td><td>{seconds:,.1f}</td></tr>'
        for title, steps, used, seconds in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _trio(page: Page, index: int, box: int) -> str:
    images = {"shared": linked_image(page, index, box, "shared")}
    images |= {arm.replace("_", " "): compared_image(page, index, box, arm) for arm in page.report.compare}
    figures = "".join(f"<figure>{image}<figcaption>{way}</figcaption></figure>" for way, image in images.items())
    return f'<article class="card trio">{prompt_text(page, index)}<div class="three">{figures}</div></article>'
