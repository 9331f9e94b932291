"""Which process a worker is, so that its death is known at once, not only when its lease has run out.

A process number alone may belong to another process by now, or mean another process in another container. The identity
therefore has the start of the machine, the name space of process numbers and the start of the process. Linux only:
elsewhere, and on another machine, a dead worker is noticed when its lease has run out.
"""

import os
from pathlib import Path

PROC = Path("/proc")


def identity() -> str | None:
    """Return the identity of this process, or None if the system does not tell."""
    place = _place()
    started = _started(os.getpid())
    return None if place is None or started is None else f"{place} {os.getpid()} {started}"


def is_gone(process: str | None) -> bool:
    """Return whether a process is known to have ended."""
    if process is None:
        return False
    place, number, started = process.rsplit(" ", 2)
    return place == _place() and _started(int(number)) != started


def _place() -> str | None:
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {(PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return None


def _started(number: int) -> str | None:
    """Return when a process started, in ticks since the start of the machine; None if it has ended."""
    try:
        fields = (PROC / str(number) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended; its parent has not asked for it yet
