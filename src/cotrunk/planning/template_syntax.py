r"""Templates of prompts, parsed and expanded to all their prompts, in the syntax of `dynamicprompts`.

    {red|green} {fox|owl}    each of the four
    {2$$a|b|c}               two of them in any order, joined by ","; {1-2$$ and $$a|b|c}: one or two, joined by " and "
    __animals__              each line of animals.txt; __colours/*__: of all files in the folder colours
    \{ \} \| \\ \__          the characters themselves

The library itself is not used: to its parser %, $ and _ are errors outside of templates, and # starts a comment.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations, product
from math import factorial

from ..checks import shown
from ..errors import CotrunkError

DEEPEST = 30  # braces and wildcards within each other
WILDCARD = re.compile(r"__(?=[^_\s])([\w./*-]+?)__")
_COUNT = re.compile(r"(\d*)(-?)(\d*)\$\$")
_WEIGHT = re.compile(r"\s*\d+(\.\d*)?::")


@dataclass(frozen=True)
class Choice:
    """Some of several options, in any order, with a text between them."""

    options: tuple["Template", ...]
    least: int = 1
    most: int = 1
    joint: str = ","

    def count(self) -> int:
        """Return the number of texts, equal ones included."""
        # sums[k]: over all sets of k options, the product of their counts
        sums = [1] + [0] * self.most
        for option in self.options:
            each = option.count()
            for k in range(self.most, 0, -1):
                sums[k] += sums[k - 1] * each
        return sum(factorial(k) * sums[k] for k in range(self.least, self.most + 1))

    def texts(self) -> Iterator[str]:
        """Yield each text."""
        for k in range(self.least, self.most + 1):
            for some in permutations(self.options, k):
                yield from _products(some, self.joint)


@dataclass(frozen=True)
class Template:
    """Texts and choices, one after another."""

    parts: tuple[str | Choice, ...]

    def count(self) -> int:
        """Return the number of texts, equal ones included."""
        count = 1
        for part in self.parts:
            count *= 1 if isinstance(part, str) else part.count()
        return count

    def texts(self) -> Iterator[str]:
        """Yield each text."""
        yield from _products(self.parts, "")


def _products(parts: tuple["str | Choice | Template", ...], joint: str) -> Iterator[str]:
    """Yield each combination of the texts of the parts; the last part changes fastest."""
    pools = [(part,) if isinstance(part, str) else tuple(part.texts()) for part in parts]
    for texts in product(*pools):
        yield joint.join(texts)


def parse(text: str, lines_of: Callable[[str], list[str]]) -> Template:
    """Return the template of a text.

    Args:
        lines_of: returns the lines of a wildcard from its name.

    Raises:
        CotrunkError: a brace is not closed, a count does not fit its options, or templates are nested too deeply.
    """
    return _Parser(text, lines_of, ()).whole()


class _Parser:
    """Parses one text. `within` names the wildcards whose lines it comes from."""

    def __init__(self, text: str, lines_of: Callable[[str], list[str]], within: tuple[str, ...]) -> None:
        self.text, self.lines_of, self.within = text, lines_of, within
        self.place = self.depth = 0

    def whole(self) -> Template:
        return self._template(stops="")

    def _template(self, stops: str) -> Template:
        """Return what comes before one of the stops, or before the end."""
        parts: list[str | Choice] = []
        literal = ""
        while self.place < len(self.text) and self.text[self.place] not in stops:
            character = self.text[self.place]
            following = self.text[self.place + 1 : self.place + 2]
            if character == "\\" and following and following in "{}|\\":
                literal += following
                self.place += 2
            elif self.text.startswith("\\__", self.place):
                literal += "__"
                self.place += 3
                # the name and its second pair are literal as well
                if found := re.compile(r"[\w./*-]+?__").match(self.text, self.place):
                    literal += found[0]
                    self.place = found.end()
            elif character == "{" or (character == "_" and WILDCARD.match(self.text, self.place)):
                parts += [literal, self._choice() if character == "{" else self._wildcard()]
                literal = ""
            elif self.text.startswith("${", self.place):
                raise CotrunkError(f"variables such as {shown(self.text[self.place :][:20])} are not known; write out.")
            else:
                literal += character
                self.place += 1
        parts.append(literal)
        return Template(tuple(part for part in parts if part != ""))

    def _choice(self) -> Choice:
        """Return the choice that begins here."""
        start = self.place
        self.depth += 1
        if self.depth + len(self.within) > DEEPEST:
            raise CotrunkError(f"the template is nested more than {DEEPEST} times; simplify it.")
        self.place += 1
        least, most, joint = self._number()
        options = []
        while True:
            if weight := _WEIGHT.match(self.text, self.place):  # of random choices; a grid has every option
                self.place = weight.end()
            options.append(self._template("|}"))
            if self.place >= len(self.text):
                raise CotrunkError(
                    f"the brace at {shown(self.text[start:][:20])} is not closed; add }} or write \\{{ for a brace."
                )
            self.place += 1
            if self.text[self.place - 1] == "}":
                break
        self.depth -= 1
        if len(options) == 1 and len(options[0].parts) == 1 and isinstance(options[0].parts[0], Choice):
            inner = options[0].parts[0]  # {2$$__animals__} chooses two lines
            options = list(inner.options) if (inner.least, inner.most) == (1, 1) else options
        most = len(options) if most is None else most
        if not least <= most <= len(options):
            raise CotrunkError(
                f"the choice {shown(self.text[start : self.place][:40])} takes {least} to {most} of {len(options)} "
                "options; correct the count."
            )
        return Choice(tuple(options), least, most, joint)

    def _number(self) -> tuple[int, int | None, str]:
        """Return how many options a choice takes (None for all), and the text between them."""
        found = _COUNT.match(self.text, self.place)
        if found is None or not any(found.groups()):
            return 1, 1, ","
        self.place = found.end()
        least = int(found[1] or 1)
        most = int(found[3]) if found[3] else None if found[2] else least
        joint, end = ",", self.text.find("$$", self.place)
        # a separator lies before the first option, so it holds none of these characters
        if end >= 0 and not set("{}|") & set(self.text[self.place : end]):
            joint, self.place = self.text[self.place : end], end + 2
        return least, most, joint

    def _wildcard(self) -> Choice:
        """Return the choice between the lines of the wildcard that begins here."""
        found = WILDCARD.match(self.text, self.place)
        assert found is not None
        name = found[1]
        self.place = found.end()
        if name in self.within:
            raise CotrunkError(f"the wildcard __{name}__ contains itself; remove it from its file.")
        if len(self.within) >= DEEPEST:
            raise CotrunkError(f"the template is nested more than {DEEPEST} times; simplify it.")
        return Choice(tuple(_Parser(line, self.lines_of, (*self.within, name)).whole() for line in self.lines_of(name)))
