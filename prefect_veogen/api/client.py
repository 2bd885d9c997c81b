"""Every documented endpoint of the API, async, one request per call.

A client repeats no request but a GET that gets 429; everything else is retried by its callers, if at all. All requests
are made on the process's I/O loop, whatever loop a client is called from.
"""

from __future__ import annotations

import functools
import hashlib
import re
import threading
import time
import weakref
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import quote

from prefect_veogen.api.fields import Response, read_date
from prefect_veogen.api.http import ResponseLost, Transport, url_parts
from prefect_veogen.api.outcome import Busy, Submission, Unknown, error_of, read_submission, retry_after_seconds
from prefect_veogen.api.rate_limit import Lane, RateLimiter
from prefect_veogen.api.responses import (
    Balance,
    Charge,
    Page,
    read_account,
    read_balance,
    read_generation,
    read_generations,
    read_model,
    read_models,
    read_usage,
)
from prefect_veogen.errors import (
    AuthenticationError,
    ConfigurationError,
    ModelNotFound,
    NotSent,
    ServiceUnavailable,
    UnexpectedAnswer,
    VeogenError,
)
from prefect_veogen.masking import masked
from prefect_veogen.models import Kind, normal_base_url
from prefect_veogen.process.io_loop import close_at_end, io_loop, on_io
from prefect_veogen.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from pydantic import SecretStr

    from prefect_veogen.models import CatalogueModel, Generation

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MAX_PER_PAGE = 100  # /api-reference/generations/list
# How often a GET is sent while the response is 429: the limiter pauses all requests in between.
_MAX_GETS_WHEN_BUSY = 5


