"""The only door to HTTP: one request per call, no retry, no redirect followed, and errors told apart by money.

The question that decides everything is whether a request may have reached the service: `NotSent` says surely not,
`AnswerLost` says maybe.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import ssl
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from prefect_veogen.api.proxies import Proxies
from prefect_veogen.api.responses import Answer
from prefect_veogen.errors import ConfigurationError, NotSent, masked
from prefect_veogen.models import without_secrets
from prefect_veogen.settings import user_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

CONNECT_SECONDS = 10.0
MEDIA_SILENCE_SECONDS = 60.0
MAX_ANSWER_BYTES = 32 * 1024 * 1024
# Shorter than any server's: a connection reused at the moment the server closes it loses an answer for nothing.
_KEEPALIVE_SECONDS = 2.0
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=_KEEPALIVE_SECONDS)
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_PROXIED = "veogen_proxied"
_MAX_MILLISECONDS = 2**31 - 1  # what TCP_USER_TIMEOUT takes
# What a link without its scheme begins with: a host, which a folder's name doesn't look like, and maybe a port.
_HOST = re.compile(r"(localhost|\[[0-9a-f:.]+\]|([\w-]+\.)+([a-z][a-z-]*[a-z]|\d+))(:\d+)?/", re.IGNORECASE)


class AnswerLost(Exception):
    """The request may have been received, but no whole answer came back."""


class Transport:
    """HTTP connections for API calls and media, belonging to one event loop.

    Raises:
        ConfigurationError: the environment names a proxy or certificates that can't be used.
    """

    def __init__(self, timeout_seconds: float) -> None:
        connect_seconds = min(CONNECT_SECONDS, timeout_seconds)
        self._most_seconds = connect_seconds + timeout_seconds
        self._delivery_milliseconds = min(max(1, round(timeout_seconds * 1000)), _MAX_MILLISECONDS)
        context = _trusted_authorities()
        self._api = _http_client(context, httpx.Timeout(timeout_seconds, connect=connect_seconds, pool=None))
        # A client of its own, so that no header of the API can ever reach a media host.
        self._media = _http_client(context, httpx.Timeout(MEDIA_SILENCE_SECONDS, connect=CONNECT_SECONDS, pool=None))

    async def call(
        self,
        method: str,
        url: str,
        *,
        token: str,
        query: Mapping[str, str | int] | None = None,
        body: dict[str, Any] | None = None,
        before_body: Callable[[], Awaitable[None]] | None = None,
        uncached: bool = False,
    ) -> Answer:
        """Return the API's answer, whatever its status; `uncached` asks caches on the way to pass the request on.

        `before_body` is awaited when the connection stands and the headers are out: until it returns, nothing of the
        body is sent, so that the service can't act yet. What it raises ends the request.

        Raises:
            NotSent: nothing of the body was sent, so the service can't have acted on it.
            AnswerLost: it may have received the request.
        """
        payload = _Payload(body, before_body)
        request = self._request(method, url, token, query, payload, uncached=uncached)
        try:
            # httpx times single reads; a body that trickles for ever needs an end too.
            async with asyncio.timeout(self._most_seconds):
                answer = await self._api.send(request, stream=True)
                try:
                    return Answer(answer.status_code, _lower(answer.headers), await _limited_body(answer))
                finally:
                    await answer.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            message = f"Could not connect to {_origin(request.url)}: {_reason(error)}"
            raise NotSent(message, next_step=_FOREIGN_AUTHORITY if _UNTRUSTED in message else None) from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.ProxyError) as error:
            raise ConfigurationError(f"Can't send anything to {_origin(request.url)}: {_reason(error)}") from None
        except (httpx.HTTPError, TimeoutError) as error:
            if payload.is_held_back:
                raise NotSent(f"{_origin(request.url)} broke off before anything was sent: {_reason(error)}") from None
            raise AnswerLost(_reason(error)) from None

    def _request(
        self,
        method: str,
        url: str,
        token: str,
        query: Mapping[str, str | int] | None,
        payload: _Payload,
        *,
        uncached: bool,
    ) -> httpx.Request:
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        if uncached:
            headers |= {"Cache-Control": "no-cache", "Pragma": "no-cache"}
        return self._api.build_request(
            method,
            url,
            params=query,
            headers={**headers, **payload.headers},
            content=payload.content(),
            extensions={"trace": self._limit_delivery},
        )

    async def _limit_delivery(self, event: str, info: dict[str, Any]) -> None:
        """Let the kernel give up what it can't deliver in time, once a connection stands.

        A request that was given up must not arrive later, when a network that was away comes back.
        """
        if event == "connection.connect_tcp.complete" and hasattr(socket, "TCP_USER_TIMEOUT"):
            connection = info["return_value"].get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._delivery_milliseconds)

    @asynccontextmanager
    async def media(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[MediaAnswer]:
        """Open one media link without any credentials.

        Raises:
            AnswerLost: the connection failed or broke, before or while reading.
        """
        try:
            async with self._media.stream(
                "GET", url, headers={**headers, "Accept": "*/*", "Accept-Encoding": "identity"}
            ) as answer:
                yield MediaAnswer(answer)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AnswerLost(_reason(error)) from None

    async def close(self) -> None:
        """Close all connections."""
        await self._api.aclose()
        await self._media.aclose()


class _Routes(httpx.AsyncBaseTransport):
    """Sends each request directly or through a proxy, as the environment says.

    httpx would read it too, but takes no network in NO_PROXY: it ignores those of IPv4, and fails at those of IPv6.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._proxies = Proxies.from_environment()
        self._direct = httpx.AsyncHTTPTransport(verify=context, limits=_LIMITS)
        self._by_proxy = {
            url: _proxied(url, Proxies.variable(scheme), context) for scheme, url in self._proxies.by_scheme.items()
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        proxy = self._proxies.way_to(*url_parts(str(request.url)))
        if proxy is None:
            return await self._direct.handle_async_request(request)
        answer = await self._by_proxy[proxy].handle_async_request(request)
        answer.extensions[_PROXIED] = True
        return answer

    async def aclose(self) -> None:
        for transport in (self._direct, *self._by_proxy.values()):
            await transport.aclose()


def _proxied(url: str, variable: str, context: ssl.SSLContext) -> httpx.AsyncHTTPTransport:
    scheme, host, _ = url_parts(url)
    if scheme not in _PROXY_SCHEMES or not host:
        raise ConfigurationError(
            f"{variable}={masked(url)} is no proxy that can be used",
            next_step=f"Set {variable} to something like http://proxy:8080 ({', '.join(_PROXY_SCHEMES)}), or unset it.",
        )
    try:
        proxy = httpx.Proxy(url, ssl_context=context if scheme == "https" else None)
        return httpx.AsyncHTTPTransport(verify=context, limits=_LIMITS, proxy=proxy)
    except ImportError:
        raise ConfigurationError(
            f"{variable}={masked(url)} is a SOCKS proxy, for which a package is missing",
            next_step=f'Install it (pip install "httpx[socks]"), or set {variable} to an HTTP proxy.',
        ) from None


def _http_client(
    context: ssl.SSLContext, timeout: httpx.Timeout, *, follow_redirects: bool = False
) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=_Routes(context),
        headers={"User-Agent": user_agent()},
        follow_redirects=follow_redirects,
        timeout=timeout,
    )


