"""Who sends a request (the holder of a key, or without keys the local owner), and how many requests each may send."""

import asyncio
import base64
import binascii
import logging
import time
from typing import Annotated

from fastapi import Depends, Header, Query, Request
from fastapi.security import HTTPBearer
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from ..store import Owner, Store
from .errors import LIMIT, ApiError, described
from .state import in_thread, retry_after, service_of

LOCAL = Owner("local", {})  # the owner of everything while there are no keys
LOOK_SECONDS = 1.0  # how long a first key may go unnoticed
LONGEST_KEY = 200  # characters
log = logging.getLogger("cotrunk.service")
bearer = HTTPBearer(auto_error=False, description="A key that `cotrunk keys add` printed. Needed once there are keys.")


class Access:
    """Finds the owner of a request, and counts requests.

    Args:
        store: with the keys.
        per_minute: requests per key unless the key has a limit of its own; 0 for no limit.

    Attributes:
        needs_key: whether requests need a key.
    """

    def __init__(self, store: Store, per_minute: int) -> None:
        self._store, self._per_minute = store, per_minute
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self.needs_key = False
        self.look()

    def look(self) -> None:
        """Look whether there are keys. Once there are, this process keeps asking for one, even if all are removed."""
        self.needs_key = self.needs_key or bool(self._store.keys())

    async def run(self) -> None:
        """Look again every second, until the task is cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await in_thread(self.look)
            except Exception as error:  # a database that does not answer is asked again
                log.warning("keys cannot be read: %s", described(error))

    def owner_of(self, key: str | None) -> Owner:
        """Return the holder of a key.

        Raises:
            ApiError: there are keys, and this is not one of them.
        """
        if not self.needs_key:
            return LOCAL
        if key is None:
            sentence = "This service needs a key: send it as `Authorization: Bearer KEY`."
            raise ApiError(401, sentence, "missing_api_key", headers={"www-authenticate": "Bearer"})
        owner = self._store.owner_of(key) if len(key) <= LONGEST_KEY else None
        if owner is None:
            sentence = "This key is not known, or was removed: ask the operator of this service for one."
            raise ApiError(401, sentence, "invalid_api_key", headers={"www-authenticate": "Bearer"})
        return owner

    def signer_of(self, name: str) -> Owner:
        """Return the owner in whose name an address was signed.

        Raises:
            ApiError: there are keys, and the owner's was removed.
        """
        if self.needs_key and not self._store.has_key(name):
            sentence = "The key for which this address was made was removed: ask the operator of this service for one."
            raise ApiError(401, sentence, "invalid_token")
        return Owner(name, {})

    def count(self, owner: Owner) -> None:
        """Count a request.

        Raises:
            ApiError: the owner has sent too many within a minute.
        """
        most = int(owner.limits.get("requests_per_minute", self._per_minute))
        if most <= 0:
            return
        limit = RateLimitItemPerMinute(most)
        if not self._limiter.hit(limit, owner.name):
            seconds = max(0.0, self._limiter.get_window_stats(limit, owner.name).reset_time - time.time())
            sentence = f"This key may send {most} requests per minute: try again in {seconds:.3g} seconds."
            raise ApiError(429, sentence, "rate_limit_exceeded", kind=LIMIT, headers=retry_after(seconds))


def key_of(header: str | None) -> str | None:
    """Return the key in an Authorization header: a bearer token, or the password of basic authentication."""
    scheme, _, value = (header or "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("ascii").partition(":")[2]
        except (binascii.Error, ValueError):
            return None
    return None


async def find_owner(
    request: Request,
    authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    _: Annotated[object, Depends(bearer)] = None,
) -> Owner:
    """Return the owner of a request, and count it.

    Raises:
        ApiError: the key is missing or unknown, or has sent too many requests.
    """
    access: Access = request.app.state.access
    owner = await in_thread(access.owner_of, key_of(authorization))
    try:
        access.count(owner)
    except ApiError:
        service_of(request).metrics.refused.labels("rate").inc()
        raise
    return owner


async def find_owner_or_token(
    request: Request,
    authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    token: Annotated[
        str | None, Query(max_length=500, description="Part of a signed address; it takes the place of the key.")
    ] = None,
    _: Annotated[object, Depends(bearer)] = None,
) -> Owner:
    """Return the owner of a request that may come with a signed address instead of a key."""
    if token is None:
        return await find_owner(request, authorization)
    access: Access = request.app.state.access
    name = service_of(request).signer.owner_of(request.url.path, token)
    if name is None:
        sentence = "This address is not valid any more: ask for the job again, which gives a new one."
        raise ApiError(401, sentence, "invalid_token")
    # not counted: a page with a thousand images is one request of its owner
    return await in_thread(access.signer_of, name)


Caller = Annotated[Owner, Depends(find_owner)]
TokenCaller = Annotated[Owner, Depends(find_owner_or_token)]
