"""What the examinations found, on file: the tests compare with it, and the document is made of it."""

import json
from pathlib import Path

from .examination import Verdict

FILE = Path(__file__).with_name("outcomes.json")

# class -> variant -> what was examined -> "right", "refused: SENTENCE", or a fault's word
Outcomes = dict[str, dict[str, dict[str, str]]]


def outcome_of(verdict: Verdict) -> str:
    """A fault is on file as a word: its numbers differ from machine to machine."""
    return f"refused: {verdict.why}" if verdict.word == "refused" else verdict.word


def read() -> Outcomes:
    return json.loads(FILE.read_text(encoding="utf-8"))


def write(outcomes: Outcomes) -> None:
    FILE.write_text(json.dumps(outcomes, indent=1, sort_keys=True) + "\n", encoding="utf-8")
