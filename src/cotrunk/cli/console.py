"""What the command line prints: warnings, the summary of a run, the table of a plan.

Prompts, paths, names of models and the error messages of libraries come from others. None of their characters may
control the terminal: `_Console` makes them visible wherever they are printed.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ..storage.urls import shown_place

if TYPE_CHECKING:
    from ..planning.plan import Findings, Plan
    from ..planning.tree import Branch
    from ..runs.job_plan import JobPlan, PartPlan
    from ..runs.report import RunReport

WORTH_IT = 0.05  # below this saving, `cotrunk plan` advises against sharing
WARNINGS = 5  # prompts that are named in warnings; further ones are counted

# Unicode categories: controls (including ESC and C1), invisible and directional marks, half surrogate pairs, private
# and unassigned characters, line separators. Spaces of all widths are harmless.
UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
MARKS_OF_LINES = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})


def visible(text: str) -> str:
    """Return the text with every character spelled out that a terminal would obey or hide, ESC as \\x1b.

    Line breaks and tabs stay."""
    return text if text.isascii() and text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in UNSAFE:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class _Console(Console):
    """A console on which all text is visible."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Make a string visible before it is measured for a table."""
        return super().render_str(visible(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Make the rest visible: bars and spinners render their strings themselves."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


out = _Console(highlight=False)
err = _Console(stderr=True, highlight=False)


def say(style: str, label: str, text: str) -> None:
    """Print the text as one line on standard error, with its line breaks spelled out."""
    err.print(Text.assemble((f"{label}:", style), " ", visible(text.translate(MARKS_OF_LINES))), soft_wrap=True)


def warn_of(findings: "Findings", prompts: Sequence[str]) -> None:
    """Name the prompts that the text encoder does not read to the end, and those that it cannot tell apart."""
    for index, cut in findings.truncated[:WARNINGS]:
        start, end = shortened(prompts[index], 40), shortened(cut, 200)
        say("yellow", "warning", f"prompt {index} ({start!r}) is too long for the text encoder, which cuts off {end!r}")
    if len(findings.truncated) > WARNINGS:
        say("yellow", "warning", f"{len(findings.truncated) - WARNINGS} more prompts are too long")
    for found in findings.alike[:WARNINGS]:
        named = [f"{index} ({shortened(prompts[index], 40)!r})" for index in found[:WARNINGS]]
        more = f" and {len(found) - len(named)} more" if len(found) > len(named) else ""
        what = f"prompts {', '.join(named)}{more}"
        say("yellow", "warning", f"{what} look identical to the text encoder; their images differ only by seed")
    if len(findings.alike) > WARNINGS:
        more = counted(len(findings.alike) - WARNINGS, "more set")
        say("yellow", "warning", f"{more} of prompts look identical to the text encoder")


def print_summary(report: "RunReport", folder: str | Path) -> None:
    """Print what a run saved and where its page is."""
    rows, seconds = report.rows, report.seconds
    out.print(
        f"{counted(len(report.images), 'image')} for {rows.used:,} denoiser rows instead of {rows.independent:,}: "
        f"saved {rows.saving:.1%} ({seconds.denoise:.1f} s denoising, {seconds.total:.1f} s in all).",
        soft_wrap=True,
    )
    spared = rows.spared
    if spared.skipping or spared.guidance or spared.replay:
        ways = {
            "sharing": spared.sharing,
            "skipping": spared.skipping,
            "guidance": spared.guidance,
            "stored trunks": spared.replay,
        }
        parts = (f"{name} {count:,}" for name, count in ways.items() if count)
        out.print(f"  rows saved by {', by '.join(parts)}", soft_wrap=True)
    for name, arm in report.compare.items():
        out.print(
            f"  {name.replace('_', ' ')}: {_steps(report.steps_of_arm(name))}, {arm.rows:,} rows, "
            f"{arm.seconds.denoise:.1f} s denoising",
            soft_wrap=True,
        )
    for sentence in report.fallbacks:
        out.print(sentence, soft_wrap=True, markup=False)
    if why := report.why_nothing_shared:
        out.print(f"Nothing was shared: {why} (--share, --similarity, --max-group, --mode).", soft_wrap=True)
    place = shown_place(str(folder)).rstrip("/")
    out.print(f"Open {escape(place)}/index.html", soft_wrap=True)


def conclude(report: "RunReport", folder: str | Path) -> None:
    """Print the summary. Exit with code 1 if any image failed, or if a safety checker replaced one by a black image."""
    print_summary(report, folder)
    count = len(report.images)
    failed = [image.file for image in report.images if image.failed]
    flagged = [image.file for image in report.images if image.flagged and not image.failed]
    if failed:
        say("red", "failed", f"{len(failed)} of {count} images contain NaN: {_some(failed)}")
    if flagged:
        say(
            "red", "flagged", f"the model's safety checker blackened {len(flagged)} of {count} images: {_some(flagged)}"
        )
    if failed or flagged:
        raise typer.Exit(1)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def print_plan(plan: "JobPlan", show: int) -> None:
    """Print the groups of a plan, largest saving first, and what it saves."""
    from ..planning.sharing import how_shared
    from ..runs.parts import DIFFERENCES

    groups = [(part, tree) for part in plan.parts for tree in part.plan.trees if len(tree.images) > 1]
    groups.sort(key=lambda group: (-_saved(*group), group[0].images[group[1].images[0]]))
    if groups and show:
        table = Table("group", "prompts", "similarity", "branches at", "rows", "saved", box=None, pad_edge=False)
        for number, (part, tree) in enumerate(groups[:show], 1):
            cost = part.plan.cost_of([tree])
            branches = ", ".join(str(stop) for stop in sorted({n.stop for n in tree.nodes() if n.children}))
            table.add_row(
                str(number),
                "\n".join(escape(line) for line in _tree_lines(part.plan, tree, "")),
                f"{tree.similarity:.2f}",
                f"{branches} of {part.plan.timesteps}",
                f"{cost.used:,} of {cost.independent:,}",
                f"{cost.saving:.1%}",
            )
        out.print(table)
    if len(groups) > show:
        more = counted(len(groups) - show, "more group")
        out.print(f"... and {more} (--show {len(groups)} prints them all)", soft_wrap=True)
    first = plan.parts[0].plan
    if groups and first.sharing is not None:
        out.print(how_shared(first.sharing, is_guided=first.guidance_rows > 1), soft_wrap=True)
        if plan.findings.fallback is not None:
            out.print(plan.findings.fallback, soft_wrap=True, markup=False)
    if len(plan.parts) > 1:
        named = (f"{counted(len(part.rows), 'prompt')} with {counted(part.plan.steps, 'step')}" for part in plan.parts)
        out.print(
            f"{len(plan.parts)} parts run one after another, because prompts differ in {DIFFERENCES}: "
            f"{', '.join(named)}.",
            soft_wrap=True,
        )
    cost = plan.cost
    alone = sum(len(tree.images) == 1 for part in plan.parts for tree in part.plan.trees)
    out.print(
        f"{counted(len(plan), 'image')}, {counted(len(groups), 'group')}, {alone} alone, "
        f"similarity {first.threshold or 0:g} or more: "
        f"{cost.used:,} denoiser rows instead of {cost.independent:,}, {cost.saving:.1%} saved.",
        soft_wrap=True,
    )
    if cost.saving < WORTH_IT:
        share = 0.0 if first.sharing is None else first.sharing.share
        little = f"--share {share:g} limits the saving" if share < 2 * WORTH_IT else "these prompts differ too much"
        out.print(
            f"Sharing is not worth it: it would save less than {WORTH_IT:.0%}. It pays off for variations of the same "
            f"subjects; {plan.why_nothing_shared() or little}.",
            soft_wrap=True,
        )
    out.print("Skipping saves more in a run; how much depends on the images.", soft_wrap=True)


def _saved(part: "PartPlan", tree: "Branch") -> int:
    """Return the number of rows that sharing saves in a group."""
    cost = part.plan.cost_of([tree])
    return cost.independent - cost.used


def _tree_lines(plan: "Plan", branch: "Branch", indent: str) -> Iterator[str]:
    """Yield the prompts of a group, those that stay together longer indented below the step where they part."""
    if all(len(child.images) == 1 for child in branch.children):
        for image in branch.images:
            yield indent + shortened(plan.prompts[plan.prompt_of(image)], 200)
        return
    for child in branch.children:
        if len(child.images) > 1:
            yield f"{indent}until {child.stop}:"
        yield from _tree_lines(plan, child, indent + ("  " if len(child.images) > 1 else ""))


def _steps(words: str) -> str:
    return f"{words} step{'' if words == '1' else 's'}"


def shortened(text: str, width: int) -> str:
    """Return the beginning of a text on one line. (textwrap.shorten drops a text without spaces.)"""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
