"""Large runs: the folder of a run with many images is divided, so that people and programs can open its parts.

Images are in folders of `PER_FOLDER` (see `Job.in_folders`), the lists of run.json in files of their own
(`report_files`), and the page has further pages and thumbnails as files (`page_sheets`).
"""

from pathlib import PurePosixPath

LARGE = 10_000  # images: a folder, a run.json and a page with more are slow to open
PER_FOLDER = 1_000  # images in a folder of a large run
THUMBNAILS = "thumbs"  # folder of the small copies


def is_large(images: int) -> bool:
    """Return whether a run with so many images is a large one."""
    return images > LARGE


def thumbnail_file(file: str) -> str:
    """Return the path of the small copy of an image, relative to the folder of the run as that of the image is."""
    return f"{THUMBNAILS}/{PurePosixPath(file).with_suffix('.webp')}"
