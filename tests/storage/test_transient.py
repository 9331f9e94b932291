"""Errors that pass by themselves are distinguished from those that another attempt would meet too."""

import errno

import pytest

from cotrunk.errors import CotrunkError
from cotrunk.storage.transient import is_transient


def named(*names: str, **values: object) -> Exception:
    """Return an error of a package that need not be installed, with the names of its classes, the base first."""
    kind = Exception
    for name in names:
        kind = type(name, (kind,), {})
    error = kind("why")
    for name, value in values.items():
        setattr(error, name, value)
    return error


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBUSY, "Please reduce your request rate."),  # as s3fs raises SlowDown
        OSError(errno.EIO, "An unknown error"),
        OSError(errno.ESTALE, "Stale file handle"),
        ConnectionResetError("reset by peer"),
        TimeoutError(),  # of fsspec
        named("BotoCoreError", "ConnectionError", "EndpointConnectionError"),
        named("BotoCoreError", "HTTPClientError", "ConnectionClosedError"),
        named("ClientError", "ClientConnectionError", "ServerDisconnectedError"),
        named("HttpError", code=503),  # of gcsfs, which knows codes as numbers and as text
        named("HttpError", code="429"),
        named("ClientResponseError", status=502),
        named("HttpResponseError", status_code=500),
        caused(RuntimeError("Failed to upload block"), named("AzureError", "ServiceResponseError")),
        caused(CotrunkError("Cannot write it."), OSError(errno.EIO, "Input/output error")),
    ],
    ids=repr,
)
def test_errors_of_the_network_and_of_busy_servers_pass(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("The specified bucket does not exist"),
        PermissionError("Access Denied"),
        OSError("Forbidden: bucket"),  # of gcsfs
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EINVAL, "Invalid bucket name"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory"),
        named("BotoCoreError", "NoCredentialsError"),
        named("HttpError", code=401),
        named("HttpError", code=None),
        caused(CotrunkError("Cannot write it."), OSError(errno.ENOSPC, "No space left on device")),
    ],
    ids=repr,
)
def test_wrong_requests_and_missing_rights_do_not_pass(error: Exception) -> None:
    assert not is_transient(error)
