"""Examine every case, record the outcomes, and write the document and the README's list.

PYTHONPATH=tests python -m zoo              everything (some minutes)
PYTHONPATH=tests python -m zoo Flux Chroma  the classes whose names hold one of these words
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from . import document, outcomes
from .cases import CASES


def main(words: list[str]) -> None:
    names = [name for name in CASES if not words or any(word in name for word in words)]
    on_file = outcomes.read() if words else {}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), outcomes.be_quiet) as pool:
        for name, variants in zip(names, pool.map(outcomes.found, names), strict=True):
            print(name, flush=True)
            on_file[name] = {}
            for variant, verdicts in variants.items():
                on_file[name][variant] = {what: outcomes.outcome_of(verdict) for what, verdict in verdicts.items()}
                for what, verdict in verdicts.items():
                    if verdict.is_fault:
                        print(f"  {what} ({variant}): {verdict.word}: {verdict.why}", flush=True)
    outcomes.write({name: variants for name, variants in on_file.items() if name in CASES})
    for path, text in document.files(outcomes.read()):
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
