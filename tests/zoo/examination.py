"""cotrunk against the loop that runs each image alone: right, refused by name, or at fault."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cotrunk import CotrunkError, Sharing, Skipping, generate

from .case import OWN_IMAGE, PROMPTS, Case, Variant
from .loop import NoMeanError, alone, as_tensor, shared, steps_of
from .parts import TEXTS

TOLERANCE = 5e-5  # norm of an image's error over the norm of the image; float32 leaves some 1e-6
HEARD = 20 * TOLERANCE  # what a prompt, and the mean of a group, must change, lest the comparison be blind
SHARE = 0.5
EVERYONE = {"similarity": -1.0, "share": SHARE}


@dataclass(frozen=True)
class Verdict:
    """What cotrunk made of a call.

    Attributes:
        word: "right", "refused" (before any forward), or the kind of fault: "wrong", "late" (refused after rows ran),
            "crash", "nameless" (a refusal that names neither the class nor an argument), "blind" (the case proves
            nothing).
        why: the refusal's sentence, or the fault.
    """

    word: str
    why: str = ""

    @property
    def is_fault(self) -> bool:
        return self.word not in ("right", "refused")


RIGHT = Verdict("right")


def examine(case: Case, pipe: Any, variant: Variant) -> dict[str, Verdict]:
    """The verdicts on sharing, on independent sampling and on skipping."""
    return {name: examination(case, pipe, variant) for name, examination in EXAMINATIONS.items()}


def sharing(case: Case, pipe: Any, variant: Variant) -> Verdict:
    """Groups share half of their steps: in either order of the prompts each image is the loop's."""
    groups = groups_of(case, variant)
    seeds = {prompt: 5 + number for number, group in enumerate(groups) for prompt in group}
    steps = steps_of(case, pipe, variant)
    branch = int(SHARE * steps)
    try:
        theirs, apart = shared(case, pipe, groups, variant, seeds, branch)
    except NoMeanError as reason:
        theirs, no_mean = None, reason
    settings = {"sharing": Sharing(**EVERYONE, encoder="minilm" if case.speaks(variant) else "pipeline")}
    for prompts in (PROMPTS, PROMPTS[::-1]):
        verdict, result = run(case, pipe, prompts, variant, seed=[seeds[i] for i in prompts], **settings)
        if result is None:
            return verdict
        if theirs is None:
            return Verdict("wrong", f"shares, though {no_mean} has no mean")
        planned = sorted((sorted(prompts[i] for i in tree.images), tree.stop) for tree in result.plan.trees)
        expected = sorted((group, branch if len(group) > 1 else steps) for group in groups)
        if planned != expected:
            return Verdict("wrong", f"shares {planned} where {expected} is due")
        verdict = compared(images_of(case, result, prompts), theirs)
        if verdict != RIGHT:
            return verdict
    change = min(error(theirs[i], apart[i]) for i in groups[0])
    return RIGHT if change >= HEARD else Verdict("blind", f"the mean of the group changes an image by {change:.1e}")


def independent(case: Case, pipe: Any, variant: Variant) -> Verdict:
    """Without sharing, in either order of the prompts, each image is the bare pipeline's."""
    seeds = {i: 11 + i for i in PROMPTS}
    theirs = {i: alone(case, pipe, i, variant, seeds[i]) for i in PROMPTS}
    again = alone(case, pipe, 0, variant, seeds[0])
    if error(again, theirs[0]) > TOLERANCE:
        return Verdict("blind", "the bare pipeline does not give the same image twice")
    change = error(alone(case, pipe, 1, variant, seeds[0]), theirs[0])
    if not HEARD <= change < float("inf"):
        return Verdict("blind", f"the prompt changes an image by {change:.1e}")
    for prompts in (PROMPTS, PROMPTS[::-1]):
        verdict, result = run(case, pipe, prompts, variant, sharing=None, seed=[seeds[i] for i in prompts])
        if result is not None:
            verdict = compared(images_of(case, result, prompts), theirs)
        if verdict != RIGHT:
            return verdict
    return RIGHT


