"""Errors of a storage that pass by themselves: the network was down for a moment, or a server was busy or restarted."""

import errno

# Seconds before each further attempt. The packages for object stores have tried for some seconds themselves by then.
PAUSES = (1.0, 4.0, 16.0)
# s3fs turns answers of the server into these (EIO also stands for every answer that it does not know). Network file
# systems and mounted buckets report them too. A full disk, a quota, and a request that is wrong do not pass.
NUMBERS = {
    getattr(errno, name, None)
    for name in (
        *("EAGAIN", "EBUSY", "EIO", "EREMOTEIO", "ESTALE"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTUNREACH"),
    )
} - {None}
STATUSES = {"408", "429", "500", "502", "503", "504"}  # of HTTP: timeouts, too many requests, errors of the server
# Names of classes, because none of these packages need be installed: of Python, botocore and requests; aiohttp;
# botocore; gcsfs and Google's authentication; Azure.
NAMES = {
    *("ConnectionError", "TimeoutError", "Timeout", "ChunkedEncodingError"),
    *("ClientConnectionError", "ClientPayloadError"),
    *("HTTPClientError", "IncompleteReadError"),
    *("ChecksumError", "TransportError"),
    *("ServiceRequestError", "ServiceResponseError"),
}


def is_transient(error: BaseException | None) -> bool:
    """Return whether the same request may succeed a little later.

    Args:
        error: what was raised. One that wraps another is judged by that one, too.
    """
    if error is None:
        return False
    return (
        getattr(error, "errno", None) in NUMBERS
        or any(f"{getattr(error, name, None)}" in STATUSES for name in ("status", "status_code", "code"))
        or any(kind.__name__ in NAMES for kind in type(error).__mro__)
        or is_transient(error.__cause__)
    )