_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
_FOREIGN_AUTHORITY = (
    "Nothing was sent. If a proxy of your network signs with an authority of its own, set SSL_CERT_FILE to a file "
    "that holds it (REQUESTS_CA_BUNDLE counts for S3 only), then run it again."
)


def _trusted_authorities() -> ssl.SSLContext:
    variable = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
    folder = os.environ.get(variable) if variable == "SSL_CERT_DIR" else None
    if folder and not Path(folder).is_dir():  # OpenSSL says nothing, and trusts nobody
        raise _unusable(variable, "there is no such directory")
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        # Of the files that can be named here, Python opens only this one by itself and so tells its name.
        raise _unusable("SSLKEYLOGFILE" if error.filename else variable, error.strerror or str(error)) from None


def _unusable(variable: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{variable}={os.environ.get(variable, '')} can't be used: {reason}", next_step=f"Correct or unset {variable}."
    )


class _Payload:
    """A request's body, held back until something else is done."""

    def __init__(self, body: dict[str, Any] | None, before: Callable[[], Awaitable[None]] | None) -> None:
        self._bytes = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        self._before = before
        self.is_held_back = before is not None
        self.headers = {}
        if body is not None:
            self.headers = {"Content-Type": "application/json", "Content-Length": str(len(self._bytes))}

    def content(self) -> bytes | AsyncIterator[bytes]:
        return self._bytes if self._before is None else self._later(self._before)

    async def _later(self, before: Callable[[], Awaitable[None]]) -> AsyncIterator[bytes]:
        await before()
        self.is_held_back = False
        yield self._bytes


