"""The settings that `cotrunk tune` tries, in order, and their names."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

from ..settings import Settings, Sharing, Skipping

MIN_PROMPTS = 4  # to compare settings on
SHARES, TOLERANCES, INTERVAL = (0.2, 0.3, 0.4), (0.012, 0.03, 0.07), (0.1, 0.8)
FEWER_STEPS = (0.67, 0.5, 0.34, 0.25, 0.17, 0.12)  # as fractions of the steps of the reference


def candidate(
    steps: int,
    share: float = 0.0,
    similarity: float | None = None,
    tolerance: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    is_published: bool = False,
) -> Settings:
    """Return the settings with these values.

    Args:
        share: fraction of the steps that groups share; 0 for independent sampling.
        similarity: minimum cosine in a group; None for the encoder's own threshold.
        tolerance: the tolerance of skipping; None for no skipping.
        guidance_interval: fractions of the steps between which guidance is on; None for all steps.
        is_published: whether trunks are sampled as in the paper, and not in the default way.
    """
    kind = Sharing.published if is_published else Sharing
    minimum: float | Literal["auto"] = "auto" if similarity is None else similarity
    return Settings(
        sharing=kind(share=share, similarity=minimum) if share else None,
        skipping=None if tolerance is None else Skipping(tolerance=tolerance),
        guidance_interval=guidance_interval,
        steps=steps,
    )


def candidates(
    steps: int, similarity: float | None = None, others: Sequence[float] = (), equal_cost: int = 0
) -> Iterator[Settings]:
    """Yield the settings to try, the most informative first.

    Args:
        steps: of the reference.
        similarity: minimum cosine in a group; None for the encoder's own threshold.
        others: further similarities to try.
        equal_cost: the number of independent steps that fit in the row limit of `tune`; 0 for none.
    """
    yield candidate(steps)
    fewer = [few for few in dict.fromkeys(max(2, round(part * steps)) for part in FEWER_STEPS) if few < steps]
    yield from (candidate(few) for few in dict.fromkeys([*fewer, equal_cost]) if 0 < few < steps)
    yield from (candidate(steps, tolerance=tolerance) for tolerance in TOLERANCES)
    yield from (candidate(steps, share, similarity) for share in SHARES)
    yield candidate(steps, SHARES[1], similarity, is_published=True)
    yield from (candidate(steps, share, similarity, tolerance) for share in SHARES[:2] for tolerance in TOLERANCES)
    yield from (candidate(few, SHARES[1], similarity) for few in fewer[:4])
    yield from (candidate(steps, SHARES[1], other) for other in others)
    for share, tolerance in itertools.product((0.0, SHARES[1]), TOLERANCES[:2]):
        yield candidate(steps, share, similarity if share else None, tolerance, INTERVAL)


def neighbours(threshold: float) -> list[float]:
    """Return a looser and a stricter similarity, at 1.5 and 0.5 times the threshold's distance from 1."""
    found = (max(-1.0, round(1 - part * (1 - threshold), 3)) for part in (1.5, 0.5))
    return [similarity for similarity in found if similarity != threshold]


def family(settings: Settings) -> str:
    """Return the name of settings without steps and tolerance. In the figure, all settings of one name are one line."""
    sharing = settings.sharing
    parts = [f"shared {sharing.share:.0%}" if sharing else "independent"]
    parts += (
        ["published trunk"]
        if sharing and sharing == Sharing.published(share=sharing.share, similarity=sharing.similarity)
        else []
    )
    if settings.sharing and settings.sharing.similarity != "auto":
        parts.append(f"similarity {settings.sharing.similarity:g}")
    parts += ["skipping"] if settings.skipping else []
    parts += ["guided in part"] if settings.guidance_interval is not None else []
    return ", ".join(parts)


def description(settings: Settings) -> str:
    """Return the name of settings, with steps and tolerance."""
    skipping = f", tolerance {settings.skipping.tolerance:g}" if isinstance(settings.skipping, Skipping) else ""
    return f"{family(settings)}, {settings.steps} steps{skipping}"
