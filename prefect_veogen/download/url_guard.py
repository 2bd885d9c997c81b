"""The SSRF guard: a link of the service, or a redirect, must not lead to a private address."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prefect_veogen.api.http import MediaResponse, ResponseLost, absolute_url, joined_url, url_parts
from prefect_veogen.errors import MediaRejected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from prefect_veogen.models import Generation
    from prefect_veogen.session import Session

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def output_link(session: Session, generation: Generation) -> str | None:
    """Return the absolute link to a generation's output; `None` if there is no output."""
    return None if generation.output is None else absolute_url(session.client.base_url, generation.output.url)


@asynccontextmanager
async def open_media(
    session: Session, url: str, headers: Mapping[str, str], *, ours: bool = False
) -> AsyncIterator[MediaResponse]:
    """Open a media link, without any credentials, following redirects; each address is checked.

    `ours` is for links of our own bucket, which may have a private address here and a public one elsewhere.

    Raises:
        MediaRejected: it leads to an address that is not allowed.
        ResponseLost: there was no whole response, or a redirect that is not followed.
    """
    for _ in range(_MAX_REDIRECTS + 1):
        if not ours:
            await check_address(session, url)
        async with session.client.transport.open_media(url, headers) as response:
            if response.status not in _REDIRECTS:
                # DNS rebinding: a name may resolve to another address when it is connected to than when it was checked.
                peer = response.peer  # read once: a connection that is reset meanwhile has none
                if not ours and peer is not None:
                    await _check(session, url_parts(url)[1], [_parsed(peer)])
                yield response
                return
            target = joined_url(url, response.headers.get("location", ""))
        if url.startswith("https:") and not target.startswith("https:"):
            raise ResponseLost("the media host redirects to an unencrypted link")
        url = target
    raise ResponseLost("the media host redirects in circles")


async def check_address(session: Session, url: str) -> None:
    """Validate that a link leads to a public address; a private one needs the setting, or an API at a private one.

    Link-local addresses, where clouds serve credentials, and multicast or unspecified ones always need the setting.

    Raises:
        MediaRejected: the link leads to an address that is not allowed.
    """
    scheme, host, port = url_parts(url)
    if scheme not in ("http", "https") or not host:
        raise MediaRejected(
            f"The service gives {url[:80]!r} as the link to its output, which is not a valid http(s) link"
        )
    await _check(session, host, await _resolve(host, port))


async def _check(session: Session, host: str, found: Sequence[_Address]) -> None:
    allowed = session.settings.allow_private_media
    if allowed is None and not any(map(_needs_setting, found)):
        allowed = any(map(_is_private, await _resolve(*url_parts(session.client.base_url)[1:])))
    if not allowed and any(map(_is_private, found)):
        raise MediaRejected(
            f"The service's output leads to the private address {host}",
            setting="VEOGEN_ALLOW_PRIVATE_MEDIA",
            next_step="Nothing was read. If your service is in your own network, set "
            "VEOGEN_ALLOW_PRIVATE_MEDIA=true and run it again: nothing is bought again.",
        )


async def _resolve(host: str, port: int) -> list[_Address]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []  # a peer that responds all the same is checked by its own address
    return [_parsed(str(info[4][0])) for info in found]


def _parsed(text: str) -> _Address:
    """Return an address; for an IPv6 address that maps to or tunnels an IPv4 one, the IPv4 address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(address.packed[-4:])
    _server, behind_teredo = address.teredo or (None, None)
    return address.ipv4_mapped or address.sixtofour or behind_teredo or address


def _is_private(address: _Address) -> bool:
    return not address.is_global or address.is_multicast


def _needs_setting(address: _Address) -> bool:
    return address.is_link_local or address.is_multicast or address.is_unspecified