def skipping(case: Case, pipe: Any, variant: Variant) -> Verdict:
    """One evaluation in three is computed, and an image is the same in company as alone."""
    seeds = {i: 11 + i for i in PROMPTS}
    settings = {
        "skipping": Skipping(rule="fixed", every=3),
        "sharing": None,
        "num_inference_steps": case.skipping_steps,
    }
    verdict, result = run(case, pipe, PROMPTS, variant, seed=[seeds[i] for i in PROMPTS], **settings)
    if result is None:
        return verdict
    if not result.spared["skipping"]:
        return Verdict("wrong", "nothing is skipped")
    theirs = {}
    for i in PROMPTS[1:]:
        verdict, single = run(case, pipe, [i], variant, seed=[seeds[i]], **settings)
        if single is None:
            return verdict
        theirs |= images_of(case, single, [i])
    return compared(images_of(case, result, PROMPTS), theirs)


EXAMINATIONS: dict[str, Callable[[Case, Any, Variant], Verdict]] = {
    "sharing": sharing,
    "independent": independent,
    "skipping": skipping,
}


def groups_of(case: Case, variant: Variant) -> list[list[int]]:
    """Prompts share unless they bring different images, or texts of different lengths where those cannot be padded."""
    lengths = [len(text) for text in TEXTS]
    apart = OWN_IMAGE if variant == "own" else lengths if variant == "texts" and case.unpadded else [0] * len(PROMPTS)
    return [[i for i in PROMPTS if apart[i] == kind] for kind in dict.fromkeys(apart)]


def run(case: Case, pipe: Any, prompts: Sequence[int], variant: Variant, **settings: Any) -> tuple[Verdict, Any]:
    """What `generate` gives, or what it raises, as a verdict."""
    given = {"num_inference_steps": case.steps, "output_type": case.output_type} | case.inputs(prompts, variant)
    try:
        with forwards(pipe, case.denoisers) as ran, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return RIGHT, generate(pipe, **given | settings)
    except CotrunkError as refusal:
        if ran:
            return Verdict("late", str(refusal)), None
        return Verdict("refused" if names(pipe, given, str(refusal)) else "nameless", str(refusal)), None
    except Exception as crash:
        return Verdict("crash", f"{type(crash).__name__}: {str(crash).splitlines()[0][:120]}"), None


@contextmanager
def forwards(pipe: Any, parts: Sequence[str]) -> Iterator[list[str]]:
    """The forwards of these parts, as they come. Torch's hook of all modules leaves no trace on any of them."""
    watched = {id(getattr(pipe, name, None)): name for name in parts}
    ran: list[str] = []

    def count(module: torch.nn.Module, _: Any) -> None:
        if id(module) in watched:
            ran.append(watched[id(module)])

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        yield ran
    finally:
        handle.remove()


def names(pipe: Any, given: dict[str, Any], sentence: str) -> bool:
    """Whether the sentence names the pipeline's class, the class of one of its parts, or an argument."""
    kinds = [type(pipe), *(type(part) for part in pipe.components.values())]
    return any(word in sentence for word in [*(kind.__name__ for kind in kinds if kind.__name__ != "NoneType"), *given])


def images_of(case: Case, result: Any, prompts: Sequence[int]) -> dict[int, Tensor]:
    return dict(zip(prompts, as_tensor(getattr(result, case.field)), strict=True))


def error(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    value = float((ours.double() - theirs.double()).norm() / theirs.double().norm())
    return value if value == value else float("inf")


def compared(ours: dict[int, Tensor], theirs: dict[int, Tensor]) -> Verdict:
    worst, image = max((error(ours[i], theirs[i]), i) for i in theirs)
    return RIGHT if worst <= TOLERANCE else Verdict("wrong", f"image {image} differs by {worst:.0e}")
