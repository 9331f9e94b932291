"""How far the images of a run are from the same images made in another way: PSNR of the files, in decibels."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from .arm import ALL_STEPS, INDEPENDENT
from .report import RunReport
from .report_figures import Distance

EQUAL = 100.0  # PSNR of equal images, which has no number


def with_distances(report: RunReport, folder: Path) -> RunReport:
    """Return the report with the distances between the arms of its comparison, measured on their files."""
    files = [Path(image.file).relative_to("images") for image in report.images if not image.failed]

    def between(one: str, other: str) -> Distance | None:
        return distance((folder / one / file, folder / other / file) for file in files)

    compare = {}
    for name, arm in report.compare.items():
        reference = None if name == INDEPENDENT else report.compare.get(INDEPENDENT)
        compare[name] = replace(arm, distance=between(arm.folder, reference.folder) if reference else None)
    own = {name: found for name, arm in report.compare.items() if (found := between("images", arm.folder)) is not None}
    kept = {name: own[name] for name in (INDEPENDENT, ALL_STEPS) if name in own}
    return replace(report, compare=compare, distances=kept)


def distance(pairs: Iterable[tuple[Path, Path]]) -> Distance | None:
    """Return the median and the smallest PSNR of pairs of files; None if no pair can be read."""
    found = [psnr(*pair) for pair in pairs if all(path.is_file() for path in pair)]
    return Distance(round(median(found), 2), round(min(found), 2)) if found else None


def psnr(one: Path, other: Path) -> float:
    """Return the PSNR between two image files of one size, in decibels."""
    with Image.open(one) as first, Image.open(other) as second:
        pixels = [np.asarray(image.convert("RGB"), dtype=np.float32) for image in (first, second)]
    error = float(np.mean((pixels[0] - pixels[1]) ** 2))
    return min(EQUAL, 10 * float(np.log10(255**2 / error))) if error else EQUAL
