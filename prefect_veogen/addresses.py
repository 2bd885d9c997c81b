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


async def check_address(session: Session, url: str) -> None:
    """Pass a link to a public address; private ones only if a setting says so or the API itself is at one.

    Raises:
        MediaRejected: the link leads where no media of the service can be.
    """
    scheme, host, port = url_parts(url)
    if scheme not in ("http", "https") or not host:
        raise MediaRejected(f"The service names {url[:80]!r}, which is no http(s) link, as the place of its output")
    allowed = session.settings.allow_private_media
    if allowed is None:
        allowed = await _is_private(*url_parts(session.client.base_url)[1:])
    if not allowed and await _is_private(host, port):
        raise MediaRejected(
            f"The service's output leads to the private address {host}",
            next_step="If your service really is in your own network, set VEOGEN_ALLOW_PRIVATE_MEDIA=true.",
        )


async def _is_private(host: str, port: int) -> bool:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return False  # what can't be resolved can't be reached either
    return any(not ipaddress.ip_address(info[4][0].partition("%")[0]).is_global for info in found)
