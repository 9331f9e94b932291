"""How each image got its output at each step, and the rows that it took."""

import itertools
from collections import Counter
from collections.abc import Collection, Sequence

from .step_plan import StepPlan

REPLAY, LEFT = "replay", "left"  # the reasons of the policies that replay trunks, and of images that left the call
LETTERS = {REPLAY: "r", LEFT: "x"}


def step_letters(plans: Sequence[StepPlan], images: int) -> tuple[str, ...]:
    """Return one text per image with one letter per step taken.

    c: computed for this image alone; s: computed once for its group; p: predicted; r: replayed from a trunk; x: the
    image had left. Capitals where guidance was on.
    """
    letters = [""] * images
    for plan in plans:
        members = Counter(plan.sources)
        known = plan.known_to(0, images)
        for image, source in enumerate(plan.sources):
            reason = plan.reasons[image] if plan.reasons else None
            letter = LETTERS.get(reason or "", "p" if not known[image] else "s" if members[source] > 1 else "c")
            letters[image] += letter.upper() if _is_guided(plan, image) else letter
    return tuple(letters)


def _is_guided(plan: StepPlan, image: int) -> bool:
    """Return whether an image has guidance at a step. In a trunk that it replays, it has that of the trunk."""
    if plan.taken and plan.taken[image] == REPLAY:
        return plan.is_guided and plan.trunk.guidance > 0
    return plan.unguided[image] is None


def image_rows(plans: Sequence[StepPlan], images: int, guidance_rows: int) -> tuple[float, ...]:
    """Return the denoiser rows of each image: `guidance_rows` per computed step, or 1 where guidance was off.

    The rows of a group are divided equally among its images.
    """
    rows = [0.0] * images
    for plan in plans:
        members = Counter(plan.sources)
        known = plan.known_to(0, images)
        for image, source in enumerate(plan.sources):
            if known[image]:
                rows[image] += (guidance_rows if plan.unguided[image] is None else 1) / members[source]
    return tuple(rows)


def discontinuities(
    sources: Sequence[tuple[int, ...]], switches: Collection[int], stops: Sequence[int] = ()
) -> list[frozenset[int]]:
    """Return for each timestep, and for the one after the last, the images whose outputs change abruptly at it.

    Those are the images whose group has just split, those whose trunk has just ended, and all images where guidance is
    switched on or off.

    Args:
        sources: for each timestep, for each image, the image whose row it takes.
        switches: steps at which guidance is switched.
        stops: for each image the timesteps that it replays from a trunk. Empty if none does.
    """
    everyone, found = frozenset(range(len(sources[0]))), [frozenset[int]()]
    for step, (before, now) in enumerate(itertools.pairwise(sources), start=1):
        old, new = (Counter(row) for row in (before, now))
        parted = frozenset(i for i in everyone if old[before[i]] != new[now[i]] or (stops and stops[i] == step))
        found.append(everyone if step in switches else parted)
    return [*found, frozenset()]
