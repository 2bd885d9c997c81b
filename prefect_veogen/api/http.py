"""The only door to HTTP: one request per call, no retry, no redirect followed, errors classified by a possible charge.

What matters is whether a request may have reached the service: `NotSent` means surely not, `ResponseLost` maybe.
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

from prefect_veogen.api.fields import Response
from prefect_veogen.api.proxies import Proxies
from prefect_veogen.errors import ConfigurationError, NotSent
from prefect_veogen.masking import masked
from prefect_veogen.models import without_secrets
from prefect_veogen.settings import user_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

CONNECT_SECONDS = 10.0
MEDIA_SILENCE_SECONDS = 60.0
MAX_RESPONSE_BYTES = 32 * 1024 * 1024
# Shorter than any server's: a connection that is reused while the server closes it loses the response.
_KEEPALIVE_SECONDS = 2.0
_POOLED = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=_KEEPALIVE_SECONDS)
_UNPOOLED = httpx.Limits(max_connections=None, max_keepalive_connections=0)
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_PROXIED = "veogen_proxied"
_UNREACHED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)
_MAX_MILLISECONDS = 2**31 - 1  # the maximum of TCP_USER_TIMEOUT
# The start of a URL without a scheme: a host, unlike the name of a folder, and maybe a port.
_HOST = re.compile(r"(localhost|\[[0-9a-f:.]+\]|([\w-]+\.)+([a-z][a-z-]*[a-z]|\d+))(:\d+)?/", re.IGNORECASE)


class ResponseLost(Exception):
    """The request may have been received, but no complete response came back."""


class Transport:
    """HTTP connections for API calls and media, belonging to one event loop.

    Raises:
        ConfigurationError: the environment names a proxy or certificates that can't be used.
    """

    def __init__(self, timeout_seconds: float) -> None:
        connect_seconds = min(CONNECT_SECONDS, timeout_seconds)
        self._total_seconds = connect_seconds + timeout_seconds
        self._delivery_milliseconds = min(max(1, round(timeout_seconds * 1000)), _MAX_MILLISECONDS)
        context = _trusted_authorities()
        self._proxies = Proxies.from_environment()
        timeout = httpx.Timeout(timeout_seconds, connect=connect_seconds, pool=None)
        self._api = _http_client(context, self._proxies, timeout)
        # A purchase has a connection of its own: an idle one may be closed, by the server or by httpcore (which does so
        # with what it has just handed out), while the request is on its way; what became of it would be in doubt.
        self._purchases = _http_client(context, self._proxies, timeout, limits=_UNPOOLED)
        # A separate client, so that no header of the API can ever reach a media host.
        silence = httpx.Timeout(MEDIA_SILENCE_SECONDS, connect=CONNECT_SECONDS, pool=None)
        self._media = _http_client(context, self._proxies, silence)

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
    ) -> Response:
        """Return the API's response, whatever its status; `uncached` asks caches on the way to forward the request.

        `before_body` is awaited once the connection is open and the headers are sent: until it returns, nothing of the
        body is sent, so that the service can't act yet. An error it raises cancels the request.

        Raises:
            NotSent: nothing of the body was sent, so the service can't have acted on it.
            ResponseLost: it may have received the request.
        """
        payload = _Payload(body, before_body)
        client = self._api if body is None else self._purchases
        request = self._request(method, url, token, query, payload, uncached=uncached)
        try:
            # httpx limits single reads; a body that trickles for ever needs a limit too.
            async with asyncio.timeout(self._total_seconds):
                response = await client.send(request, stream=True)
                try:
                    return Response(response.status_code, _lower_names(response.headers), await _read_limited(response))
                finally:
                    await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            message = f"Could not connect to {self._target(request.url)}: {_reason(error)}"
            step = _UNTRUSTED_STEP if _UNTRUSTED in message else self._proxy_step(request.url)
            raise NotSent(message, next_step=step) from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.ProxyError) as error:
            step = self._proxy_step(request.url) if isinstance(error, httpx.ProxyError) else None
            message = f"Can't send anything to {self._target(request.url)}: {_reason(error)}"
            raise ConfigurationError(message, next_step=step) from None
        except (httpx.HTTPError, TimeoutError) as error:
            if payload.is_held_back:
                message = f"{self._target(request.url)} disconnected before anything was sent: {_reason(error)}"
                raise NotSent(message, next_step=self._proxy_step(request.url)) from None
            raise ResponseLost(_reason(error)) from None

    def _target(self, url: httpx.URL) -> str:
        return f"{_origin(url)}{self._proxies.way_to(*url_parts(str(url)))}"

    def _proxy_step(self, url: httpx.URL) -> str | None:
        """Return what to do where a proxy is what fails: it is not the service's address that is wrong."""
        if self._proxies.proxy_for(*url_parts(str(url))) is None:
            return None
        variable = self._proxies.variables[url.scheme]
        return (
            f"Nothing was sent. Check {variable} (its host, port, user and password), or add {url.host} to NO_PROXY if "
            "it is reached without a proxy; then run it again."
        )

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
        """Let the kernel drop what it can't deliver in time, once a connection is open.

        A request that has timed out must not arrive later, when the network comes back.
        """
        if event == "connection.connect_tcp.complete" and hasattr(socket, "TCP_USER_TIMEOUT"):
            connection = info["return_value"].get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._delivery_milliseconds)

    @asynccontextmanager
    async def open_media(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[MediaResponse]:
        """Open one media link without any credentials.

        Raises:
            ResponseLost: the connection failed or broke, before or while reading.
        """
        try:
            async with self._media.stream(
                "GET", url, headers={**headers, "Accept": "*/*", "Accept-Encoding": "identity"}
            ) as response:
                yield MediaResponse(response)
        except _UNREACHED as error:
            raise ResponseLost(f"{_reason(error)}{self._proxies.way_to(*url_parts(url))}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ResponseLost(_reason(error)) from None

    async def close(self) -> None:
        """Close all connections."""
        for client in (self._api, self._purchases, self._media):
            await client.aclose()


class _Routes(httpx.AsyncBaseTransport):
    """Sends each request directly or through a proxy, as the environment says.

    httpx would read it too, but supports no networks in NO_PROXY: it ignores those of IPv4 and fails on those of IPv6.
    """

    def __init__(self, context: ssl.SSLContext, proxies: Proxies, limits: httpx.Limits) -> None:
        self._proxies = proxies
        self._direct = httpx.AsyncHTTPTransport(verify=context, limits=limits)
        self._by_proxy = {
            url: _proxied(url, self._proxies.variables[scheme], context, limits)
            for scheme, url in self._proxies.by_scheme.items()
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        proxy = self._proxies.proxy_for(*url_parts(str(request.url)))
        if proxy is None:
            return await self._direct.handle_async_request(request)
        response = await self._by_proxy[proxy].handle_async_request(request)
        response.extensions[_PROXIED] = True
        return response

    async def aclose(self) -> None:
        for transport in (self._direct, *self._by_proxy.values()):
            await transport.aclose()


def _proxied(url: str, variable: str, context: ssl.SSLContext, limits: httpx.Limits) -> httpx.AsyncHTTPTransport:
    scheme, host, _ = url_parts(url)
    if scheme not in _PROXY_SCHEMES or not host:
        raise ConfigurationError(
            f"{variable}={masked(url)} is not a usable proxy",
            next_step=f"Set {variable} to something like http://proxy:8080 ({', '.join(_PROXY_SCHEMES)}), or unset it.",
        )
    try:
        proxy = httpx.Proxy(url, ssl_context=context if scheme == "https" else None)
        return httpx.AsyncHTTPTransport(verify=context, limits=limits, proxy=proxy)
    except ImportError:
        raise ConfigurationError(
            f"{variable}={masked(url)} is a SOCKS proxy, which needs another package",
            next_step=f'Install it (pip install "httpx[socks]"), or set {variable} to an HTTP proxy.',
        ) from None


def _http_client(
    context: ssl.SSLContext,
    proxies: Proxies,
    timeout: httpx.Timeout,
    *,
    limits: httpx.Limits = _POOLED,
    follow_redirects: bool = False,
) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=_Routes(context, proxies, limits),
        headers={"User-Agent": user_agent()},
        follow_redirects=follow_redirects,
        timeout=timeout,
    )


_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
_UNTRUSTED_STEP = (
    "Nothing was bought. If a proxy of your network signs with its own certificate authority, set SSL_CERT_FILE to a "
    "file that contains it (REQUESTS_CA_BUNDLE is for S3 only), then run it again."
)


def _trusted_authorities() -> ssl.SSLContext:
    variable = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
    folder = os.environ.get(variable) if variable == "SSL_CERT_DIR" else None
    if folder and not Path(folder).is_dir():  # OpenSSL reports nothing, and trusts no certificate
        raise _unusable(variable, "there is no such directory")
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        # Python opens only this one of the possible files by itself, so only its error has a file name.
        raise _unusable("SSLKEYLOGFILE" if error.filename else variable, error.strerror or str(error)) from None


def _unusable(variable: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{variable}={os.environ.get(variable, '')} can't be used: {reason}", next_step=f"Correct or unset {variable}."
    )


class _Payload:
    """A request's body, sent only after a callback has returned."""

    def __init__(self, body: dict[str, Any] | None, before: Callable[[], Awaitable[None]] | None) -> None:
        self._bytes = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        self._before = before
        self.is_held_back = before is not None
        self.headers = {}
        if body is not None:
            self.headers = {"Content-Type": "application/json", "Content-Length": str(len(self._bytes))}

    def content(self) -> bytes | AsyncIterator[bytes]:
        return self._bytes if self._before is None else self._send_later(self._before)

    async def _send_later(self, before: Callable[[], Awaitable[None]]) -> AsyncIterator[bytes]:
        await before()
        self.is_held_back = False
        yield self._bytes


class MediaResponse:
    """An open media response: status and headers at once, bytes as they arrive."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers = _lower_names(response.headers)

    @property
    def peer(self) -> str | None:
        """The address of the server; `None` behind a proxy, or when the connection is gone."""
        stream = self._response.extensions.get("network_stream")
        if stream is None or _PROXIED in self._response.extensions:
            return None
        address = stream.get_extra_info("server_addr")
        return str(address[0]) if address else None

    async def read_chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, undecoded.

        Raises:
            ResponseLost: the connection broke.
        """
        try:
            # As they arrive, not in chunks of a fixed size: a partial chunk would be lost when the connection breaks.
            async for chunk in self._response.aiter_raw():
                yield chunk
        except httpx.HTTPError as error:
            raise ResponseLost(_reason(error)) from None


def joined_url(base: str, target: str) -> str:
    """Return the URL of a redirect from `base` to `target`; the target as it is if it is not a valid URL."""
    try:
        return str(httpx.URL(base).join(target))
    except (httpx.InvalidURL, UnicodeError):
        return target


def absolute_url(base: str, url: str) -> str:
    """Return a link from a service at `base` as an absolute URL.

    Without a host it is relative to the root of the service's own host; without a scheme it has the service's.
    """
    if "://" in url or (re.search(r"\s", url) and not url.startswith("/")):
        return url  # absolute, and maybe signed; or not a link
    return joined_url(joined_url(base, "/"), f"//{url}" if _HOST.match(url) else url)


def url_parts(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL; empty strings if it is not valid."""
    try:
        parsed = httpx.URL(url)
        host = parsed.host
    except (httpx.InvalidURL, UnicodeError):
        return "", "", 0
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    return (parsed.scheme, host, port) if port < 65536 else ("", "", 0)


async def _read_limited(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            raise httpx.DecodingError("the response is too large")
    return bytes(body)


def _lower_names(headers: httpx.Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def fetch_file(url: str, timeout_seconds: float = 60.0) -> Response:
    """Return the response to a public link with a small file; redirects are followed, and no credentials are sent.

    Raises:
        ConfigurationError: it can't be read.
    """
    failure = f"{without_secrets(url)} can't be read"
    proxies = Proxies.from_environment()
    client = _http_client(_trusted_authorities(), proxies, httpx.Timeout(CONNECT_SECONDS), follow_redirects=True)
    try:
        # httpx limits single reads; a link that trickles for ever needs a limit too.
        async with asyncio.timeout(timeout_seconds), client, client.stream("GET", url) as response:
            body = await _read_limited(response)
    except _UNREACHED as error:
        # A redirect may have led to another scheme, and so to another proxy.
        way = proxies.way_to(*url_parts(str(error.request.url)))
        raise ConfigurationError(f"{failure}{way}: {_reason(error)}") from None
    except httpx.HTTPError as error:
        raise ConfigurationError(f"{failure}: {_reason(error)}") from None
    except TimeoutError:
        raise ConfigurationError(f"{failure}: it took longer than {timeout_seconds:g} s") from None
    except Exception:  # noqa: BLE001 - IDNA, codecs and sockets raise many errors on odd links, and quote them
        raise ConfigurationError(f"{failure}: it is not a valid link, or redirects to one that is not") from None
    if not response.is_success:
        raise ConfigurationError(f"{failure}: HTTP {response.status_code}")
    return Response(response.status_code, _lower_names(response.headers), body)
