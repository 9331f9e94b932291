"""What a notebook shows of a result: what it saved, its images, and the trees of its groups.

A notebook may drop styles (GitHub does), so the HTML is readable without them. It has no scripts and loads nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from ..planning.plan import Cost, Plan
from ..planning.tree import Branch
from .thumbnails import fit, thumbnail_of
from .tree_svg import axis, branch_steps, leaf_order, pruned, tree_svg
from .wording import amount, count, listed, percent, safe

IMAGES = 60  # images that a notebook shows; more make it slow to open and large to save
GROUPS = 20  # groups whose trees are drawn
GROUP_IMAGES = 24  # images of one group that are drawn
PROMPT_LENGTH = 200  # characters of a prompt
WAYS = {
    "guidance": "steps without guidance",
    "replay": "stored trunks",
}  # how a row is saved, where its name alone does not say it
BOX, LEAF_BOX = 128, 64  # sides of the thumbnails next to prompts and of those in trees, in pixels

ITEM = '<div role="listitem">'
STYLE = """<style>
.cotrunk { --trunk: #1c7a53; --branch: #87938c; --line: rgba(128, 128, 128, .35); font-size: 14px; line-height: 1.35;
  max-width: 1100px; }
.cotrunk p { margin: 4px 0; }
.cotrunk .gallery { display: flex; flex-wrap: wrap; gap: 14px 12px; margin: 10px 0; }
.cotrunk .gallery > div { width: 132px; overflow-wrap: anywhere; font-size: 12.5px; }
.cotrunk img { display: block; margin: 0 0 4px; border-radius: 4px; max-width: 100%; }
.cotrunk .grown { image-rendering: pixelated; }
.cotrunk .lost { display: grid; place-items: center; border: 1px dashed currentColor; border-radius: 4px;
  margin-bottom: 4px; }
.cotrunk .group { margin: 14px 0; }
.cotrunk .tree { display: grid; grid-template-columns: minmax(80px, 2fr) minmax(150px, 3fr); }
.cotrunk .drawing { position: relative; }
.cotrunk svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.cotrunk path { fill: none; vector-effect: non-scaling-stroke; stroke-linecap: round; }
.cotrunk .trunk { stroke: var(--trunk); }
.cotrunk .branch { stroke: var(--branch); }
.cotrunk .rule { stroke: var(--line); stroke-dasharray: 3 4; }
.cotrunk .leaves { display: grid; grid-auto-rows: 1fr; }
.cotrunk .leaves > div { display: flex; align-items: center; gap: 10px; padding: 3px 0; min-width: 0;
  overflow-wrap: anywhere; }
