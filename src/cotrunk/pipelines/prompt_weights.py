r"""Weights of words in prompts, in the syntax of web UIs.

(word:1.3)  weight 1.3         (word)  weight 1.1; ((word)) 1.21
[word]      weight 1 / 1.1     BREAK   what follows is encoded by itself
\( \) \[ \] the characters themselves
"""

import re
from dataclasses import dataclass

from ..checks import shown
from ..errors import CotrunkError

LARGEST = 10.0  # weights beyond 1.6 or so give noise; more than this is a typing error
STEP = 1.1  # of one pair of brackets
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_TOKEN = re.compile(rf"\\[()\[\]\\]|[()\[\]]|:\s*(?P<weight>{_NUMBER})\s*\)|\s*\bBREAK\b\s*|\\|:|[^()\[\]\\:B]+|B")
_WEIGHTED = re.compile(rf"(?<!\\)\([^()]*:\s*{_NUMBER}\s*\)|\bBREAK\b")


@dataclass(frozen=True)
class Piece:
    """A text with one weight."""

    text: str
    weight: float = 1.0


def looks_weighted(prompt: str) -> bool:
    """Return whether a prompt has a weight or BREAK in it."""
    return _WEIGHTED.search(prompt) is not None


def parse_weights(prompt: str) -> list[list[Piece]]:
    """Return the parts of a prompt between its BREAKs, each as pieces with their weights.

    Raises:
        CotrunkError: a bracket is not closed, or a weight is out of range.
    """
    parts: list[list[Piece]] = [[]]
    opened: list[tuple[str, int, int, int]] = []  # the bracket, its place, and where its pieces begin
    for token in _TOKEN.finditer(prompt):
        text = token[0]
        if text in ("(", "["):
            opened.append((text, token.start(), len(parts) - 1, len(parts[-1])))
        elif token["weight"] is not None and opened and opened[-1][0] == "(":
            weight = float(token["weight"])
            if not 0 <= weight <= LARGEST:
                within = prompt[opened[-1][1] : token.end()]
                raise CotrunkError(
                    f"the weight in {shown(within)} is out of range: use 0 or more, at most {LARGEST:g}."
                )
            _weigh(parts, opened.pop(), weight)
        elif text in (")", "]") and opened and opened[-1][0] == {")": "(", "]": "["}[text]:
            _weigh(parts, opened.pop(), STEP if text == ")" else 1 / STEP)
        elif text.strip() == "BREAK":
            parts.append([])
        else:
            parts[-1].append(Piece(text[1:] if len(text) == 2 and text[0] == "\\" else text))
    if opened:
        begin = shown(prompt[opened[0][1] :][:20])
        raise CotrunkError(f"the bracket at {begin} is not closed: close it, or write \\{opened[0][0]} for a bracket.")
    return [_joined(part) for part in parts]


def plain_text(prompt: str) -> str:
    """Return a prompt without its weights, as it is compared with others; unchanged if they cannot be read."""
    try:
        parts = parse_weights(prompt)
    except CotrunkError:
        return prompt
    return " ".join(" ".join("".join(piece.text for piece in part).split()) for part in parts).strip()


def _weigh(parts: list[list[Piece]], opened: tuple[str, int, int, int], weight: float) -> None:
    """Multiply the weights of all pieces since a bracket was opened."""
    _, _, part, piece = opened
    for number in range(part, len(parts)):
        begin = piece if number == part else 0
        parts[number][begin:] = [Piece(each.text, each.weight * weight) for each in parts[number][begin:]]


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Return the pieces with neighbours of one weight joined, without empty ones."""
    found: list[Piece] = []
    for piece in pieces:
        if found and found[-1].weight == piece.weight:
            found[-1] = Piece(found[-1].text + piece.text, piece.weight)
        elif piece.text:
            found.append(piece)
    return [piece for piece in found if piece.text.strip()]
