"""The models of one account, cached."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from prefect_veogen.api.pages import read_pages
from prefect_veogen.errors import ModelNotFound, VeogenError
from prefect_veogen.models import nearest

if TYPE_CHECKING:
    from prefect_veogen.api.client import VeogenClient
    from prefect_veogen.models import CatalogueModel, Kind

MODEL_SECONDS = 600.0
"""How long a model object is used before it is read again."""


class Catalogue:
    """The models of one account, each requested once per `MODEL_SECONDS` for all callers; belongs to the I/O loop."""

    def __init__(self, client: VeogenClient) -> None:
        self._client = client
        self._models: dict[str, tuple[float, CatalogueModel]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._listed: tuple[float, list[str]] | None = None

    async def get_model(self, slug: str) -> CatalogueModel:
        """Return a model, from the cache or the service.

        Raises:
            ModelNotFound: the service does not know it; the message names the nearest that it lists.
        """
        async with self._locks.setdefault(slug, asyncio.Lock()):
            read_at, model = self._models.get(slug, (0.0, None))
            if model is None or time.monotonic() - read_at > MODEL_SECONDS:
                try:
                    model = await self._client.get_model(slug)
                except ModelNotFound as error:
                    raise await self._add_nearest(error, slug) from None
                self._models[slug] = (time.monotonic(), model)
            return model

    def forget(self) -> None:
        """Have every model read again by whoever asks for it next, for a decision about its price now."""
        self._models.clear()

    async def find_kind(self, slug: str) -> Kind | None:
        """Return what a model makes, `None` if the service doesn't say, doesn't know it or can't be asked."""
        try:
            return (await self.get_model(slug)).type
        except VeogenError:
            return None

    async def _add_nearest(self, error: ModelNotFound, slug: str) -> ModelNotFound:
        try:
            near = nearest(slug.lower(), await self._read_slugs())
        except VeogenError:
            return error  # the endpoint of the list is linked by the documentation, and not described
        if near is None:
            return error
        message = f"{error.message}; nearest: {near}"
        return ModelNotFound(message, http_status=error.http_status, service_text=error.service_text)

    async def _read_slugs(self) -> list[str]:
        if self._listed is None or time.monotonic() - self._listed[0] > MODEL_SECONDS:
            self._listed = time.monotonic(), [model.slug for model in await read_catalogue(self._client)]
        return self._listed[1]


async def read_catalogue(client: VeogenClient) -> list[CatalogueModel]:
    """Return all models that the service lists."""
    return await read_pages(client.list_models, lambda model: model.slug)