.cotrunk .leaves img { margin: 0; flex: none; }
.cotrunk .leaves .lost { margin: 0; flex: none; font-size: 11px; }
.cotrunk .axis { position: relative; height: 20px; font-size: 12px; }
.cotrunk .axis span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.cotrunk .axis .first { transform: none; }
.cotrunk .axis .fork { color: var(--trunk); font-weight: 600; }
</style>"""


class Drawing:
    """HTML that a notebook displays. `print` shows what it is; `str(drawing.html)` is the HTML itself."""

    def __init__(self, html: str, description: str) -> None:
        self.html, self.description = html, description

    def __repr__(self) -> str:
        return f"<Drawing: {self.description}; a notebook shows it>"

    def _repr_html_(self) -> str:
        return self.html


def result_html(
    output: Any,
    plan: Plan,
    cost: Cost,
    spared: Mapping[str, int],
    seconds: float,
    made: Sequence[int],
    lost: Mapping[int, str],
) -> str:
    """Return a result as HTML: its saving, then each image with its prompt.

    Args:
        output: the pipeline's output. Without images (audio, video, latents, arrays), the prompts stand alone.
        plan, cost, spared: of the result.
        seconds: of the whole run.
        made: the indices of the images in the output, in its order.
        lost: why an image cannot be used, by index.
    """
    saved = f"saved {percent(cost.saving)}" if cost.saving > 0 else "nothing saved"
    ways = [f"{amount(rows)} by {WAYS.get(way, way)}" for way, rows in spared.items() if rows]
    rows = f"{amount(cost.used)} denoiser rows instead of {amount(cost.independent)}"
    claim = f"<b>{count(len(made), 'image')} for {rows}: {saved}</b> ({seconds:.3g} s)."
    parts = [f"<p>{claim}{f' Rows saved: {listed(ways)}.' if ways else ''}</p>"]
    images = images_of(output, made)
    if not images:
        names = listed([f"<code>.{safe(name)}</code>" for name in output])
        parts.append(f"<p>The output has no images to show here, but {names}, in the order of these prompts:</p>")
    tiles = (
        ITEM + f"{_image(images.get(index), lost.get(index), plan, index, BOX) if images or index in lost else ''}"
        f"{_prompt(plan, index)}</div>"
        for index in made[:IMAGES]
    )
    parts.append(f'<div class="gallery" role="list">{"".join(tiles)}</div>')
    if len(made) > IMAGES:
        parts.append(f"<p>The first {IMAGES} of {len(made):,} are shown.</p>")
    return _page(parts)


def trees_drawing(plan: Plan, images: Mapping[int, Image.Image], lost: Mapping[int, str]) -> Drawing:
    """Return the groups of a plan as trees, largest saving first.

    Args:
        plan: the plan.
        images: the images, by index, where there are any.
        lost: why an image cannot be used, by index.
    """
    groups = [tree for tree in plan.trees if len(tree.images) > 1]
    groups.sort(key=lambda tree: plan.cost_of([tree]).used - plan.cost_of([tree]).independent)
    alone = len(plan.trees) - len(groups)
    claim = f"{count(len(groups), 'group')}, {count(alone, 'image')} alone"
    parts = [f"<p><b>{claim}.</b> A green line is computed once for all the images it leads to.</p>"]
    if not groups:
        parts = ["<p><b>Nothing is shared.</b></p>"]
    parts += _trees(plan, groups[:GROUPS], images, lost)
    if len(groups) > GROUPS:
        parts.append(f"<p>The {GROUPS} groups with the largest saving are drawn.</p>")
    return Drawing(_page(parts), claim)


def images_of(output: Any, made: Sequence[int]) -> dict[int, Image.Image]:
    """Return the images of an output by their index; none if it holds something else."""
    found = output.get("images") if hasattr(output, "get") else None
    if not isinstance(found, list) or not all(isinstance(image, Image.Image) for image in found):
        return {}
    return dict(zip(made, found, strict=False))


def _trees(
    plan: Plan, groups: Sequence[Branch], images: Mapping[int, Image.Image], lost: Mapping[int, str]
) -> Iterator[str]:
    for tree in groups:
        order = leaf_order(tree)
        number = min(len(order), GROUP_IMAGES)
        shown = [order[i * len(order) // number] for i in range(number)]
        cost, branches = plan.cost_of([tree]), sorted(branch_steps(tree))
        facts = (
            f"<b>{count(len(order), 'image')}</b>, similarity {tree.similarity:.2f} or more, branching at "
            f"{listed([str(step) for step in branches])} of {plan.timesteps}: {percent(cost.saving)} of its rows saved"
            + (f"; {number} of its images are drawn." if number < len(order) else ".")
        )
        leaves = "".join(
            ITEM + f"{_image(images.get(i), lost.get(i), plan, i, LEAF_BOX) if images else ''}{_prompt(plan, i)}</div>"
            for i in shown
        )
        drawing = tree_svg(pruned(tree, frozenset(shown)), shown, plan.timesteps, f"a trunk of {len(order)} images")
        unit = "step" if plan.timesteps == plan.steps else "denoiser evaluation"
        yield (
            f'<div class="group"><p>{facts}</p><div class="tree"><div class="drawing">{drawing}</div>'
            f'<div class="leaves" role="list">{leaves}</div>{axis(branches, plan.timesteps, unit)}</div></div>'
        )


def _page(parts: Sequence[str]) -> str:
    return f'{STYLE}<div class="cotrunk">{"".join(parts)}</div>'


def _prompt(plan: Plan, index: int) -> str:
    text = plan.prompts[plan.prompt_of(index)]
    short = text if len(text) <= PROMPT_LENGTH else text[: PROMPT_LENGTH - 1] + "…"
    return f'<span dir="auto">{safe(short) or "(empty prompt)"}</span>'


def _image(image: Image.Image | None, why: str | None, plan: Plan, index: int, box: int) -> str:
    if image is None or why is not None:
        return f'<span class="lost" style="width:{box}px;height:{box}px">{safe(why or "not made")}</span>'
    uri, width, height = thumbnail_of(image)
    side = max(width, height)
    factor = fit(side, box) / side
    grown = ' class="grown"' if factor > 1 else ""
    size = f'width="{width * factor:.0f}" height="{height * factor:.0f}"'
    return f'<img src="{uri}" {size} alt="image {index}" title="image {index}, seed {plan.seeds[index]}"{grown}>'
