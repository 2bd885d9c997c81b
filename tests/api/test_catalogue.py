"""A model is requested once for all callers."""

from __future__ import annotations

import asyncio

import pytest

from prefect_veogen.errors import ModelNotFound
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import open_session
from tests.support.servers import Reply, Request, relayed, serving


async def test_concurrent_callers_and_later_ones_share_one_request_per_model(sandbox: Sandbox) -> None:
    async def get_all() -> set[str]:
        slugs = ["veo-3.1-fast", "gpt-4o-image"] * 10
        return {model.slug for model in await asyncio.gather(*map(open_session().catalogue.get_model, slugs))}

    assert await on_io(get_all()) == await on_io(get_all()) == {"veo-3.1-fast", "gpt-4o-image"}
    assert len(sandbox.requests) == 2


@pytest.mark.parametrize(
    ("slug", "hint"),
    [("gpt-40-image", "; nearest: gpt-4o-image"), ("VEO 3.1 fast", "; nearest: veo-3.1-fast"), ("???", "")],
)
async def test_an_unknown_model_is_refused_with_the_nearest(slug: str, hint: str, sandbox: Sandbox) -> None:
    with pytest.raises(ModelNotFound) as caught:
        await on_io(open_session().catalogue.get_model(slug))
    assert caught.value.message == f"The service does not know this model: {slug!r}{hint}"
    assert caught.value.http_status == 404


async def test_the_models_are_listed_once_for_all_that_are_unknown(sandbox: Sandbox) -> None:
    for slug in ("veo-3.9", "veo-3.8"):
        with pytest.raises(ModelNotFound, match="nearest: "):
            await on_io(open_session().catalogue.get_model(slug))
    assert [request.path.rpartition("/")[2] for request in sandbox.requests] == ["veo-3.9", "models", "veo-3.8"]


async def test_an_unknown_model_is_refused_where_the_list_does_not_respond(sandbox: Sandbox) -> None:
    def respond(request: Request) -> Reply:
        is_list = request.path.endswith("/models")
        return Reply(404, body=b"<html>Not here</html>") if is_list else relayed(sandbox.base_url, request)

    with serving(respond) as origin, pytest.raises(ModelNotFound, match="this model: 'veo-99'"):
        await on_io(open_session(base_url=f"{origin}/api/v1").catalogue.get_model("veo-99"))
