"""How a run writes its images: their format, their names, and what else the files hold."""

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from ..checks import entries_of, one_of, shown, text, whole
from ..errors import CotrunkError
from .naming import NUMBERED, ImageFacts, check_template

Format = Literal["png", "webp", "jpeg"]
Metadata = Literal["recipe", "parameters", "none"]
SUFFIXES: dict[Format, str] = {"png": "png", "webp": "webp", "jpeg": "jpg"}
JPEG_QUALITY = 95  # differences from the original are hard to see even in enlarged details


@dataclass(frozen=True)
class Output:
    """How a run writes its images.

    Attributes:
        format: "png", "webp" or "jpeg".
        quality: 1 to 100. JPEG files have 95 by default; WebP files are lossless unless it is given. PNG is always
            lossless.
        name: template of the names below `images/`, without a suffix; a slash makes folders. Its fields are image
            (number of the image in the run), index (of the prompt), copy (of the prompt's images), id, slug (the
            prompt, shortened), prompt, seed and folder (one per 1,000 images), with the formats of Python:
            `{index:05}_{copy}`.
        metadata: "recipe" for everything that `cotrunk redo` needs, which includes the prompts of the images that were
            denoised in the same batch; "parameters" for the facts of this image alone, as web UIs write them; or
            "none".
        records: lines of JSON, one per prompt, for a file `metadata.jsonl` in the folder above that of its images;
            empty for no such files.

    Raises:
        CotrunkError: an unknown format, field or value.
    """

    format: Format = "png"
    quality: int | None = None
    name: str = NUMBERED
    metadata: Metadata = "recipe"
    records: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of("format", self.format, get_args(Format))
        one_of("metadata", self.metadata, get_args(Metadata))
        if self.quality is not None:
            object.__setattr__(self, "quality", whole("quality", self.quality, 1, 100))
            if self.format == "png":
                raise CotrunkError("quality has no effect on PNG files, which are lossless: use format webp or jpeg.")
        check_template(text("name", self.name))
        if not isinstance(self.records, list | tuple) or not all(isinstance(line, str) for line in self.records):
            raise CotrunkError(f"records {shown(self.records)} is not a list of texts: give a line of JSON per prompt.")
        object.__setattr__(self, "records", tuple(self.records))

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Return the output from JSON values. Absent keys take their defaults.

        Raises:
            CotrunkError: an unknown key, a value of another type, or one out of its range.
        """
        return cls(**entries_of("output", data, cls))

    @property
    def is_lossless(self) -> bool:
        """Whether the pixels of a file are exactly those that were generated."""
        return self.format == "png" or (self.format == "webp" and self.quality is None)

    def path(self, facts: ImageFacts) -> str:
        """Return the path of an image below the folder of its images, with its suffix."""
        return f"{self.name.format_map(facts)}.{SUFFIXES[self.format]}"


DEFAULT_OUTPUT = Output()
