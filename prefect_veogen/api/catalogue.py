"""The models of one account, cached."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_veogen.api.client import VeogenClient
    from prefect_veogen.models import CatalogueModel

MODEL_SECONDS = 600.0
"""How long a model object is used before it is read again."""


class Catalogue:
    """The models of one account, each requested once per `MODEL_SECONDS` for all callers; belongs to the I/O loop."""

    def __init__(self, client: VeogenClient) -> None:
        self._client = client
        self._models: dict[str, tuple[float, CatalogueModel]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def get_model(self, slug: str) -> CatalogueModel:
        """Return a model, from the cache or the service.

        Raises:
            ModelNotFound: the service does not know it.
        """
        async with self._locks.setdefault(slug, asyncio.Lock()):
            read_at, model = self._models.get(slug, (0.0, None))
            if model is None or time.monotonic() - read_at > MODEL_SECONDS:
                model = await self._client.get_model(slug)
                self._models[slug] = (time.monotonic(), model)
            return model
