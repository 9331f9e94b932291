"""The JSON of errors, as OpenAI's clients expect it."""

from pydantic import BaseModel, ConfigDict, Field


class ErrorBody(BaseModel):
    """What is wrong, and what to do about it."""

    message: str = Field(description="One sentence that names the thing and the remedy.")
    type: str = Field(description="Kind of the error, such as `invalid_request_error`.")
    param: str | None = Field(description="The parameter that is wrong.")
    code: str | None = Field(description="A word for programs, such as `model_not_found`.")


class ErrorAnswer(BaseModel):
    """The body of every answer with a status of 400 or more."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "message": "steps 0 is too small: use 1 or more.",
                        "type": "invalid_request_error",
                        "param": "steps",
                        "code": "invalid_value",
                    }
                }
            ]
        }
    )

    error: ErrorBody
