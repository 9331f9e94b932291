"""Record what the examinations found. The tests compare with it, and the document is made from it."""

import json
from collections.abc import Mapping
from pathlib import Path

import diffusers
import torch

from .cases import CASES
from .examination import Verdict, examine

FILE = Path(__file__).with_name("outcomes.json")

# class -> variant -> what was examined -> "right", "right: WHAT THE DEFAULTS STAND FOR", "refused: SENTENCE", or a
# fault's word
Outcomes = dict[str, dict[str, dict[str, str]]]


def outcome_of(verdict: Verdict) -> str:
    """Return what is recorded of a verdict: of a fault only its kind, because its numbers differ between machines."""
    says = verdict.why and not verdict.is_fault
    return f"{verdict.word}: {verdict.why}" if says else verdict.word


def found(name: str) -> dict[str, dict[str, Verdict]]:
    """Examine a class with all its variants, and return the verdicts."""
    pipe = CASES[name].build()
    return {variant: examine(CASES[name], pipe, variant) for variant in CASES[name].variants}


def be_quiet() -> None:
    """Use one thread, because the models are small, and show no progress."""
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()


def read() -> Outcomes:
    return json.loads(FILE.read_text(encoding="utf-8"))


def write(outcomes: Mapping[str, dict[str, dict[str, str]]]) -> None:
    FILE.write_text(json.dumps(outcomes, indent=1, sort_keys=True) + "\n", encoding="utf-8")
