"""What happens to every request: an id, limits on its body and on its sender, a line in the log.

A pure ASGI layer, because it must read bodies while they arrive.
"""

import asyncio
import ipaddress
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, answer_of

BODY_SECONDS = 60.0  # silence after which a body that does not end is given up
LONGEST_ID = 100  # characters of an id that a proxy or a client gives
MEBIBYTE = 2**20
FORM_BYTES = 65_536  # what a form adds to the file in it
SAFE = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
log = logging.getLogger("cotrunk.service.access")


class Requests:
    """The outermost layer of the service.

    Args:
        app: the next layer.
        body_mib: largest body in MiB.
        file_mib: largest uploaded file in MiB.
        needs_key: whether requests need a key. Without keys, only names of this machine are served, so that no page of
            another site reaches the service through a name that it lets point here.
        finished: called with method, route, status and seconds of each request.
        has_ids: whether a proxy in front gives each request an id, and puts it into the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        body_mib: int,
        file_mib: int,
        needs_key: Callable[[], bool],
        finished: Callable[[str, str, int, float], None],
        *,
        has_ids: bool = False,
    ) -> None:
        self.app, self.needs_key, self.finished = app, needs_key, finished
        self.body_mib, self.file_mib, self.has_ids = body_mib, file_mib, has_ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        identifier, begin, status = f"req_{secrets.token_hex(12)}", time.perf_counter(), 0
        headers = Headers(scope=scope)
        if self.has_ids:
            identifier = headers.get("x-request-id", identifier)[:LONGEST_ID]
        scope.setdefault("state", {})["request_id"] = identifier

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                if not self.has_ids:
                    added["x-request-id"] = identifier
                added["openai-processing-ms"] = str(int((time.perf_counter() - begin) * 1000))
                added["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            if refusal := self._refusal(scope["method"], headers):
                await answer_of(refusal)(scope, receive, answered)
            else:
                await self.app(scope, _limited(receive, headers, self._most(scope)), answered)
        finally:
            seconds = time.perf_counter() - begin
            route: Any = scope.get("route")
            path = getattr(route, "path", "other")
            self.finished(scope["method"], path, status, seconds)
            # the path of the route, not of the request: neither ids nor tokens nor prompts are in it
            log.info("%s %s %s %d %.3fs", identifier, scope["method"], path, status, seconds)

    def _refusal(self, method: str, headers: Headers) -> ApiError | None:
        """Return the answer to a request that only a key would allow."""
        if self.needs_key():
            return None
        if not is_local_name(headers.get("host", "")):
            sentence = "Without keys, this service answers only at localhost: make a key with `cotrunk keys add NAME`."
            return ApiError(403, sentence, "local_only")
        # a browser sends forms of any page anywhere, and says which page it was
        origin = headers.get("origin")
        if method not in SAFE and origin is not None and not is_local_name(origin.partition("://")[2]):
            sentence = "Without keys, only pages of this machine may send requests: make a key with `cotrunk keys add`."
            return ApiError(403, sentence, "cross_site")
        return None

    def _most(self, scope: Scope) -> int:
        is_file = scope["path"].rstrip("/") == "/v1/files"
        return self.file_mib * MEBIBYTE + FORM_BYTES if is_file else self.body_mib * MEBIBYTE


def is_local_name(host: str) -> bool:
    """Return whether the value of a Host header names this machine."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _limited(receive: Receive, headers: Headers, most: int) -> Receive:
    """Return a `receive` that refuses a body that is too large, or that does not go on."""
    too_large = f"The body is too large: this address takes {most / MEBIBYTE:.4g} MiB."
    length = headers.get("content-length", "")
    found, is_over = 0, False

    async def limited() -> Message:
        nonlocal found, is_over
        if is_over:  # what comes now only says whether the client is still there
            return await receive()
        if length.isdecimal() and int(length[:20]) > most:
            raise HTTPException(413, too_large)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await receive()
        except TimeoutError:
            raise HTTPException(
                408, f"The body has not arrived within {BODY_SECONDS:g} seconds: send it again."
            ) from None
        if message["type"] == "http.request":
            found += len(message.get("body", b""))
            if found > most:
                raise HTTPException(413, too_large)
            is_over = not message.get("more_body", False)
        else:
            is_over = True
        return message

    return limited
