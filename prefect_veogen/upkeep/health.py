"""Does everything a purchase needs work from here? The service, the token, the clock, the balance and the store."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from prefect_veogen.api.client import client_of
from prefect_veogen.errors import AuthenticationError, ServiceUnavailable, StoreUnavailable, VeogenError
from prefect_veogen.masking import masked
from prefect_veogen.models import in_usd
from prefect_veogen.store import PROOF, LocalStore, S3Store, Store, is_absolute, open_store

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from prefect_veogen.api.client import VeogenClient
    from prefect_veogen.api.responses import Balance
    from prefect_veogen.settings import Settings

CHECK_SECONDS: Final = 15.0
"""No check takes longer than this."""
NO_RESPONSE: Final = f"no response within {CHECK_SECONDS:.0f} s"
_SERVICE = ("service", "token", "clock", "balance")
# A `Date` has whole seconds; leases of machines compare their clocks, with much longer times.
_CLOCK_TOLERANCE = timedelta(seconds=30)
_NOBODY = SecretStr("no-token")
_LINK_SECONDS = 60
_NOT_CHECKED = "not checked: "


@dataclass(frozen=True, slots=True)
class Check:
    """What was found about one thing, and what has to be done on which side."""

    name: str
    ok: bool
    detail: str
    advice: str = ""

    @property
    def is_unchecked(self) -> bool:
        """Whether it could not be done because an earlier one failed."""
        return not self.ok and self.detail.startswith(_NOT_CHECKED)


def unchecked(names: Iterable[str], reason: str) -> list[Check]:
    """Return checks that can't be done because an earlier one failed."""
    return [Check(name, ok=False, detail=f"{_NOT_CHECKED}{reason}") for name in names]


def failed(name: str, side: str, error: VeogenError) -> Check:
    """Return the check that an error ended; `side` is who has to act."""
    status = f" (HTTP {error.http_status})" if error.http_status else ""
    return Check(name, ok=False, detail=f"{error.message}{status}", advice=f"{side}: {error.next_step}")


# ---------------------------------------------------------------- the service


def not_asked(error: VeogenError) -> list[Check]:
    """Return the service's checks where it isn't known which account to ask for."""
    return [
        *unchecked(("service",), "the token could not be read"),
        failed("token", "This machine", error),
        *unchecked(("clock", "balance"), "the token could not be read"),
    ]


async def check_service(token: SecretStr | None, base_url: str, settings: Settings) -> list[Check]:
    """Check service, token, clock and balance by one request, or two. Free; without a token all that can be seen."""
    limits = (settings.requests_per_minute, settings.request_timeout_seconds)
    try:
        client = client_of(_NOBODY, base_url, *limits)
    except VeogenError as error:
        return [failed("service", "This machine", error), *unchecked(_SERVICE[1:], "there is no address to ask")]
    unusable: VeogenError | None = None
    try:
        client = client_of(token or _NOBODY, base_url, *limits)
    except VeogenError as error:
        token, unusable = None, error
    balance, refusal = await _read_balance(client)
    service = _check_response(client, refusal)
    silent = "the service does not respond as it should"
    if unusable is not None:
        of_token = failed("token", "This machine", unusable)
    elif token is not None and not service.ok:
        of_token = unchecked(("token",), silent)[0]
    else:
        of_token = _check_token(token, refusal)
    if not service.ok:
        return [service, of_token, *unchecked(("clock", "balance"), silent)]
    return [
        service,
        of_token,
        check_clock(client.clock_offset, simulated=_is_on_this_machine(client.base_url)),
        _check_balance(balance),
    ]


async def _read_balance(client: VeogenClient) -> tuple[Balance | None, VeogenError | None]:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            try:
                return await client.get_account(), None
            except VeogenError as error:
                # Documented for one of the two hosts each.
                return (await client.get_balance(), None) if error.http_status == 404 else (None, error)
    except TimeoutError:
        return None, ServiceUnavailable(NO_RESPONSE)
    except VeogenError as error:
        return None, error


def _check_response(client: VeogenClient, refusal: VeogenError | None) -> Check:
    if refusal is None or isinstance(refusal, AuthenticationError):
        return Check("service", ok=True, detail=f"{client.base_url} responds")
    if refusal.http_status is not None and refusal.http_status >= 500:
        return failed("service", "The service", refusal)
    advice = "This machine: check the network, a proxy (HTTPS_PROXY) and VEOGEN_BASE_URL; else the service is down."
    return Check("service", ok=False, detail=f"{client.base_url}: {refusal.message}", advice=advice)


