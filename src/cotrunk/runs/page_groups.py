"""The sections of the page that show the images: one card with a tree per group, then the images that share nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..drawing.thumbnails import fit
from ..drawing.tree_svg import axis, branch_steps, leaf_order, pruned, tree_svg
from ..drawing.wording import amount, count, listed, safe
from ..planning.sharing import how_shared
from .page_parts import ALONE_BOX, Page, caption, linked_image, section
from .report import GroupReport

# More images make a page slow to open. The files stay in images/.
PAGE_IMAGES = 400
GROUP_IMAGES = 40  # images of one group, so that it leaves room for others
NAMED_BRANCHES = 12  # branch steps of a group that are written out


@dataclass(frozen=True)
class ShownGroup:
    """A group, and its images that are shown, in the order of its tree."""

    group: GroupReport
    images: tuple[int, ...]


def shown_groups(groups: Sequence[GroupReport]) -> list[ShownGroup]:
    """Return the groups that the page has room for, largest saving first."""
    shown: list[ShownGroup] = []
    room = PAGE_IMAGES
    groups = [group for group in groups if set(group.replaced) != set(group.images)]
    for group in sorted(groups, key=lambda group: group.rows.used - group.rows.independent):
        order = leaf_order(group.tree)
        number = min(len(order), GROUP_IMAGES)
        if number <= room:
            # spread evenly over the tree, so that every part of it is visible
            images = tuple(order[i * len(order) // number] for i in range(number))
            shown.append(ShownGroup(group, images))
            room -= number
    return shown


def group_sections(page: Page, groups: Sequence[ShownGroup]) -> Iterator[str]:
    """Iterate over the sections: groups, and images that share nothing."""
    shared = [shown for shown in groups if len(shown.group.images) > 1]
    if shared:
        lead = "Largest saving first. A green line is computed once for all the images it leads to."
        if (sharing := page.report.sharing) is not None:
            group = shared[0].group
            is_guided = group.rows.independent > len(group.images) * page.report.steps_of(group)[1]
            lead += f" {how_shared(sharing, is_guided=is_guided)}"
        cards = [_card(page, shown, number) for number, shown in enumerate(shared, start=1)]
        yield section("Groups", lead, f'<div class="cards">{"".join(cards)}</div>')
    single = [shown for shown in groups if len(shown.group.images) == 1]
    replaying = [shown for shown in single if shown.group.trunk is not None]
    if replaying:
        lead = f"{count(len(replaying), 'image')} whose first steps are those of similar prompts of earlier runs."
        yield section("Replayed", lead, _gallery(page, replaying))
    alone = [shown for shown in single if shown.group.trunk is None]
    if alone:
        lead = f"{count(len(alone), 'image')} that shared no step."
        yield section("Alone", lead, _gallery(page, alone))


def _gallery(page: Page, groups: Sequence[ShownGroup]) -> str:
    """Return single images, each with the trunk that it replays."""
    box, tiles = fit(page.side, ALONE_BOX), ""
    for shown in groups:
        (index,) = shown.images
        facts = f'<p class="quiet">{_replayed(page, shown.group)}</p>' if shown.group.trunk is not None else ""
        tiles += f'<li class="tile">{linked_image(page, index, box)}{caption(page, index)}{facts}</li>'
    return f'<ol class="gallery" style="--box:{box}px">{tiles}</ol>'


def _replayed(page: Page, group: GroupReport) -> str:
    """Return a sentence about the trunk that a group replays."""
    trunk = group.trunk
    assert trunk is not None
    steps, timesteps = page.report.steps_of(group)
    unit = "step" if timesteps == steps else "denoiser evaluation"
    members = trunk.recipe.members
    named = listed([f"“{safe(member if len(member) <= 80 else member[:79] + '…')}”" for member in members[:3]])
    more = f" and {len(members) - 3} more" if len(members) > 3 else ""
    where = "was stored" if trunk.is_stored else "was computed for it"
    return f"{count(trunk.stop, unit)} replayed from the trunk of {named}{more}, which {where}."


def _image(page: Page, group: GroupReport, index: int, box: int) -> str:
    """Return the linked thumbnail of an image, or the word for one that is in another group now."""
    return '<div class="lost">replaced</div>' if index in group.replaced else linked_image(page, index, box)


def _card(page: Page, shown: ShownGroup, number: int) -> str:
    group, order = shown.group, shown.images
    steps, timesteps = page.report.steps_of(group)
    branches, images = sorted(branch_steps(group.tree)), len(group.images)
    # Larger groups get smaller thumbnails, so that a tree still fits a screen or two.
    box = fit(page.side, 96 if len(order) <= 8 else 72 if len(order) <= 16 else 48)
    leaves = [
        f'<li><div class="image">{_image(page, group, index, box)}</div>'
        f'<div class="words">{caption(page, index)}</div></li>'
        for index in order
    ]
    unit = "step" if timesteps == steps else "denoiser evaluation"
    named = [str(step) for step in branches[:NAMED_BRANCHES]]
    if len(branches) > len(named):
        named.append(f"{len(branches) - len(named)} more")
    where = f"{unit}{'s' if len(branches) > 1 else ''} {listed(named)}"
    description = f"{images:,} images share a trunk that branches at {where}"
    drawing = tree_svg(pruned(group.tree, frozenset(order)), order, timesteps, description)
    saved = f"{amount(group.rows.independent - group.rows.used)} of {amount(group.rows.independent)} rows saved"
    facts = f"Branches at {where} of {timesteps}. Smallest similarity {group.similarity:.2f}."
    if group.trunk is not None:
        facts += f" {_replayed(page, group)}"
    if len(order) < images:
        facts += f" {len(order)} of its images are shown."
    return f"""<article class="card{" wide" if len(order) > 8 else ""}">
<header><h3>Group {number}: {images:,} images</h3><p class="saved">{saved}</p>
<p class="quiet">{facts}</p></header>
<div class="tree" style="--box:{box}px"><div class="drawing">{drawing}</div>
<ol class="leaves">{"".join(leaves)}</ol>{axis(branches, timesteps, unit)}</div></article>"""
