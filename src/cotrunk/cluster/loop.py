"""Passes over the waves that are left, until none is: the one answer to lost machines, errors of Ray and hangs."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from ..errors import CotrunkError
from ..storage.files import StoredFiles
from .manifest import Finished, parts, read_part, remove_parts
from .watchdog import Watchdog
from .waves import Wave

POLL = 0.5  # seconds between two looks at the manifest
# Passes in a row in which no wave was finished until the run is given up: more than the deaths until a group is.
FRUITLESS = 5
ALL_FAILED = 30  # groups that fail before any succeeds until the run is given up


class Pass(Protocol):
    """One pass over some waves, which is running."""

    def ended(self) -> str | None:
        """Return None while it runs, then why it ended; empty if it is through.

        Raises:
            CotrunkError: an error of the input, which another pass would meet too.
        """

    def stop(self) -> None:
        """End it with all that belongs to it."""


def finish(
    waves: Iterable[Wave],
    begin: Callable[[Sequence[str]], Pass],
    store: StoredFiles,
    watchdog: Watchdog,
    *,
    on_finished: Callable[[Sequence[Finished]], None] = lambda found: None,
    remove: Callable[[Sequence[str]], Collection[str]] | None = None,
    on_pass: Callable[[str], None] = lambda why: None,
    poll: float = POLL,
) -> list[str]:
    """Run passes until every wave has a part of the manifest. Return the records of the groups that failed.

    Args:
        waves: heaviest first; their recipes are not read.
        begin: starts a pass over the waves with these ids, in this order.
        store: in which the parts of the manifest appear.
        watchdog: tells when a pass hangs.
        on_finished: called with the waves that were finished since the last call, some of them perhaps once more.
        remove: called afterwards with the names of their parts, of which it removes those that it returns; None
            removes all.
        on_pass: called with the reason before another pass begins.
        poll: seconds between two looks at the manifest.

    Raises:
        CotrunkError: an error of the input, or nothing is finished in several passes.
    """

    def remove_all(names: Sequence[str]) -> Collection[str]:
        remove_parts(store, names)
        return names

    left, known = {wave.id: wave for wave in waves}, set[str]()
    remove = remove_all if remove is None else remove
    failed, images, fruitless = list[str](), 0, 0

    def collect() -> int:
        """Take the parts that are there. Return how many of the waves left are done."""
        nonlocal images
        names = [name for name in parts(store) if name not in known]
        read = {name: read_part(store, name) for name in names}
        found = [one for one in read.values() if one is not None]
        if names:
            on_finished(found)
        new = 0
        for one in found:
            if (wave := left.pop(one.wave, None)) is not None:
                new += 1
                failed.extend(one.failed)
                images += sum(len(line.images) for line in one.lines)
                watchdog.arrived(wave.rows, one.seconds)
        good = [name for name in names if read[name] is not None]
        remove_parts(store, sorted({*names} - {*good}))  # damaged: their waves are left
        known.update(good)
        known.difference_update(remove(good))
        return new

    collect()
    while left:
        count, why, running = len(left), None, begin(list(left))
        watchdog.begin()
        try:
            while left and why is None:
                time.sleep(poll)
                why = _ended(running)  # before looking: what a pass wrote before it ended is found
                if not collect() and why is None and watchdog.is_overdue(max(wave.rows for wave in left.values())):
                    why = "no wave was finished for ten times as long as one takes"
                if len(failed) >= ALL_FAILED and not images:
                    raise CotrunkError(
                        f"The first {len(failed)} groups all failed: read {failed[-1]}, then continue with --resume."
                    )
        finally:
            running.stop()
        fruitless = fruitless + 1 if len(left) == count else 0
        if fruitless == FRUITLESS:
            raise CotrunkError(
                f"No wave was finished in {FRUITLESS} passes ({why or 'they ended early'}): look at the logs of Ray, "
                "then continue with --resume."
            )
        if left:
            on_pass(why or "it ended before all waves were finished")
    return failed


def _ended(running: Pass) -> str | None:
    try:
        return running.ended()
    except CotrunkError as error:
        raise CotrunkError(f"{error} Then continue with --resume.") from None