def _check_token(token: SecretStr | None, refusal: VeogenError | None) -> Check:
    if token is None:
        advice = (
            "This machine: set VEOGEN_API_TOKEN (site → Settings → API Tokens), or VEOGEN_CREDENTIALS to the name of a "
            "VeogenCredentials block. `prefect-veogen doctor --credentials NAME` checks one, such as default, which "
            "runs of deployments use where no token is set."
        )
        return Check("token", ok=False, detail="there is none", advice=advice)
    return Check("token", ok=True, detail="accepted") if refusal is None else failed("token", "The account", refusal)


def _is_on_this_machine(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def check_clock(offset: timedelta | None, *, simulated: bool) -> Check:
    """Check this machine's clock, which is ahead of the service's by `offset`. Free."""
    if offset is None:
        return Check("clock", ok=True, detail="not known: the service's responses have no date")
    seconds = round(offset.total_seconds())
    side = "ahead of" if seconds > 0 else "behind"
    detail = f"{abs(seconds)} s {side} the service's" if abs(seconds) > 1 else "as the service's"
    if abs(offset) <= _CLOCK_TOLERANCE:
        return Check("clock", ok=True, detail=detail)
    if simulated:
        return Check("clock", ok=True, detail=f"{detail}, which runs on this machine: a sandbox has a time of its own")
    advice = "This machine: let it synchronise its clock (NTP): leases of workers and signed links depend on it."
    return Check("clock", ok=False, detail=detail, advice=advice)


def _check_balance(balance: Balance | None) -> Check:
    if balance is None:
        return unchecked(("balance",), "no token was accepted")[0]
    if balance.remaining_usd is None:
        return Check("balance", ok=True, detail="not known: the service does not state it")
    if balance.remaining_usd > 0:
        return Check("balance", ok=True, detail=f"{in_usd(balance.remaining_usd)} left")
    advice = "The account: top it up (https://veogen.studio/billing)."
    return Check("balance", ok=False, detail=f"{in_usd(balance.remaining_usd)} left", advice=advice)


# ---------------------------------------------------------------- the store


async def check_store(place: str | Path | Store) -> list[Check]:
    """Check that the store permits and guards all that buying and delivering need, and makes links. Free.

    Nothing is left behind that the first purchase would not leave, and a directory that isn't there isn't made.
    """
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            store = place if isinstance(place, Store) else open_store(place)
            if isinstance(store, LocalStore) and not store.root.is_dir():
                return [_check_parent(store)]
            await store.check()
            tried = await _try_bucket(store) if isinstance(store, S3Store) else "locks, create, replace and write"
    except TimeoutError:
        slow = StoreUnavailable(f"{_shown(place)}: {NO_RESPONSE}")
        return [failed("store", "The store", slow)]
    except VeogenError as error:
        return [failed("store", "The store", error)]
    lasts = isinstance(place, Store) or is_absolute(place)
    relative = "" if lasts else "; relative to the working directory, so runs of deployments refuse it"
    return [Check("store", ok=True, detail=f"{store.uri('')}: {tried} work{relative}")]


def _shown(place: str | Path | Store) -> str:
    return place.uri("") if isinstance(place, Store) else masked(str(place))


async def _try_bucket(store: S3Store) -> str:
    # The check leaves this document and proves that writes are refused; this is one that succeeds.
    document = await store.read(PROOF)
    if document is None:
        raise StoreUnavailable(f"{store.uri(PROOF)} was just written and is gone")
    await store.replace(PROOF, document.body, document.version)
    await store.presign(PROOF, _LINK_SECONDS)
    return "create, replace, multipart upload, listing, writing of assets and signing of links"


def _check_parent(store: LocalStore) -> Check:
    parent = next(folder for folder in store.root.parents if folder.exists())
    if os.access(parent, os.W_OK | os.X_OK):
        return Check("store", ok=True, detail=f"{store.root} does not exist yet; the first purchase creates it")
    advice = f"This machine: let this user write in {parent}, or choose another VEOGEN_STORE."
    return Check("store", ok=False, detail=f"{store.root} does not exist and can't be created", advice=advice)
