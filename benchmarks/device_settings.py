"""How `device.py` lets cotrunk and torch run a model: what is shared, skipped and compiled.

Weights are random, so the outputs of a denoiser do not follow a smooth trajectory as those of a trained one do, and the
default rule of skipping decides from errors that mean nothing. The rule "fixed" gives the number of computed steps that
a trained model would need, and the default rule is measured in addition: its own work per step is real.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from device_models import GROUP

from cotrunk import Branch, Plan, Sharing, Skipping
from cotrunk.planning.tree import flat_tree, leaf

SHARE = 0.3  # of the steps, in groups of four
EVERY = 3  # the fixed rule computes one step in three


@dataclass(frozen=True)
class Setting:
    """How cotrunk runs.

    Attributes:
        share: fraction of the steps that groups of four share.
        staggered: every group branches in two stages, and each group later than the one before it, so that the number
            of rows changes often.
        is_own: whether each image keeps its own noise and trunks take no guidance, instead of sharing as published.
        skipping: for `generate`.
        row_sizes: whether forwards are filled up to few numbers of rows.
    """

    share: float = 0.0
    staggered: bool = False
    is_own: bool = False
    skipping: Skipping | None = None
    row_sizes: bool = False

    def plan(self, images: int, steps: int, guidance_rows: int) -> Plan:
        trees: list[Branch] = []
        for number, first in enumerate(range(0, images, GROUP)):
            group = range(first, min(first + GROUP, images))
            if self.staggered:
                trees.append(_two_stages(group, number, steps))
            else:
                trees += flat_tree(group, int(self.share * steps + 1e-9), steps)
        texts = tuple(f"prompt {image}" for image in range(images))
        seeds = tuple(image if self.is_own else image // GROUP for image in range(images))
        own: dict[str, Any] = {"from_embeddings": True, "guidance_rows": guidance_rows}
        if self.is_own:
            own |= {"sharing": Sharing(noise="own", trunk_guidance=0.0), "threshold": 0.0}
        return Plan(texts, seeds, tuple(trees), steps, steps, **own)


def _two_stages(group: range, number: int, steps: int) -> Branch:
    """Return the tree of a group of four: one row, then two, then four."""
    first = min(2 + number, steps - 2)
    second = min(first + 2 + 2 * number, steps - 1)
    pairs = [tuple(group[:2]), tuple(group[2:])]
    below = [Branch(pair, first, second, 0.0, tuple(leaf(i, second, steps) for i in pair)) for pair in pairs]
    return Branch(tuple(group), 0, first, 0.0, tuple(below))


FIXED = Skipping(rule="fixed", every=EVERY)
CURVE: Mapping[str, Setting] = {
    "independent": Setting(),
    "shared": Setting(share=SHARE),
    "one in 3": Setting(skipping=FIXED),
    "shared + one in 3": Setting(share=SHARE, skipping=FIXED),
    "default rule": Setting(skipping=Skipping()),
    "own noise": Setting(share=SHARE, is_own=True),
    "own noise + one in 3": Setting(share=SHARE, is_own=True, skipping=FIXED),
    "staggered trees": Setting(staggered=True),
}
TOKENS: Mapping[str, Setting] = {
    "50 % of the tokens": Setting(skipping=Skipping(rule="fixed", every=1, tokens=0.5)),
    "25 % of the tokens": Setting(skipping=Skipping(rule="fixed", every=1, tokens=0.25)),
    "one in 3 + 50 % of the tokens": Setting(skipping=Skipping(rule="fixed", every=EVERY, tokens=0.5)),
}


@dataclass(frozen=True)
class Compilation:
    """How torch compiles the denoiser: its repeated blocks or all of it, for each number of rows or for any."""

    whole: bool
    dynamic: bool
    row_sizes: bool = False


COMPILE: Mapping[str, Compilation | None] = {
    "not compiled": None,
    "blocks, any rows": Compilation(whole=False, dynamic=True),
    "blocks, each number of rows": Compilation(whole=False, dynamic=False),
    "blocks, row_sizes": Compilation(whole=False, dynamic=False, row_sizes=True),
    "denoiser, any rows (--compile)": Compilation(whole=True, dynamic=True),
}
