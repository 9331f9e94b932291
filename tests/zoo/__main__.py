"""Examine every case, put the outcomes on file, and renew the document and the README's list.

PYTHONPATH=tests python -m zoo              everything (some minutes)
PYTHONPATH=tests python -m zoo Flux Chroma  the classes whose names hold one of these words
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import diffusers
import torch

from . import document, outcomes
from .cases import CASES
from .examination import examine


def outcomes_of(name: str) -> dict[str, dict[str, str]]:
    case = CASES[name]
    pipe = case.build()
    return {
        variant: {what: outcomes.outcome_of(verdict) for what, verdict in examine(case, pipe, variant).items()}
        for variant in case.variants
    }


def be_quiet() -> None:
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()


def main(words: list[str]) -> None:
    names = [name for name in CASES if not words or any(word in name for word in words)]
    found = outcomes.read() if words else {}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), be_quiet) as pool:
        for name, variants in zip(names, pool.map(outcomes_of, names), strict=True):
            found[name] = variants
            faults = {
                v: {k: o for k, o in one.items() if o.partition(":")[0] not in ("right", "refused")}
                for v, one in variants.items()
            }
            print(name, {variant: fault for variant, fault in faults.items() if fault} or "", flush=True)
    outcomes.write({name: found[name] for name in sorted(found) if name in CASES})
    for path, text in document.files(outcomes.read()):
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
