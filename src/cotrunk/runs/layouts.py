"""Folder layouts that the evaluations of benchmarks read, by name."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..checks import shown
from ..errors import CotrunkError
from ..files import read_whole
from .output import Output

Layout = Literal["geneval", "t2i-compbench"]
# GenEval (Ghosh et al. 2023): evaluate_images.py reads the folders DIR/images/00000 ..., each with its metadata.jsonl.
# T2I-CompBench (Huang et al. 2023): reads the prompt from the name, up to the first "_", and sorts by the number.
NAMES: dict[Layout, str] = {
    "geneval": "{index:05}/samples/{copy:05}",
    "t2i-compbench": "samples/{prompt}_{image:06}",
}


def laid_out(output: Output, layout: Layout, prompts: Sequence[str], file: str | None) -> Output:
    """Return the output with the names and the records of a layout.

    Args:
        output: the format and the metadata of the images.
        prompts: of the run, as they were read from the file.
        file: the file of the prompts; None if they were given otherwise.

    Raises:
        CotrunkError: the prompts or the format do not suit the layout.
    """
    output = replace(output, name=NAMES[layout])
    if layout == "t2i-compbench":
        for index, prompt in enumerate(prompts):
            if "_" in prompt:
                raise CotrunkError(
                    f"prompt {index} ({shown(prompt)}) contains _, at which T2I-CompBench cuts the prompt off when it "
                    "reads the name of a file: replace it in the prompt, or use --name."
                )
        return output
    if output.format != "png":
        raise CotrunkError(f"GenEval reads PNG files only: use --format png, not {output.format}.")
    return replace(output, records=_geneval_records(prompts, file))


def _geneval_records(prompts: Sequence[str], file: str | None) -> tuple[str, ...]:
    """Return the line of each prompt in a file such as GenEval's evaluation_metadata.jsonl."""
    plain = f"--name {shown(NAMES['geneval'])} gives the same folders without metadata.jsonl"
    if file is None or Path(file).suffix.lower() != ".jsonl":
        raise CotrunkError(
            f"--layout geneval needs --prompts FILE.jsonl, such as evaluation_metadata.jsonl of GenEval; {plain}."
        )
    with Path(file).open("rb") as opened:
        lines = read_whole(opened).decode("utf-8-sig").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        found = json.loads(line) if line.strip() else None  # the prompts were read from it before
        if found is None or (isinstance(found, dict) and not str(found.get("prompt", " ")).strip()):
            continue
        if not isinstance(found, dict) or not isinstance(found.get("tag"), str) or "prompt" not in found:
            raise CotrunkError(
                f"{file}, line {number}: GenEval needs the keys tag and prompt: use its evaluation_metadata.jsonl; "
                f"{plain}."
            )
        records.append(found)
    if [str(found["prompt"]).strip() for found in records] != list(prompts):
        raise CotrunkError(f"--layout geneval needs each prompt as it is in {file}: {plain}.")
    return tuple(json.dumps(found) for found in records)
