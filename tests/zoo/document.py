"""`docs/compatibility.md` and the README's list, made of the outcomes on file."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import diffusers

from .cases import CASES, FAMILIES, family_of
from .classes import image_classes, why_not
from .outcomes import Outcomes

ROOT = Path(__file__).parents[2]
DOCUMENT, README = ROOT / "docs" / "compatibility.md", ROOT / "README.md"
BEGIN, END = "<!-- begin: made by `make compatibility` -->", "<!-- end -->"
EXAMINED = {"sharing": "sharing", "independent": "`sharing=None`", "skipping": "skipping"}
SHORT = {"embeds": "embeddings", "texts": "texts", "one": "one image", "own": "own images"}
NOTHING = "nothing shared"  # and so what sharing=None gives
FAULTS = {
    "wrong": "**wrong**",
    "late": "**refused late**",
    "crash": "**crashes**",
    "nameless": "**refused without a name**",
    "blind": "**not known**",
}

INTRODUCTION = """# Which pipelines cotrunk works with

Made by `make compatibility` from what `tests/zoo` finds; `make test` compares a part of it, `pytest -m slow` all.

Each class of diffusers {version} below was built from a small configuration with random weights and run on three
prompts of different lengths, with guidance, and with input images where it takes them: one for all prompts ("one
image"), or one per prompt ("own images"). "Right" means:

- **sharing**: with half of the steps shared, each image is what the bare pipeline gives for that prompt alone while it
  hears the mean of its group's conditions (to rounding, 5e-5 of the image in float32), in either order of the prompts.
  Prompts that bring different input images do not share.
- **`sharing=None`**: each image is what the bare pipeline gives for that prompt alone, to the same rounding, in either
  order of the prompts.
- **skipping** (`Skipping(rule="fixed", every=3)`): an image is the same in company as alone, and evaluations are
  spared. How close it comes to the image without skipping is another question ([measured here](skipping-design.md)).

"Refused" means one sentence before the denoiser runs; it stands in the notes.
"""


def document(outcomes: Outcomes) -> str:
    """The whole of docs/compatibility.md."""
    lines = [INTRODUCTION.format(version=diffusers.__version__)]
    for family in FAMILIES:
        classes = [name for name in outcomes if family_of(name) == family]
        if not classes:
            continue
        lines += [
            f"## {family}",
            "",
            "| pipeline | " + " | ".join(EXAMINED.values()) + " | notes |",
            "|---|---|---|---|---|",
        ]
        for name in sorted(classes):
            cells = [cell(name, outcomes[name], examination) for examination in EXAMINED]
            lines.append(f"| `{name}` | {' | '.join(cells)} | {notes(name, outcomes[name])} |")
        lines.append("")
    lines += ["## Not tested", "", "| pipeline | reason |", "|---|---|"]
    lines += [f"| `{name}` | {why_not(name)} |" for name in image_classes() if name not in outcomes]
    return "\n".join(lines) + "\n"


def cell(name: str, variants: dict[str, dict[str, str]], examination: str) -> str:
    """What holds, and for which inputs if not for all."""
    words = {variant: word(name, examination, found[examination]) for variant, found in variants.items()}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{found} ({SHORT[variant]})" for variant, found in words.items())


def word(name: str, examination: str, outcome: str) -> str:
    if outcome == "right" and examination == "sharing" and CASES[name].company == "none":
        return NOTHING
    return FAULTS.get(outcome, outcome.partition(":")[0])


def notes(name: str, variants: dict[str, dict[str, str]]) -> str:
    """The sentences of the refusals, each once, and what else there is to know."""
    sentences = [
        outcome.partition(": ")[2]
        for found in variants.values()
        for outcome in found.values()
        if outcome.startswith("refused")
    ]
    quoted = [f'"{sentence}"' for sentence in dict.fromkeys(sentences)]
    return " ".join([*quoted, *CASES[name].notes]).replace("|", "\\|")


def summary(outcomes: Outcomes) -> str:
    """The README's list: a line per family."""
    others = len(image_classes()) - len(outcomes)
    tested = f"{len(outcomes)} classes of diffusers {diffusers.__version__} are tested"
    lines = [f"{tested}; {others} others are not, each for a reason that the document states.", ""]
    lines += ["| family | pipelines | sharing | `sharing=None` | skipping |", "|---|---|---|---|---|"]
    for family in FAMILIES:
        of_family = {name: variants for name, variants in outcomes.items() if family_of(name) == family}
        if of_family:
            counts = [counted(of_family, examination) for examination in EXAMINED]
            lines.append(f"| {family} | {len(of_family)} | {' | '.join(counts)} |")
    return "\n".join(lines)


def counted(of_family: Outcomes, examination: str) -> str:
    """What holds for how many classes: the worst of its inputs counts for a class."""
    ranks = ["right", NOTHING, "refused", *FAULTS.values()]
    found = Counter(
        max((word(name, examination, one[examination]) for one in variants.values()), key=ranks.index)
        for name, variants in of_family.items()
    )
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{what} in {found[what]}" for what in sorted(found, key=ranks.index))


def readme(text: str, outcomes: Outcomes) -> str:
    """The README with its list renewed."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{summary(outcomes)}\n\n{END}{after}"


def files(outcomes: Outcomes) -> Iterator[tuple[Path, str]]:
    """What to write where."""
    yield DOCUMENT, document(outcomes)
    yield README, readme(README.read_text(encoding="utf-8"), outcomes)
