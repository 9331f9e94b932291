"""Which waiting images leave now, and which of their groups run together.

Images of one bucket may share, so they leave together: the more of them are grouped at once, the better the groups. The
question comes up only when the device is free. So what gathers while it is busy is grouped together for nothing.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


@dataclass(frozen=True)
class Waiting:
    """A waiting image.

    Attributes:
        id: its name.
        bucket: images of different buckets never share.
        call: images with different values cannot run in one call of the pipeline.
        accepted: when it came, in seconds.
        wait: how long it may wait for similar ones, in seconds.
        is_alone: whether it shares with no other, and not even a call: then it is the bare pipeline's image to the bit.
    """

    id: str
    bucket: str
    call: Hashable
    accepted: float
    wait: float
    is_alone: bool = False

    @property
    def deadline(self) -> float:
        """The time at which it stops waiting."""
        return self.accepted if self.is_alone else self.accepted + self.wait


@dataclass(frozen=True)
class Departure:
    """What leaves now.

    Attributes:
        buckets: the images that leave, per bucket; empty if none leaves. All of them may run in one call.
        again: when an image leaves at the latest, if none leaves now and no other comes; None if none waits.
    """

    buckets: tuple[tuple[Waiting, ...], ...] = ()
    again: float | None = None


def departure(
    waiting: Sequence[Waiting], now: float, size: int, pays: Callable[[str], bool], busy: float = 0.0
) -> Departure:
    """Decide which images leave, now that the device is free.

    A bucket leaves when one of its images has waited long enough, when it fills a call, or when waiting does not pay.
    The bucket with the oldest image goes first, so no image waits for ever. Other buckets that leave go with it while
    there is room in its call, and so do those whose waiting time ends before the call is expected to.

    Args:
        waiting: oldest first.
        now: in seconds.
        size: largest number of images in one call.
        pays: whether waiting longer pays in a bucket.
        busy: how long the call is expected to take, in seconds.
    """
    buckets: dict[Hashable, list[Waiting]] = {}
    for image in waiting:
        buckets.setdefault((image.id,) if image.is_alone else image.bucket, []).append(image)
    leaving = [own for own in buckets.values() if _leaves(own, now, size, pays)]
    if not leaving:
        return Departure((), min((image.deadline for image in waiting), default=None))
    first = leaving[0]
    if first[0].is_alone:
        return Departure((tuple(first),))
    soon = [own for own in buckets.values() if own not in leaving and min(i.deadline for i in own) < now + busy]
    chosen, count = [tuple(first)], len(first)
    for own in [*leaving[1:], *soon]:
        if count >= size:
            break
        if not own[0].is_alone and own[0].call == first[0].call:
            chosen.append(tuple(own))
            count += len(own)
    return Departure(tuple(chosen))


def _leaves(own: Sequence[Waiting], now: float, size: int, pays: Callable[[str], bool]) -> bool:
    if own[0].is_alone or len(own) >= size or min(image.deadline for image in own) <= now:
        return True
    return not pays(own[0].bucket)


class Sized(Protocol):
    """A group of images."""

    @property
    def oldest(self) -> tuple[float, int]:
        """When its oldest image came, and the place of that image among those that came at that time."""

    @property
    def size(self) -> int:
        """The number of its images."""


S = TypeVar("S", bound=Sized)


def wave(groups: Iterable[S], size: int) -> list[S]:
    """Return the groups of the next call: the one with the oldest image, and others while they fit, oldest first.

    Args:
        groups: that may run in one call; at least one.
        size: largest number of images in one call. A larger group runs alone.
    """
    first, *others = sorted(groups, key=lambda group: group.oldest)
    chosen, count = [first], first.size
    for group in others:
        if count + group.size <= size:
            chosen.append(group)
            count += group.size
    return chosen
