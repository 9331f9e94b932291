"""What the command line prints: warnings, the summary of a run, the table of a plan.

Prompts, paths, names of models and the error messages of libraries come from others. None of their characters may
control the terminal: `_Console` makes them visible wherever they are printed.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..planning.plan import Findings, Plan
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
        start, end = _short(prompts[index], 40), _short(cut, 200)
        say("yellow", "warning", f"prompt {index} ({start!r}) is too long for the text encoder, which cuts off {end!r}")
    if len(findings.truncated) > WARNINGS:
        say("yellow", "warning", f"{len(findings.truncated) - WARNINGS} more prompts are too long")
    for found in findings.alike[:WARNINGS]:
        named = [f"{index} ({_short(prompts[index], 40)!r})" for index in found[:WARNINGS]]
        more = f" and {len(found) - len(named)} more" if len(found) > len(named) else ""
        what = f"prompts {', '.join(named)}{more}"
        say("yellow", "warning", f"{what} look identical to the text encoder; their images differ only by seed")
    if len(findings.alike) > WARNINGS:
        more = _count(len(findings.alike) - WARNINGS, "more set")
        say("yellow", "warning", f"{more} of prompts look identical to the text encoder")


def print_summary(report: "RunReport", folder: Path) -> None:
    """Print what a run saved and where its page is."""
    rows, seconds = report.rows, report.seconds
    out.print(
        f"{_count(len(report.images), 'image')} for {rows.used:,} denoiser rows instead of {rows.independent:,}: "
        f"saved {rows.saving:.1%} ({seconds.denoise:.1f} s denoising, {seconds.total:.1f} s in all).",
        soft_wrap=True,
    )
    spared = rows.spared
    if spared.skipping or spared.guidance:
        ways = {"sharing": spared.sharing, "skipping": spared.skipping, "guidance": spared.guidance}
        parts = (f"{name} {count:,}" for name, count in ways.items() if count)
        out.print(f"  rows saved by {', by '.join(parts)}", soft_wrap=True)
    for name, arm in report.compare.items():
        out.print(
            f"  {name.replace('_', ' ')}: {_count(arm.steps, 'step')}, {arm.rows:,} rows, "
            f"{arm.seconds.denoise:.1f} s denoising",
            soft_wrap=True,
        )
    for sentence in report.fallbacks:
        out.print(sentence, soft_wrap=True, markup=False)
    if why := report.why_nothing_shared:
        out.print(f"Nothing was shared: {why} (--share, --similarity, --max-group, --mode).", soft_wrap=True)
    out.print(f"Open {escape(str(folder / 'index.html'))}", soft_wrap=True)


def print_plan(plan: "Plan", show: int) -> None:
    """Print the groups of a plan, largest saving first, and what it saves."""
    groups = [tree for tree in plan.trees if len(tree.images) > 1]
    groups.sort(key=lambda tree: (plan.cost_of([tree]).used - plan.cost_of([tree]).independent, tree.images))
    if groups and show:
        table = Table("group", "prompts", "similarity", "branches at", "rows", "saved", box=None, pad_edge=False)
        for number, tree in enumerate(groups[:show], 1):
            cost = plan.cost_of([tree])
            branches = ", ".join(str(stop) for stop in sorted({n.stop for n in tree.nodes() if n.children}))
            prompts = (plan.prompts[plan.prompt_of(image)] for image in tree.images)
            texts = "\n".join(escape(_short(prompt, 200)) for prompt in prompts)
            table.add_row(
                str(number),
                texts,
                f"{tree.similarity:.2f}",
                f"{branches} of {plan.timesteps}",
                f"{cost.used:,} of {cost.independent:,}",
                f"{cost.saving:.1%}",
            )
        out.print(table)
    if len(groups) > show:
        more = _count(len(groups) - show, "more group")
        out.print(f"... and {more} (--show {len(groups)} prints them all)", soft_wrap=True)
    if groups and plan.sharing is not None:
        from ..planning.sharing import how_shared

        out.print(how_shared(plan.sharing, is_guided=plan.guidance_rows > 1), soft_wrap=True)
        if plan.findings.fallback is not None:
            out.print(plan.findings.fallback, soft_wrap=True, markup=False)
    cost, alone = plan.cost, sum(len(tree.images) == 1 for tree in plan.trees)
    out.print(
        f"{_count(len(plan), 'image')}, {_count(len(groups), 'group')}, {alone} alone, "
        f"similarity {plan.threshold or 0:g} or more: "
        f"{cost.used:,} denoiser rows instead of {cost.independent:,}, {cost.saving:.1%} saved.",
        soft_wrap=True,
    )
    if cost.saving < WORTH_IT:
        from ..planning.sharing import why_nothing_shared

        share = 0.0 if plan.sharing is None else plan.sharing.share
        little = f"--share {share:g} limits the saving" if share < 2 * WORTH_IT else "these prompts differ too much"
        out.print(
            f"Not worth it: sharing would save less than {WORTH_IT:.0%}. It pays off for variations of the same "
            f"subjects; {why_nothing_shared(plan) or little}.",
            soft_wrap=True,
        )


def _short(text: str, width: int) -> str:
    """Return the beginning of a text on one line. (textwrap.shorten drops a text without spaces.)"""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
