"""OpenAI's Files and Batches."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .sampling import Metadata, Strict


class FileAnswer(BaseModel):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    status_details: str | None = None


class FileList(BaseModel):
    """Files, newest first."""

    object: Literal["list"] = "list"
    data: list[FileAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchRequest(Strict):
    """A batch: an uploaded file with one request for images per line."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input_file_id": "file-abc", "endpoint": "/v1/images/generations", "completion_window": "24h"}
            ]
        }
    )

    input_file_id: Annotated[str, Field(min_length=1, max_length=100)]
    endpoint: Literal["/v1/images/generations"]
    completion_window: Literal["24h"]
    metadata: Metadata = None
    output_expires_after: Annotated[
        dict[str, Any] | None,
        Field(description="Accepted for compatibility; the service removes files as its operator has decided."),
    ] = None


class BatchProblem(BaseModel):
    """What is wrong with a line of the input file."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(BaseModel):
    """What is wrong with the input file."""

    object: Literal["list"] = "list"
    data: list[BatchProblem]


class BatchCounts(BaseModel):
    """Requests of a batch. A request is completed when all of its images are done."""

    total: int
    completed: int
    failed: int


class BatchAnswer(BaseModel):
    """A batch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    metadata: dict[str, Any] | None
    job: str | None = Field(description="Id of the job that generates the images: `/v1/jobs/{job}` shows it.")


class BatchList(BaseModel):
    """Batches, newest first."""

    object: Literal["list"] = "list"
    data: list[BatchAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool
