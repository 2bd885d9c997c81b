"""Which proxy a request goes through, as the environment says: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.request import getproxies

from prefect_veogen.masking import masked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SCHEMES = ("http", "https")


@dataclass(frozen=True)
class Proxies:
    """The environment's proxies, and the hosts that are reached without one."""

    by_scheme: Mapping[str, str]
    exceptions: tuple[_Exception, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    """Which variable sets the proxy for a scheme."""

    @classmethod
    def from_environment(cls) -> Proxies:
        """Return the environment's proxies, not validated yet."""
        variables = getproxies()
        exceptions = tuple(_exceptions(variables.get("no", "")))
        found = {scheme: variables.get(scheme) or variables.get("all") for scheme in _SCHEMES}
        by_scheme = {scheme: url if "://" in url else f"http://{url}" for scheme, url in found.items() if url}
        names = {scheme: f"{scheme.upper()}_PROXY" if variables.get(scheme) else "ALL_PROXY" for scheme in by_scheme}
        return cls(by_scheme, exceptions, names)

    def proxy_for(self, scheme: str, host: str, port: int) -> str | None:
        """Return the proxy's URL, `None` for a direct connection."""
        if any(exception.matches(scheme, host, port) for exception in self.exceptions):
            return None
        return self.by_scheme.get(scheme)

    def way_to(self, scheme: str, host: str, port: int) -> str:
        """Return which proxy a request goes through, as an error names it; empty for a direct connection."""
        proxy = self.proxy_for(scheme, host, port)
        return "" if proxy is None else f" through the proxy {self.variables[scheme]}={masked(proxy)}"


@dataclass(frozen=True, slots=True)
class _Exception:
    """One entry of NO_PROXY: a domain with its subdomains, an address or a network, optionally a scheme and a port."""

    name: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None
    scheme: str
    port: int | None

    def matches(self, scheme: str, host: str, port: int) -> bool:
        if (self.scheme not in ("", "all", scheme)) or (self.port not in (None, port)):
            return False
        if self.network is not None:
            return _is_in(host, self.network)
        return self.name in ("", host) or host.endswith(f".{self.name}")


def _exceptions(text: str) -> Iterator[_Exception]:
    for entry in re.split(r"[\s,]+", text.lower()):
        scheme, _, place = entry.rpartition("://")
        # [::1]:8080, [::1], [fd00::]/8, or anything with at most one colon; with more it is an IPv6 address.
        found = re.fullmatch(r"\[(?P<v6>.+)\](?P<bits>/\d+)?(:(?P<port6>\d+))?|(?P<host>[^:]*)(:(?P<port>\d+))?", place)
        parts = found.groupdict(default="") if found else {"v6": place, "bits": "", "port6": "", "host": "", "port": ""}
        host, port = f"{parts['v6']}{parts['bits']}{parts['host']}", parts["port6"] or parts["port"]
        name = host.removeprefix("*").removeprefix(".")
        if host:  # "*" alone has an empty name, which matches all
            yield _Exception(name, _network(host), scheme, int(port) if port else None)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _is_in(host: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(host) in network
    except ValueError:
        return False
