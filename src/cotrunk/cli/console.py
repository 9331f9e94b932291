"""What the command line shows: warnings, the bar, the summary of a run, the table of a plan.

Prompts, paths, names of models and what libraries say in their errors come from others: no character of them may do
anything to a terminal but stand there. `_Console` sees to it, wherever they are printed.
"""

import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..engine.call import StepEvent
    from ..planning.plan import Findings, Plan

WORTH_IT = 0.05  # below this saving, `cotrunk plan` advises against sharing
WARNINGS = 5  # prompts warned about one by one

# controls (ESC and C1 among them), invisible marks and those of direction, half surrogate pairs, private and unknown
# characters, separators of lines; spaces of all widths are harmless
UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
MARKS_OF_LINES = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})


def visible(text: str) -> str:
    """The text with every character spelled out that a terminal would obey or hide, ESC as \\x1b; line breaks and tabs
    stay."""
    return text if text.isascii() and text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in UNSAFE:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class _Console(Console):
    """A console on which all text is visible."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Of what is given as a string, before it is measured for a table."""
        return super().render_str(visible(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Of the rest: what bars and spinners make of their strings themselves."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


out = _Console(highlight=False)
err = _Console(stderr=True, highlight=False)


def say(style: str, label: str, text: str) -> None:
    """One line on standard error, whatever the text holds."""
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
        text = f"prompts {', '.join(named)}{more} look identical to the text encoder; their images differ only by seed"
        say("yellow", "warning", text)
    if len(findings.alike) > WARNINGS:
        more = _count(len(findings.alike) - WARNINGS, "more set")
        say("yellow", "warning", f"{more} of prompts look identical to the text encoder")


def left_out(spared: Mapping[str, int]) -> int:
    """Planned rows that were not computed; what sharing spares is not in the plan."""
    return spared["skipping"] + spared["guidance"]


class Bar:
    """Progress counted in planned denoiser rows; images and the time left beside them. A planned row is done when it is
    computed or left out: what skipping spares is not known before.

    Args:
        rows, images: of the whole run.
        rows_done, images_done: of an earlier part of it.
    """

    def __init__(self, rows: int, images: int, rows_done: int, images_done: int) -> None:
        self.total, self.images = rows, images
        self.before = self.rows = rows_done
        self.images_done = images_done
        self.begin = time.perf_counter()
        self.bar = Progress(
            BarColumn(24),
            TextColumn("{task.completed:.0f}/{task.total:.0f} rows, {task.fields[images]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=err,
            speed_estimate_period=120,
        )
        self.task = self.bar.add_task("", total=rows, completed=rows_done, images=self._images(rows_done))

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def step(self, event: "StepEvent") -> None:
        """After a scheduler step of the batch in progress."""
        self._update(self.rows + event.rows + left_out(event.rows_spared))

    def batch(self, rows: int, images: int) -> None:
        """After a batch."""
        self.rows, self.images_done = self.rows + rows, self.images_done + images
        self._update(self.rows)

    def _update(self, rows: int) -> None:
        self.bar.update(self.task, completed=rows, images=self._images(rows))

    def _images(self, rows: int) -> str:
        # from rows, so that there is a rate before the first batch ends
        rate = (rows - self.before) / self.total * self.images / max(time.perf_counter() - self.begin, 1e-9)
        return f"{self.images_done}/{self.images} images, {rate:.2f} images/s"


def print_summary(report: dict[str, Any], folder: Path) -> None:
    rows, seconds = report["rows"], report["seconds"]
    out.print(
        f"{_count(len(report['images']), 'image')} for {rows['used']:,} denoiser rows instead of "
        f"{rows['independent']:,}: saved {rows['saving']:.1%} "
        f"({seconds['denoise']:.1f} s denoising, {seconds['total']:.1f} s in all).",
        soft_wrap=True,
    )
    spared = rows["spared"]
    if spared["skipping"] or spared["guidance"]:
        parts = (f"{name} {count:,}" for name, count in spared.items() if count)
        out.print(f"  rows saved by {', by '.join(parts)}", soft_wrap=True)
    for name, arm in report.get("compare", {}).items():
        out.print(
            f"  {name.replace('_', ' ')}: {_count(arm['steps'], 'step')}, {arm['rows']:,} rows, "
            f"{arm['seconds']['denoise']:.1f} s denoising",
            soft_wrap=True,
        )
    if why := report["why_nothing_shared"]:
        out.print(f"Nothing was shared: {why} (--share, --similarity, --max-group, --mode).", soft_wrap=True)
    out.print(f"Open {escape(str(folder / 'index.html'))}", soft_wrap=True)


def print_plan(plan: "Plan", show: int) -> None:
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
        little = f"--share {share:g} bounds the saving" if share < 2 * WORTH_IT else "these prompts differ too much"
        out.print(
            f"Not worth it: sharing would save less than {WORTH_IT:.0%}. It pays for variations of the same subjects; "
            f"{why_nothing_shared(plan) or little}.",
            soft_wrap=True,
        )


def _short(text: str, width: int) -> str:
    """The beginning of a text on one line; textwrap.shorten leaves nothing of one without spaces."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
