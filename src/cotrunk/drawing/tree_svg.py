"""The drawing of a tree: one line per computed row, over the steps, as SVG for the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ..planning.tree import Branch

END = 96.0  # where the last step lies in a drawing 100 wide; the rest leads into the thumbnails


@dataclass(frozen=True)
class Line:
    """A branch with those of its images that are shown. Its thickness stands for all `count` images on it."""

    images: tuple[int, ...]
    start: int
    stop: int
    count: int
    children: tuple["Line", ...]


def tree_svg(tree: Line, order: Sequence[int], timesteps: int, description: str) -> str:
    """Return the tree as an SVG 100 wide and `len(order)` high. It can be stretched: its strokes do not scale."""
    place = {index: row + 0.5 for row, index in enumerate(order)}
    scale = END / max(timesteps, 1)
    paths = [f'<path class="rule" d="M{step * scale:.2f} 0V{len(order)}"/>' for step in sorted(branch_steps(tree))]

    def stroke(count: int, path: str) -> None:
        kind, width = "trunk" if count > 1 else "branch", min(3 * math.sqrt(count) - 1, 16)
        paths.append(f'<path class="{kind}" stroke-width="{width:.1f}" d="{path}"/>')

    def level(line: Line) -> float:
        rows = [place[index] for index in line.images]
        return (min(rows) + max(rows)) / 2

    def draw(line: Line, origin: float) -> None:
        start, stop, y = line.start * scale, line.stop * scale, level(line)
        for child in line.children:  # drawn first, so that the trunk covers them
            draw(child, y)
        # A branch leaves its trunk in a bend that begins exactly at the branch step.
        bend = start + (0.0 if origin == y else min(13.0, 0.7 * (stop - start)))
        half = (start + bend) / 2
        end = stop if line.children or line.count > 1 else 100.0
        curve = f"C{half:.2f} {origin} {half:.2f} {y} {bend:.2f} {y}" if bend > start else ""
        stroke(line.count, f"M{start:.2f} {origin}{curve}H{end:.2f}")
        if not line.children and line.count > 1:  # it never branched: the lines separate after the last step
            for index in line.images:
                stroke(1, f"M{stop:.2f} {y}C{END + 2} {y} {END + 1} {place[index]} 100 {place[index]}")
        if line.count > 1:  # a line of no length with round caps: a dot that stays round when stretched
            width = 9 + math.sqrt(line.count)
            paths.append(f'<path class="trunk" stroke-width="{width:.1f}" d="M{stop:.2f} {y}h0.001"/>')

    draw(tree, level(tree))
    size = f'viewBox="0 0 100 {len(order)}" preserveAspectRatio="none"'
    return f'<svg {size} role="img" aria-label="{escape(description)}">{"".join(paths)}</svg>'


def axis(branches: Sequence[int], timesteps: int, unit: str) -> str:
    """Return the labels under a drawing: first and last step, and the branch steps that have room."""
    last = f'<span class="last" style="left:{END}%">{timesteps} {unit}{"s" if timesteps != 1 else ""}</span>'
    ticks, taken = ['<span class="first" style="left:0">0</span>', last], [0.0, END]
    for step in branches:
        x = END * step / max(timesteps, 1)
        gap = min(abs(x - other) for other in taken)
        if gap >= 7:  # closer labels overlap; on a narrow screen they overlap earlier
            near = " near" if gap < 14 else ""
            ticks.append(f'<span class="fork{near}" style="left:{x:.2f}%">{step}</span>')
            taken.append(x)
    return f'<div class="axis" aria-hidden="true">{"".join(ticks)}</div>'


def leaf_order(branch: Branch) -> list[int]:
    """Return the images in the order of the tree, so that no two lines cross."""
    return [index for child in branch.children for index in leaf_order(child)] or list(branch.images)


def pruned(branch: Branch, images: frozenset[int]) -> Line:
    """Return the tree with only the lines that lead to these images."""
    children = tuple(pruned(child, images) for child in branch.children if not images.isdisjoint(child.images))
    shown = tuple(index for index in branch.images if index in images)
    return Line(shown, branch.start, branch.stop, len(branch.images), children)


def branch_steps(node: Branch | Line) -> set[int]:
    """Return the timesteps at which any part of the tree branches."""
    own = {node.stop} if len(node.images) > 1 else set()
    return own.union(*(branch_steps(child) for child in node.children))


def strip_svg(letters: str) -> str:
    """Return what happened to an image at each timestep, as a strip 100 wide and 1 high.

    A cell is green where the output was computed once for a group, grey where it was computed for this image alone, and
    violet where it was replayed from a trunk. It is empty where the output was predicted, and half as high where
    guidance was off.
    """
    width = END / max(len(letters), 1)
    cells, start = [], 0
    for end in range(1, len(letters) + 1):  # one path per stretch of equal steps
        if end < len(letters) and letters[end] == letters[start]:
            continue
        letter, x = letters[start], start * width
        if letter not in "Pp":
            kind = {"s": "trunk", "r": "replay"}.get(letter.lower(), "branch")
            top = 0 if letter.isupper() else 0.5
            cells.append(f'<path class="{kind}" d="M{x:.2f} {top}H{end * width:.2f}V1H{x:.2f}Z"/>')
        start = end
    ways = {
        "for this image": "Cc",
        "once for its group": "Ss",
        "predicted": "Pp",
        "replayed": "Rr",
        "without guidance": "cspr",
    }
    counts = {way: sum(letter in which for letter in letters) for way, which in ways.items()}
    label = f"Of {len(letters)} steps: " + ", ".join(f"{count} {way}" for way, count in counts.items() if count)
    size = 'viewBox="0 0 100 1" preserveAspectRatio="none"'
    return f'<svg class="strip" {size} role="img" aria-label="{label}"><title>{label}</title>{"".join(cells)}</svg>'
