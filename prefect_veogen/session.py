"""One account and one store, resolved for one call: argument → block → environment → default."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from prefect_veogen.api.catalogue import Catalogue
from prefect_veogen.api.client import VeogenClient, client_of
from prefect_veogen.api.poller import Poller
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.ledger import Ledger
from prefect_veogen.ledger.budgets import Budgets, Cap, day_budget, is_by_label, label_caps
from prefect_veogen.models import Delivery, Labels, checked_labels
from prefect_veogen.process.concurrency import SharedReads
from prefect_veogen.process.registry import Registry
from prefect_veogen.settings import Settings
from prefect_veogen.store import Store, open_beside, open_store

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import SecretStr

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]
Emit = Callable[[str, str, Mapping[str, Any]], None]
"""Sends an event: its name, its resource's id, its payload."""


def _emit_nothing(name: str, resource: str, payload: Mapping[str, Any]) -> None:
    """Send nothing: without Prefect there are no events."""


def _ignore_delivery(delivery: Delivery) -> None:
    """Do nothing: without Prefect nothing is shown."""


@dataclass(frozen=True)
class Session:
    """Everything a purchase, a wait and a delivery need."""

    settings: Settings
    client: VeogenClient
    store: Store
    caps: tuple[Cap, ...] = ()
    flow_run_id: str | None = None
    log: Log = field(default_factory=lambda: logging.getLogger("prefect_veogen"))
    labels: Labels = field(default_factory=dict)
    """What new purchases are labelled with; see `labelled`."""
    campaign: str | None = None
    """The campaign that new purchases are made for."""
    carried: Mapping[str, Any] = field(default_factory=dict)
    """What the sidecars of downloads carry along: the caller's own columns, no part of the receipt."""
    emit: Emit = _emit_nothing
    delivered: Callable[[Delivery], None] = _ignore_delivery
    """Is called with each asset that was delivered, or found in the store."""

    def labelled(self, labels: Labels | None) -> Session:
        """Return the session with labels added, and with the caps of exactly the budgets by label that then apply.

        Raises:
            ConfigurationError: they can't be labels.
        """
        both = checked_labels({**self.labels, **checked_labels(labels)})
        others = tuple(cap for cap in self.caps if not is_by_label(cap))
        return replace(self, labels=both, caps=others + label_caps(self.settings.budgets, both))

    def store_at(self, location: str) -> Store:
        """Return the store at a location; what lies in the bucket of the session's own is reached with its access."""
        return open_beside(self.store, location)

    @property
    def ledger(self) -> Ledger:
        """The receipts beside the assets."""
        return Ledger(self.store)

    @property
    def budgets(self) -> Budgets:
        """The budgets beside the receipts."""
        return Budgets(self.store)

    @property
    def catalogue(self) -> Catalogue:
        """The service's models, shared by the process."""
        return _catalogues.get(None, lambda: Catalogue(weakref.proxy(self.client)), owner=self.client)

    @property
    def poller(self) -> Poller:
        """The poller that serves all waits of the process."""
        intervals = (self.settings.image_poll_seconds, self.settings.video_poll_seconds)
        return _pollers.get(intervals, lambda: Poller(weakref.proxy(self.client), *intervals), owner=self.client)

    @property
    def shared_reads(self) -> SharedReads:
        """The list requests that purchases in doubt share."""
        return _shared_reads.get(None, SharedReads, owner=self.client)


# What belongs to a client must not keep it alive: it is closed with the last session that uses it.
_catalogues = Registry[None, Catalogue]()
_pollers = Registry[tuple[float, float], Poller]()
_shared_reads = Registry[None, SharedReads]()


def open_client(token: SecretStr | None, base_url: str | None, settings: Settings) -> VeogenClient:
    """Return the process's client for an account; what is `None` comes from the settings.

    Raises:
        ConfigurationError: there is no token, or the address is not valid.
    """
    token = settings.api_token if token is None else token
    if token is None or not token.get_secret_value().strip():
        raise ConfigurationError(
            "There is no API token",
            next_step="Set VEOGEN_API_TOKEN, or VEOGEN_CREDENTIALS to the name of a VeogenCredentials block. To try it "
            "offline without one: `prefect-veogen demo`.",
        )
    base_url = settings.base_url if base_url is None else base_url
    return client_of(token, base_url, settings.requests_per_minute, settings.request_timeout_seconds)


def open_session(
    *,
    settings: Settings | None = None,
    token: SecretStr | None = None,
    base_url: str | None = None,
    store: str | Path | Store | None = None,
    caps: tuple[Cap, ...] = (),
    flow_run_id: str | None = None,
    log: Log | None = None,
    labels: Labels | None = None,
) -> Session:
    """Return a session; what is `None` comes from the environment, which `settings` may have been read from already.

    Raises:
        ConfigurationError: there is no token, or a setting or a label is impossible.
    """
    settings = settings or Settings()
    client = open_client(token, base_url, settings)
    place = settings.store if store is None else store
    day = Cap.of(day_budget(), settings.budget_usd)
    return Session(
        settings=settings,
        client=client,
        store=place if isinstance(place, Store) else open_store(place),
        caps=caps if day is None else (day, *caps),
        flow_run_id=flow_run_id,
        log=log or logging.getLogger("prefect_veogen"),
    ).labelled(labels)
