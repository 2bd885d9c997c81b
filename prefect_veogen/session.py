"""One account and one store, resolved for one call: argument → block → environment → default."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prefect_veogen.api.client import VeogenClient, client_of
from prefect_veogen.api.poller import Watcher
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.ledger import Ledger
from prefect_veogen.ledger.budgets import Budgets, Cap, day_budget
from prefect_veogen.process.io_loop import SharedReads
from prefect_veogen.settings import Settings
from prefect_veogen.store import Store, open_store

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import SecretStr

    from prefect_veogen.models import CatalogueModel

MODEL_SECONDS = 600.0
"""How long a model object is trusted before it is read again."""

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class Catalogue:
    """The models of one account, each read once in a while however many ask for it."""

    def __init__(self, client: VeogenClient) -> None:
        self._client = client
        self._models: dict[str, tuple[float, CatalogueModel]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def model(self, slug: str) -> CatalogueModel:
        """Return a model of the service's catalogue; belongs to the I/O loop."""
        async with self._locks.setdefault(slug, asyncio.Lock()):
            read_at, model = self._models.get(slug, (0.0, None))
            if model is None or time.monotonic() - read_at > MODEL_SECONDS:
                model = await self._client.get_model(slug)
                self._models[slug] = (time.monotonic(), model)
            return model


@dataclass(frozen=True)
class Session:
    """Everything a purchase, a wait and a delivery need."""

    settings: Settings
    client: VeogenClient
    store: Store
    caps: tuple[Cap, ...] = ()
    flow_run_id: str | None = None
    log: Log = field(default_factory=lambda: logging.getLogger("prefect_veogen"))

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
        return _catalogues.setdefault(self.client, Catalogue(weakref.proxy(self.client)))

    @property
    def watcher(self) -> Watcher:
        """The one who looks for all waits of the process."""
        pace = (self.settings.image_poll_seconds, self.settings.video_poll_seconds)
        watchers = _watchers.setdefault(self.client, {})
        if pace not in watchers:
            watchers[pace] = Watcher(weakref.proxy(self.client), *pace)
        return watchers[pace]

    @property
    def shared_reads(self) -> SharedReads:
        """The listings that purchases in doubt share."""
        return _listings.setdefault(self.client, SharedReads())


# What belongs to a client must not keep it: it goes with the last session that holds it.
_listings: weakref.WeakKeyDictionary[VeogenClient, SharedReads] = weakref.WeakKeyDictionary()
_catalogues: weakref.WeakKeyDictionary[VeogenClient, Catalogue] = weakref.WeakKeyDictionary()
_watchers: weakref.WeakKeyDictionary[VeogenClient, dict[tuple[float, float], Watcher]] = weakref.WeakKeyDictionary()


def open_session(
    *,
    token: SecretStr | None = None,
    base_url: str | None = None,
    store: str | Path | None = None,
    caps: tuple[Cap, ...] = (),
    flow_run_id: str | None = None,
    log: Log | None = None,
) -> Session:
    """Return a session; what is `None` comes from the environment.

    Raises:
        ConfigurationError: there is no token, or a setting is impossible.
    """
    settings = Settings()
    token = settings.api_token if token is None else token
    if token is None or not token.get_secret_value().strip():
        raise ConfigurationError(
            "There is no API token",
            next_step="Set VEOGEN_API_TOKEN, or VEOGEN_CREDENTIALS to the name of a VeogenCredentials block. To try it "
            "offline without one: `prefect-veogen demo`.",
        )
    base_url = settings.base_url if base_url is None else base_url
    client = client_of(token, base_url, settings.requests_per_minute, settings.request_timeout_seconds)
    day = Cap.of(day_budget(), settings.budget_usd)
    return Session(
        settings=settings,
        client=client,
        store=open_store(settings.store if store is None else store),
        caps=caps if day is None else (day, *caps),
        flow_run_id=flow_run_id,
        log=log or logging.getLogger("prefect_veogen"),
    )
