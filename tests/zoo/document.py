"""Write `docs/compatibility.md` from the recorded outcomes."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import diffusers

from .cases import CASES, FAMILIES, family_of
from .classes import image_classes, why_not
from .outcomes import Outcomes

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "compatibility.md"
DEFAULTS = "defaults"
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

INTRODUCTION = """# Supported pipelines

`make compatibility` writes this page from what `tests/zoo` finds. `make test` repeats a part of the
comparisons, and `pytest -m slow` all of them.

Each class of diffusers {version} below was built from a small configuration with random weights. It ran on
three prompts of different lengths, with guidance. Where it takes input images, it ran with one image for all
prompts ("one image") and with one per prompt ("own images"). "Right" means:

- **sharing**: half of the steps are shared. Each image is what the bare pipeline gives for that prompt alone,
  if its denoiser gets the mean of the group's conditions. It is equal up to rounding (5e-5 of the image in
  float32), in either order of the prompts. Prompts with different input images do not share.
- **`sharing=None`**: each image is what the bare pipeline gives for that prompt alone, up to the same rounding,
  in either order of the prompts.
- **skipping** (`Skipping(rule="fixed", every=3)`): evaluations are skipped, and an image is the same in a batch
  as alone (up to 2e-4). How close it is to the image without skipping is [measured
  elsewhere](skipping-design.md).
- **defaults**: what `noise`, `trunk_guidance` and `skipping` of "auto" stand for. It is decided before the denoiser
  runs, and the images are finite.

"Refused" means that cotrunk refuses the class in one sentence before the denoiser runs; the notes quote it.

Other tests cover AudioLDM2, MusicLDM, a video pipeline (Wan) and several ControlNets at once; LoRA, offloading,
`torch.compile` and callbacks. 25 scheduler settings are compared with a plain transcription of the paper's
Algorithm 1 (DDIM, DDPM, DPM++ 2M, 3M, SDE and single-step, UniPC, PNDM, LMS, DEIS, Euler, Euler ancestral, Heun,
KDPM2, LCM, TCD, SA-Solver, flow-match Euler and Heun, ...). Skipping refuses caches (`enable_cache`), perturbed
attention, and schedulers whose noise schedule it cannot read. Nothing has been run on a GPU or on downloaded weights
yet.
"""


def document(outcomes: Outcomes) -> str:
    """Return the text of docs/compatibility.md."""
    lines = [INTRODUCTION.format(version=diffusers.__version__), summary(outcomes), ""]
    for family in FAMILIES:
        classes = [name for name in outcomes if family_of(name) == family]
        if not classes:
            continue
        lines += [
            f"## {family}",
            "",
            "| pipeline | " + " | ".join([*EXAMINED.values(), DEFAULTS]) + " | notes |",
            "|---|---|---|---|---|---|",
        ]
        for name in sorted(classes):
            cells = [cell(name, outcomes[name], examination) for examination in (*EXAMINED, DEFAULTS)]
            lines.append(f"| `{name}` | {' | '.join(cells)} | {notes(name, outcomes[name])} |")
        lines.append("")
    lines += ["## Not tested", "", "| pipeline | reason |", "|---|---|"]
    lines += [f"| `{name}` | {why_not(name)} |" for name in image_classes() if name not in outcomes]
    return "\n".join(lines) + "\n"


def cell(name: str, variants: dict[str, dict[str, str]], examination: str) -> str:
    """Return what holds, and for which inputs if not for all."""
    words = {variant: word(name, examination, found[examination]) for variant, found in variants.items()}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{found} ({SHORT[variant]})" for variant, found in words.items())


def word(name: str, examination: str, outcome: str) -> str:
    if outcome == "right" and examination == "sharing" and CASES[name].together == "none":
        return NOTHING
    kind, _, said = outcome.partition(": ")
    return said if examination == DEFAULTS and kind == "right" else FAULTS.get(outcome, kind)


def notes(name: str, variants: dict[str, dict[str, str]]) -> str:
    """Return the sentences of the refusals, each once, and the notes of the case."""
    sentences = [
        outcome.partition(": ")[2]
        for found in variants.values()
        for outcome in found.values()
        if outcome.startswith("refused")
    ]
    quoted = [f'"{sentence}"' for sentence in dict.fromkeys(sentences)]
    return " ".join([*quoted, *CASES[name].notes]).replace("|", "\\|")


def summary(outcomes: Outcomes) -> str:
    """Return the first table: one line per family."""
    others = len(image_classes()) - len(outcomes)
    tested = f"{len(outcomes)} classes of diffusers {diffusers.__version__} are tested"
    lines = [f"{tested}; {others} others are not, each for a stated reason.", ""]
    lines += ["| family | pipelines | sharing | `sharing=None` | skipping |", "|---|---|---|---|---|"]
    for family in FAMILIES:
        of_family = {name: variants for name, variants in outcomes.items() if family_of(name) == family}
        if of_family:
            counts = [counted(of_family, examination) for examination in EXAMINED]
            lines.append(f"| {family} | {len(of_family)} | {' | '.join(counts)} |")
    return "\n".join(lines)


def counted(of_family: Outcomes, examination: str) -> str:
    """Return what holds for how many classes; the worst of its inputs counts for a class."""
    ranks = ["right", NOTHING, "refused", *FAULTS.values()]
    found = Counter(
        max((word(name, examination, one[examination]) for one in variants.values()), key=ranks.index)
        for name, variants in of_family.items()
    )
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{what} in {found[what]}" for what in sorted(found, key=ranks.index))


def files(outcomes: Outcomes) -> Iterator[tuple[Path, str]]:
    """Yield each file and its text."""
    yield DOCUMENT, document(outcomes)