def _from_any_loop(
    method: Callable[Arguments, Coroutine[Any, Any, Result]],
) -> Callable[Arguments, Coroutine[Any, Any, Result]]:
    """Run a method on the I/O loop: users of `get_client()` call it from their own."""

    @functools.wraps(method)
    async def run(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        return await on_io(method(*arguments, **keywords))

    return run


class VeogenClient:
    """The API over HTTP. Get one from `VeogenCredentials.get_client()`.

    All methods are safe to repeat and cost nothing, except `create_generation`, which buys.

    Raises:
        ConfigurationError: no request can be made with this token or base URL; raised when the client is made.
        NotSent, ServiceUnavailable, RateLimited: retryable, later.
        AuthenticationError: the token was refused.
        UnexpectedAnswer: the response is unparseable (HTML, for instance).
    """

    def __init__(
        self,
        token: SecretStr,
        base_url: str,
        *,
        requests_per_minute: int = 120,
        request_timeout_seconds: float = 60,
    ) -> None:
        self.base_url = _usable_base_url(base_url)
        self._token = _sendable_token(token)
        self.limiter = RateLimiter(requests_per_minute)
        self.transport = Transport(request_timeout_seconds)
        close_at_end(self.transport.close, owner=self)
        self.clock_offset: timedelta | None = None
        """How far this clock was ahead of the service's at its last response with a `Date`; `None` before."""

    def __repr__(self) -> str:
        return f"VeogenClient(base_url={self.base_url!r})"

    @property
    def account(self) -> str:
        """Return a name for the account which does not reveal the token."""
        return _account(self._token, self.base_url)

    @_from_any_loop
    async def acquire_for_purchase(self) -> None:
        """Acquire the rate limiter for a purchase; `create_generation` must follow at once."""
        await self.limiter.acquire(Lane.BUYING)

    @_from_any_loop
    async def create_generation(
        self, body: dict[str, Any], before_sending: Callable[[], Awaitable[None]] | None = None
    ) -> Submission:
        """Send one purchase, once, and return its outcome; call `acquire_for_purchase` before.

        COSTS MONEY and is not idempotent: the service documents no idempotency key. `before_sending` is awaited at the
        last moment, when only the body is missing; an error it raises cancels the purchase before anything is sent.

        Raises:
            NotSent: it surely did not reach the service.
        """
        submission: Submission
        try:
            response = await self._call("POST", "/generations", body=body, before_body=before_sending)
            submission = read_submission(response, _now())
        except ResponseLost as error:
            submission = Unknown(str(error))
        if isinstance(submission, Busy):
            self.limiter.pause(submission.retry_after_seconds)
        self.limiter.report_purchase(in_doubt=isinstance(submission, Unknown))
        return submission

    async def get_generation(self, generation_id: str) -> Generation:
        """Return one generation (/api-reference/generations/get); the price is only in the response to the purchase."""
        generation = read_generation(await self._get(f"/generations/{quote(generation_id, safe='')}"))
        if generation.id.casefold() != generation_id.casefold():
            raise UnexpectedAnswer(f"Requested generation {generation_id}, the service returned {generation.id}")
        return generation

    async def list_generations(
        self, kind: Kind | None = None, *, page: int = 1, per_page: int = MAX_PER_PAGE, uncached: bool = False
    ) -> Page[Generation]:
        """Return one page, newest first; pages past the first exist only with a `kind`."""
        query: dict[str, str | int] = {"per_page": per_page}
        if kind is not None:
            query |= {"type": kind.value, "page": page}
        return read_generations(await self._get("/generations", query, uncached=uncached), page)

    async def get_model(self, slug: str) -> CatalogueModel:
        """Return one model of the catalogue (/api-reference/models/get).

        Raises:
            ModelNotFound: the catalogue does not have it.
        """
        try:
            return read_model(await self._get(f"/models/{quote(slug, safe='')}"))
        except ModelNotFound as error:
            facts: dict[str, Any] = {"http_status": error.http_status, "service_text": error.service_text}
            raise ModelNotFound(f"{error.message}: {slug[:60]!r}", **facts) from None

    async def list_models(self, *, page: int = 1) -> Page[CatalogueModel]:
        """Return a page of the catalogue; the documentation links the endpoint without describing it."""
        return read_models(await self._get("/models", {"page": page} if page > 1 else None), page)

    async def get_account(self) -> Balance:
        """Return the account's money (/api-reference/account/get)."""
        return read_account(await self._get("/account"))

    async def get_balance(self) -> Balance:
        """Return the account's money (/api-reference/account/balance, documented for api.veogen.studio only)."""
        return read_balance(await self._get("/balance"))

    async def list_usage(
        self, *, model: str | None = None, kind: Kind | None = None, page: int = 1, per_page: int = MAX_PER_PAGE
    ) -> Page[Charge]:
        """Return one page of the statement (/api-reference/account/usage; `page` is not documented there)."""
        query: dict[str, str | int] = {"per_page": per_page, "page": page}
        if model is not None:
            query["model"] = model
        if kind is not None:
            query["type"] = kind.value
        return read_usage(await self._get("/account/usage", query), page)

    @_from_any_loop
    async def _get(self, path: str, query: dict[str, str | int] | None = None, *, uncached: bool = False) -> Response:
        for _ in range(_MAX_GETS_WHEN_BUSY):
            await self.limiter.acquire(Lane.READING)
            try:
                response = await self._call("GET", path, query=query, uncached=uncached)
            except ResponseLost as error:
                raise ServiceUnavailable(f"GET {path}: {error}") from None
            except NotSent as error:
                raise ServiceUnavailable(error.message, next_step=error.next_step) from None
            if response.status != 429:
                break
            self.limiter.pause(retry_after_seconds(response.headers, _now()))
        if 200 <= response.status < 300:
            return response
        raise error_of(response, f"GET {path}", _now())

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str | int] | None = None,
        body: dict[str, Any] | None = None,
        before_body: Callable[[], Awaitable[None]] | None = None,
        uncached: bool = False,
    ) -> Response:
        url, token = self.base_url + path, self._token.get_secret_value()
        response = await self.transport.call(
            method, url, token=token, query=query, body=body, before_body=before_body, uncached=uncached
        )
        if (date := read_date(response)) is not None:
            self.clock_offset = _now() - date
        return response


