"""Split the concepts: one in five, with all its styles and colours, is held out for evaluation."""

import zlib

HELD_OUT = 5  # one concept in so many


def is_held_out(concept: str) -> bool:
    return zlib.crc32(concept.encode()) % HELD_OUT == 0


def caption(line: dict) -> str:
    """Return the caption, such as `owl, flat style`, or `blue owl, flat style` for a recoloured copy."""
    name = f"{line['colour']} {line['concept']}" if line["copy"] else line["concept"]
    return f"{name}, {line['style']} style"
