"""Which images are for what: one concept in five, with all its styles and colours, is kept apart for evaluation."""

import zlib

KEPT_APART = 5


def apart(concept: str) -> bool:
    return zlib.crc32(concept.encode()) % KEPT_APART == 0


def caption(line: dict) -> str:
    """`blue owl, flat style`: a copy in another colour is called by it."""
    name = f"{line['colour']} {line['concept']}" if line["copy"] else line["concept"]
    return f"{name}, {line['style']} style"
