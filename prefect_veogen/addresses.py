"""Which addresses media may be fetched from: the service's word or a redirect must not lead into our own network."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING

from prefect_veogen.errors import MediaRejected
from prefect_veogen.transport import url_parts

if TYPE_CHECKING:
    from prefect_veogen.session import Session

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


async def check_address(session: Session, url: str) -> None:
    """Pass a link to a public address; private ones only if a setting says so or the API itself is at one.

    An API at a private address is no excuse for link-local ones, where clouds keep their credentials, nor for what
    can't be one host: these need the setting.

    Raises:
        MediaRejected: the link leads where no media of the service can be.
    """
    scheme, host, port = url_parts(url)
    if scheme not in ("http", "https") or not host:
        raise MediaRejected(f"The service names {url[:80]!r}, which is no http(s) link, as the place of its output")
    allowed = session.settings.allow_private_media
    if allowed:
        return
    found = await _addresses(host, port)
    if allowed is None and not any(map(_is_no_host, found)):
        allowed = any(map(_is_private, await _addresses(*url_parts(session.client.base_url)[1:])))
    if not allowed and any(map(_is_private, found)):
        raise MediaRejected(
            f"The service's output leads to the private address {host}",
            next_step="If your service really is in your own network, set VEOGEN_ALLOW_PRIVATE_MEDIA=true.",
        )


async def _addresses(host: str, port: int) -> list[_Address]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []  # what can't be resolved can't be reached either
    return [_unwrapped(ipaddress.ip_address(str(info[4][0]).partition("%")[0])) for info in found]


def _unwrapped(address: _Address) -> _Address:
    """Return the IPv4 address that an IPv6 one stands for."""
    return getattr(address, "ipv4_mapped", None) or address


def _is_private(address: _Address) -> bool:
    return not address.is_global or address.is_multicast


def _is_no_host(address: _Address) -> bool:
    return address.is_link_local or address.is_multicast or address.is_unspecified