async def find_balance(client: VeogenClient) -> Balance | None:
    """Return the account's money from the first endpoint that states it; `None` means unknown, never zero."""
    for get in (client.get_account, client.get_balance):
        try:
            balance = await get()
        except AuthenticationError:
            raise
        except VeogenError:
            continue
        if balance.remaining_usd is not None:
            return balance
    return None


_Key = tuple[str, int, float]


class _Clients:
    """The clients of one process: all that are in use, and for some minutes those that were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_use: weakref.WeakValueDictionary[_Key, VeogenClient] = weakref.WeakValueDictionary()
        self._recent: dict[_Key, tuple[float, VeogenClient]] = {}

    def get(self, key: _Key) -> VeogenClient | None:
        with self._lock:
            return self._touch(key, self._in_use.get(key))

    def keep(self, key: _Key, client: VeogenClient) -> VeogenClient:
        """Return the client that is shared from now on: this one, unless another thread was first."""
        with self._lock:
            client = self._in_use.setdefault(key, client)
            self._touch(key, client)
            return client

    def _touch(self, key: _Key, client: VeogenClient | None) -> VeogenClient | None:
        now = time.monotonic()
        if client is not None:
            self._recent.pop(key, None)
            self._recent[key] = (now, client)
        # Dropped, not closed: callers that still use one keep it and its limiter; it is closed when the last one ends.
        while self._recent:
            oldest, (used_at, _) = next(iter(self._recent.items()))
            if len(self._recent) <= _MAX_UNUSED and now - used_at <= _UNUSED_SECONDS:
                break
            del self._recent[oldest]
        return client


# Longer than the minute of the rate limit, which must not be forgotten between two calls.
_UNUSED_SECONDS = 300.0
_MAX_UNUSED = 16
_clients = Registry[None, _Clients]()


def client_of(token: SecretStr, base_url: str, requests_per_minute: int, timeout_seconds: float) -> VeogenClient:
    """Return the process's one client for an account, so that all callers share its limiter and connections.

    It is closed some minutes after the last call for it, once no caller uses it any more.
    """
    clients = _clients.get(None, _Clients, owner=io_loop())
    key = (_account(_sendable_token(token), _usable_base_url(base_url)), requests_per_minute, timeout_seconds)
    known = clients.get(key)
    if known is not None:
        return known
    # Not constructed speculatively: that reads the system's certificates, which takes some 20 ms.
    client = VeogenClient(
        token, base_url, requests_per_minute=requests_per_minute, request_timeout_seconds=timeout_seconds
    )
    return clients.keep(key, client)


def _account(token: SecretStr, base_url: str) -> str:
    secret = f"{base_url}\n{token.get_secret_value()}"
    return hashlib.sha256(secret.encode()).hexdigest()[:16]


def _usable_base_url(base_url: str) -> str:
    base_url = normal_base_url(base_url)
    scheme, host, _ = url_parts(base_url)
    # A user name in it would replace the token in the Authorization header.
    if scheme not in ("http", "https") or not host or re.search(r"[@?#\s]", base_url):
        raise ConfigurationError(
            f"{masked(base_url)!r} is not a valid base URL of an API",
            next_step="Give something like https://veogen.studio/api/v1, without a password or query (VEOGEN_BASE_URL, "
            "base_url= or --base-url).",
        )
    return base_url


def _sendable_token(token: SecretStr) -> SecretStr:
    if re.fullmatch(r"\*+", token.get_secret_value()):
        raise ConfigurationError(
            "The API token consists of asterisks: Prefect shows them instead of a token",
            next_step="Nothing was bought. A block that is handed to run_deployment arrives like that, and so does one "
            "copied from Prefect's UI. Give the block's name instead: credentials=\"NAME\".",
        )
    # Checked here because HTTP libraries quote an invalid header in their errors.
    if not re.fullmatch(r"[\x21-\x7e]+", token.get_secret_value()):
        raise ConfigurationError(
            "The API token is empty or has characters that are not valid in a token, such as a line break",
            next_step="Set VEOGEN_API_TOKEN, or the block's token, to nothing but the token.",
        )
    return token


def _now() -> datetime:
    return datetime.now(UTC)
