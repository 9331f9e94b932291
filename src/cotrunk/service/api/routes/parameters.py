"""Parameters that several addresses have in common."""

from typing import Annotated

from fastapi import Header, Path, Query

ID = r"^[A-Za-z0-9_-]{1,64}$"

JobId = Annotated[str, Path(pattern=ID, description="Id of a job.", examples=["job_0123456789abcdef01234567"])]
ImageId = Annotated[str, Path(pattern=ID, description="Id of an image.", examples=["img_0123456789abcdef01234567"])]
FileId = Annotated[str, Path(pattern=ID, description="Id of a file.", examples=["file_0123456789abcdef01234567"])]
BatchId = Annotated[str, Path(pattern=ID, description="Id of a batch.", examples=["batch_0123456789abcdef01234567"])]
PartialIndex = Annotated[int, Path(ge=0, le=2, description="Number of a preview.", examples=[0])]
ModelName = Annotated[str, Path(max_length=200, description="Name of a model.", examples=["mini"])]
After = Annotated[str | None, Query(pattern=ID, description="Go on after this id.")]
Idempotency = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="A request that is sent again with the same key gives what the first one has made.",
    ),
]
