"""What the trees of one batch replay, and the rows that it took or spared."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..engine.trace import LEFT, REPLAY
from ..planning.plan import Plan
from ..planning.tree import Branch


@dataclass(frozen=True)
class Computed:
    """A trunk that was computed in this run.

    Attributes:
        outputs: (steps, ...) what was recorded.
        rows: denoiser rows that it took, with the copies that fill a forward.
        unguided: rows that it did not take, because guidance was off outside its interval.
    """

    outputs: torch.Tensor
    rows: int
    unguided: int


@dataclass
class Ready:
    """What some trees replay.

    Attributes:
        outputs: images of a tree -> (steps, ...).
        computed: the trunks among them that were computed for these trees: images of the first tree -> trunk.
        seconds: "embed" and "denoise" of computing them.
        max_rows: as `Batching.max_rows`, lowered if the device ran out of memory.
    """

    outputs: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    computed: dict[tuple[int, ...], Computed] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)
    max_rows: int | None = None

    @property
    def rows(self) -> int:
        """The rows that computing trunks for these trees took."""
        return sum(trunk.rows for trunk in self.computed.values())

    def spared(self, counted: Counter[str], plan: Plan, trees: Sequence[Branch]) -> dict[str, int]:
        """Return the rows that a batch of these trees did not take, by reason.

        The rows that images replay count as "replay" if their trunk was there, and as "sharing" if it was computed for
        them; then without the rows that computing it took. So used and spared rows together are those asked for.

        Args:
            counted: the rows that the call of the batch did not take.
        """
        sizes = {tree.images: len(tree.images) * trunk.stop for tree in trees if (trunk := plan.replayed(tree))}
        own = sum(sizes[images] for images in self.computed)
        moved = counted[REPLAY] * own // max(1, sum(sizes.values()))
        unguided = sum(trunk.unguided for trunk in self.computed.values())
        return {
            "sharing": counted["sharing"] + moved - self.rows - unguided,
            "guidance": counted["guidance"] + unguided,
            "skipping": counted["skipping"],
            REPLAY: counted[REPLAY] - moved,
            **({LEFT: counted[LEFT]} if counted[LEFT] else {}),
        }

    def stops(self, plan: Plan, trees: Sequence[Branch]) -> list[int]:
        """Return how many timesteps each image of the trees replays, in their order."""
        replayed = [(tree, plan.replayed(tree)) for tree in trees]
        return [0 if trunk is None else trunk.stop for tree, trunk in replayed for _ in tree.images]

    def of_images(self, trees: Sequence[Branch]) -> list[torch.Tensor | None]:
        """Return the trunk of each image of the trees, in their order."""
        return [self.outputs.get(tree.images) for tree in trees for _ in tree.images]