class MediaAnswer:
    """An open media answer: status and headers at once, bytes as they come."""

    def __init__(self, answer: httpx.Response) -> None:
        self._answer = answer
        self.status = answer.status_code
        self.headers = _lower(answer.headers)

    @property
    def peer(self) -> str | None:
        """The address that answered; `None` where a proxy stands between, or when the connection is gone."""
        stream = self._answer.extensions.get("network_stream")
        if stream is None or _PROXIED in self._answer.extensions:
            return None
        address = stream.get_extra_info("server_addr")
        return str(address[0]) if address else None

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, undecoded.

        Raises:
            AnswerLost: the connection broke.
        """
        try:
            # As they come, not in pieces of a size: what is collected for one is lost when the connection breaks.
            async for chunk in self._answer.aiter_raw():
                yield chunk
        except httpx.HTTPError as error:
            raise AnswerLost(_reason(error)) from None


def joined_url(base: str, target: str) -> str:
    """Return where a redirect from `base` to `target` leads; the target as it is if it is no URL."""
    try:
        return str(httpx.URL(base).join(target))
    except (httpx.InvalidURL, UnicodeError):
        return target


def absolute_url(base: str, url: str) -> str:
    """Return a link that a service at `base` gives: as it is, or with what it leaves out.

    Without a host it belongs to the service's own, at the top of which its files lie; without a scheme it has the
    service's.
    """
    if "://" in url or (re.search(r"\s", url) and not url.startswith("/")):
        return url  # whole, and maybe signed; or no link at all
    return joined_url(joined_url(base, "/"), f"//{url}" if _HOST.match(url) else url)


def url_parts(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL; empty strings if it is none."""
    try:
        parsed = httpx.URL(url)
        host = parsed.host
    except (httpx.InvalidURL, UnicodeError):
        return "", "", 0
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    return (parsed.scheme, host, port) if port < 65536 else ("", "", 0)


async def _limited_body(answer: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in answer.aiter_bytes():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise httpx.DecodingError("the answer is unreasonably large")
    return bytes(body)


def _lower(headers: httpx.Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def fetch_text(url: str, most_seconds: float = 60.0) -> str:
    """Return a small text from a public link.

    Raises:
        ConfigurationError: it can't be had.
    """
    failure = f"{without_secrets(url)} can't be read"
    client = _http_client(_trusted_authorities(), httpx.Timeout(CONNECT_SECONDS), follow_redirects=True)
    try:
        # httpx times single reads; a link that trickles for ever needs an end too.
        async with asyncio.timeout(most_seconds), client, client.stream("GET", url) as answer:
            body = await _limited_body(answer)
    except httpx.HTTPError as error:
        raise ConfigurationError(f"{failure}: {_reason(error)}") from None
    except TimeoutError:
        raise ConfigurationError(f"{failure}: it took longer than {most_seconds:g} s") from None
    except Exception:  # noqa: BLE001 - whatever IDNA, codecs and sockets raise at odd links, and show of them
        raise ConfigurationError(f"{failure}: it is, or leads to, no valid link") from None
    if not answer.is_success:
        raise ConfigurationError(f"{failure}: HTTP {answer.status_code}")
    if body.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise ConfigurationError(f"{failure}: it is an HTML page", next_step="Give a link to the file itself.")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{failure}: it is not UTF-8 text") from None
