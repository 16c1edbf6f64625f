"""Files and batches as clients send and read them.

https://platform.openai.com/docs/api-reference/files and .../batch
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator
from typing_extensions import TypedDict

from quire.config.limits import LIMITS
from quire.server.openai.request_model import RequestModel, refusal

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
UNFINISHED: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")
CANCELLABLE: tuple[Status, ...] = ("validating", "in_progress")

Purpose = Literal["batch", "batch_output"]


class ExpiresAfter(RequestModel):
    """How long a file is kept."""

    anchor: Literal["created_at"]
    seconds: int = Field(
        ge=LIMITS.min_expiry_seconds,
        le=LIMITS.max_expiry_seconds,
        description="From the file's creation on.",
    )


class FileUpload(RequestModel):
    """The fields of the form of POST /v1/files, but for the file itself."""

    purpose: Literal["batch"]
    expires_after: ExpiresAfter | None = Field(None, description="30 days when not given.")


MetadataValue = Annotated[str, Field(max_length=LIMITS.metadata_value_chars)]


class BatchRequest(RequestModel):
    """The body of POST /v1/batches."""

    input_file_id: str = Field(description="A file of requests, one in each line.")
    endpoint: Endpoint = Field(description="The route that all of them are for.")
    completion_window: Literal["24h"] = Field(description="What is not done by then expires.")
    metadata: dict[str, MetadataValue] | None = Field(
        None, max_length=LIMITS.metadata_pairs, description="Told back with the batch."
    )
    output_expires_after: ExpiresAfter | None = Field(
        None, description="Of the output and error files; 30 days when not given."
    )

    @field_validator("metadata")
    @classmethod
    def _short_keys(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        for key in value or ():
            if len(key) > LIMITS.metadata_key_chars:
                raise refusal(
                    "", f"must have keys of at most {LIMITS.metadata_key_chars} characters"
                )
        return value


class FileObject(TypedDict):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Purpose
    status: Literal["processed"]
    status_details: None


class FileList(TypedDict):
    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(TypedDict):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class BatchError(TypedDict):
    """`line` counts from 1."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(TypedDict):
    object: Literal["list"]
    data: list[BatchError]


class RequestCounts(TypedDict):
    total: int
    completed: int
    failed: int


class InputTokensDetails(TypedDict):
    cached_tokens: int


class OutputTokensDetails(TypedDict):
    reasoning_tokens: int


class BatchUsage(TypedDict):
    """Of the requests that completed."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class BatchObject(TypedDict):
    """Times are seconds since 1970; null until they come."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


class BatchList(TypedDict):
    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
