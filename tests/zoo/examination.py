"""Compare cotrunk with the loop that runs each image alone. The verdict is right, refused by name, or a fault."""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cotrunk import CotrunkError, Sharing, Skipping, generate
from cotrunk.pipelines.automatic import why_not_skipped

from .case import OWN_IMAGE, PROMPTS, Case, Variant
from .loop import NoMeanError, alone, as_tensor, record, shared
from .parts import TEXTS

TOLERANCE = 5e-5  # norm of an image's error over the norm of the image; float32 usually leaves 1e-6
# Skipping compares cotrunk with itself in calls of another batch size, whose kernels round differently, over twice the
# steps. Some random networks amplify that: Kandinsky 3 to 1e-4 in float32, with or without skipping (1e-14 in float64).
SKIPPING_TOLERANCE = 2e-4
NOTICEABLE = (
    20 * TOLERANCE
)  # least effect of a prompt, and of a group's mean, on an image; with less the comparison proves nothing
SHARE = 0.5
EVERYONE = {"similarity": -1.0, "share": SHARE}


@dataclass(frozen=True)
class Verdict:
    """What cotrunk did with a call.

    Attributes:
        word: "right", "refused" (before any forward), or the kind of fault: "wrong", "late" (refused after rows ran),
            "crash", "nameless" (a refusal that names neither the class nor an argument), "blind" (the case proves
            nothing).
        why: the refusal's sentence, or the fault; what the defaults stand for.
    """

    word: str
    why: str = ""

    @property
    def is_fault(self) -> bool:
        return self.word not in ("right", "refused")


RIGHT = Verdict("right")


def examine(case: Case, pipe: Any, variant: Variant) -> dict[str, Verdict]:
    """Return the verdicts on published sharing, on independent sampling, on skipping and on the defaults."""
    return {name: examination(case, pipe, variant) for name, examination in EXAMINATIONS.items()}


def sharing(case: Case, pipe: Any, variant: Variant) -> Verdict:
    """Check that groups share half of their steps, and that in either order of the prompts each image is the loop's."""
    groups = groups_of(case, variant)
    seeds = {prompt: 5 + number for number, group in enumerate(groups) for prompt in group}
    recorded = {i: record(case, pipe, i, variant, seeds[i]) for i in PROMPTS}
    steps = recorded[0].steps
    branch = int(SHARE * steps)
    theirs: dict[int, Tensor] | None = {}
    try:
        for group in groups:
            theirs |= shared(case, pipe, group, variant, seeds[group[0]], [recorded[i] for i in group], branch)
    except NoMeanError as reason:
        theirs, no_mean = None, reason
    settings = {"sharing": Sharing.published(**EVERYONE, encoder=encoder_of(case, variant))}
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
    members = [i for group in groups if len(group) > 1 for i in group]
    change = min((error(theirs[i], recorded[i].image) for i in members), default=NOTICEABLE)
    return (
        RIGHT if change >= NOTICEABLE else Verdict("blind", f"the mean of the group changes an image by {change:.1e}")
    )


def independent(case: Case, pipe: Any, variant: Variant) -> Verdict:
    """Check that without sharing, in either order of the prompts, each image is the bare pipeline's."""
    seeds = {i: 11 + i for i in PROMPTS}
    theirs = {i: alone(case, pipe, i, variant, seeds[i]) for i in PROMPTS}
    again = alone(case, pipe, 0, variant, seeds[0])
    if error(again, theirs[0]) > TOLERANCE:
        return Verdict("blind", "the bare pipeline does not give the same image twice")
    change = error(alone(case, pipe, 1, variant, seeds[0]), theirs[0])
    if not NOTICEABLE <= change < float("inf"):
        return Verdict("blind", f"the prompt changes an image by {change:.1e}")
    for prompts in (PROMPTS, PROMPTS[::-1]):
        verdict, result = run(case, pipe, prompts, variant, sharing=None, seed=[seeds[i] for i in prompts])
        if result is not None:
            verdict = compared(images_of(case, result, prompts), theirs)
        if verdict != RIGHT:
            return verdict
    return RIGHT


def skipping(case: Case, pipe: Any, variant: Variant) -> Verdict:
    """Check that evaluations are skipped, and that an image is the same in a batch as alone."""
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
    return compared(images_of(case, result, PROMPTS), theirs, SKIPPING_TOLERANCE)


def defaults(case: Case, pipe: Any, variant: Variant) -> Verdict:
    """Check that what is left to the pipeline is decided before any forward, and that the images are finite."""
    settings = {"sharing": Sharing(**EVERYONE, encoder=encoder_of(case, variant)), "skipping": "auto"}
    verdict, result = run(case, pipe, PROMPTS, variant, **settings)
    if result is None:
        return verdict
    if result.failed:
        return Verdict("wrong", "images with NaN")
    shared = result.plan.sharing
    guidance = {0.0: "unguided", 1.0: "guided"}[shared.trunk_guidance]
    skips = ", skipping" if why_not_skipped(pipe) is None else ""
    return Verdict("right", f"{shared.noise} noise, {guidance}{skips}")


def encoder_of(case: Case, variant: Variant) -> str:
    return "minilm" if case.speaks(variant) else "pipeline"


EXAMINATIONS: dict[str, Callable[[Case, Any, Variant], Verdict]] = {
    "sharing": sharing,
    "independent": independent,
    "skipping": skipping,
    "defaults": defaults,
}


def groups_of(case: Case, variant: Variant) -> list[list[int]]:
    """Return the groups: prompts share unless their input images differ or their pipeline cannot run them together."""
    kinds: Sequence[int] = [0] * len(PROMPTS)
    if case.together == "none":
        kinds = PROMPTS
    elif variant == "own":
        kinds = OWN_IMAGE
    elif case.together == "equal lengths" and variant == "texts":
        kinds = [len(text) for text in TEXTS]
    return [[i for i in PROMPTS if kinds[i] == kind] for kind in dict.fromkeys(kinds)]


def run(case: Case, pipe: Any, prompts: Sequence[int], variant: Variant, **settings: Any) -> tuple[Verdict, Any]:
    """Call `generate`. Return the verdict and its result; None if it raises."""
    given = {"num_inference_steps": case.steps, "output_type": case.output_type} | case.inputs(prompts, variant)
    given["skipping"] = None
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
    """Record the forwards of these parts. They are patched in their classes, so that the parts look untouched."""
    ran: list[str] = []

    def counted(kind: type, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def counting(*args: Any, **kwargs: Any) -> Any:
            ran.append(kind.__name__)
            return forward(*args, **kwargs)

        return counting

    modules = [getattr(pipe, name, None) for name in parts]
    kinds = {type(part): type(part).forward for part in modules if part is not None}
    try:
        for kind, forward in kinds.items():
            kind.forward = counted(kind, forward)
        yield ran
    finally:
        for kind, forward in kinds.items():
            kind.forward = forward


def names(pipe: Any, given: dict[str, Any], sentence: str) -> bool:
    """Return whether the sentence names the pipeline's class, the class of a part, or an argument."""
    kinds = [type(pipe), *(type(part) for part in pipe.components.values())]
    return any(word in sentence for word in [*(kind.__name__ for kind in kinds if kind.__name__ != "NoneType"), *given])


def images_of(case: Case, result: Any, prompts: Sequence[int]) -> dict[int, Tensor]:
    return dict(zip(prompts, as_tensor(getattr(result, case.field)), strict=True))


def error(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    value = float((ours.double() - theirs.double()).norm() / theirs.double().norm())
    return value if value == value else float("inf")


def compared(ours: dict[int, Tensor], theirs: dict[int, Tensor], tolerance: float = TOLERANCE) -> Verdict:
    worst, image = max((error(ours[i], theirs[i]), i) for i in theirs)
    return RIGHT if worst <= tolerance else Verdict("wrong", f"image {image} differs by {worst:.0e}")
