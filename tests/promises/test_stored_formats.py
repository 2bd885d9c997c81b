"""A store that the first version wrote, with a receipt in every state, goes on working; nothing is bought twice."""

from __future__ import annotations

import base64
import json
import shutil
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from prefect_veogen.errors import UnknownSubmission
from prefect_veogen.ledger import State
from prefect_veogen.models import Asset, GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.session import open_session
from tests.support.buyers import bought_and_stored
from tests.support.servers import Reply, Request, serving
from tests.support.upkeep import all_receipts, sweep

FIXTURES = Path(__file__).parent / "fixtures"
API = "http://veogen.example/api/v1"
STATES = {
    "stored picture": State.STORED,
    "stored clip": State.STORED,
    "bought picture": State.BOUGHT,
    "failed picture": State.FAILED,
    "refused picture": State.RELEASED,
    "lost and made": State.IN_DOUBT,
    "lost and adopted by hand": State.BOUGHT,
    "lost and not made": State.IN_DOUBT,
    "lost and released by hand": State.RELEASED,
    "killed while sending": State.SENDING,
    "killed while reserved": State.RESERVED,
}
BOUGHT_NOW = {"failed picture", "refused picture", "lost and released by hand", "killed while reserved"}


class Service:
    """The service as it was when the store was written; it sells on, and serves what it has made."""

    def __init__(self) -> None:
        recorded = json.loads((FIXTURES / "service-v1.json").read_text())
        self.generations: list[dict[str, Any]] = recorded["generations"]
        self.media: dict[str, str] = recorded["media"]
        self.sold: list[str] = []

    def respond(self, request: Request) -> Reply:
        url = urlsplit(request.path)
        if url.path in self.media:
            kind = "video/mp4" if url.path.endswith("mp4") else "image/png"
            return Reply(headers={"content-type": kind}, body=base64.b64decode(self.media[url.path]))
        if "/models/" in url.path:
            slug = url.path.rpartition("/")[2]
            kind = "video" if slug.startswith("veo") else "image"
            return self.said({"data": {"slug": slug, "type": kind, "price_usd": 0.02}})
        if request.method == "POST":
            return self.said({"data": self.sell(json.loads(request.body)), "price_usd": 0.02}, 201)
        if url.path.endswith("/generations"):
            wanted = dict(part.split("=") for part in url.query.split("&")).get("type")
            shown = [item for item in self.generations if wanted in (None, item["type"])]
            return self.said({"data": shown, **({"meta": {"current_page": 1, "last_page": 1}} if wanted else {})})
        found = [item for item in self.generations if url.path.endswith(item["id"])]
        return self.said({"data": found[0]}) if found else self.said({"error": "Not found."}, 404)

    def sell(self, body: dict[str, Any]) -> dict[str, Any]:
        self.sold.append(body["prompt"])
        like = next(item for item in self.generations if item["type"] == "image" and item["output"])
        made = {**like, "id": f"sold-{len(self.sold)}", "prompt": body["prompt"], "parameters": {}}
        self.generations.insert(0, made)
        return made

    @staticmethod
    def said(body: Any, status: int = 200) -> Reply:
        date = format_datetime(datetime.now(UTC), usegmt=True)
        return Reply(status, {"content-type": "application/json", "date": date}, json.dumps(body).encode())


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    service = Service()
    store = shutil.copytree(FIXTURES / "store-v1", tmp_path / "store")
    with serving(service.respond) as proxy:
        for item in service.generations:  # a media host that can be looked up
            if item["output"]:
                item["output"]["url"] = item["output"]["url"].replace("http://veogen.example", proxy)
        for name, value in {
            "HTTP_PROXY": proxy,
            "NO_PROXY": "127.0.0.1",
            "VEOGEN_BASE_URL": API,
            "VEOGEN_API_TOKEN": f"token-{uuid.uuid4().hex}",  # a client keeps the proxy that it was made with
            "VEOGEN_STORE": str(store),
            "VEOGEN_ALLOW_PRIVATE_MEDIA": "true",
            "VEOGEN_REQUESTS_PER_MINUTE": "12000",
        }.items():
            monkeypatch.setenv(name, value)
        yield service


def picture(prompt: str, **fields: Any) -> GenerationRequest:
    return GenerationRequest(model="gpt-4o-image", prompt=prompt, **fields)


REQUESTS = {
    **{prompt: picture(prompt) for prompt in STATES if prompt != "stored clip"},
    "stored picture": picture("stored picture", aspect_ratio="16:9"),
    "bought picture": picture("bought picture", image_urls=["https://example.com/in.png?id=7"]),
}


async def test_every_receipt_is_read_in_its_state(service: Service) -> None:
    found = await all_receipts(open_session())
    assert found.damaged == []
    assert {item.request.prompt: item.state for item in found.readable} == STATES
    assert set(STATES.values()) == set(State)


@pytest.mark.parametrize("prompt", REQUESTS)
async def test_the_same_request_made_again_goes_on_where_it_was(prompt: str, service: Service) -> None:
    if prompt == "lost and not made":  # the first version noted no clock, without which time proves nothing
        with pytest.raises(UnknownSubmission, match="clock was not known"):
            await on_io(bought_and_stored(REQUESTS[prompt]))
        assert service.sold == []
        return
    asset = await on_io(bought_and_stored(REQUESTS[prompt]))
    assert isinstance(asset, Asset)
    assert service.sold == ([prompt] if prompt in BOUGHT_NOW else [])
    assert (await on_io(bought_and_stored(REQUESTS[prompt]))).generation_id == asset.generation_id


async def test_a_receipt_without_labels_is_stored_as_before_there_were_any(service: Service, tmp_path: Path) -> None:
    request = REQUESTS["failed picture"]
    await on_io(bought_and_stored(request))
    stored = json.loads((tmp_path / "store" / "receipts" / f"{request.receipt_key(API)}.json").read_text())
    assert stored["state"] == "stored"
    assert not {"labels", "campaign"} & stored.keys()


async def test_a_clip_made_from_a_stored_picture_is_the_clip_it_was(service: Service) -> None:
    image = await on_io(bought_and_stored(REQUESTS["stored picture"]))
    clip = GenerationRequest(model="veo-3.1-fast", prompt="stored clip", image_urls=[image], take="2026-11-27")
    asset = await on_io(bought_and_stored(clip))
    assert (asset.content_type, service.sold) == ("video/mp4", [])


async def test_a_sweep_finishes_what_was_left_and_buys_nothing(service: Service) -> None:
    await sweep(open_session())
    after = {item.request.prompt: item.state for item in (await all_receipts(open_session())).readable}
    finished = {"bought picture", "lost and made", "lost and adopted by hand", "killed while sending"}
    assert {prompt for prompt, state in after.items() if state is not STATES[prompt]} == finished | {
        "killed while reserved"
    }
    assert {after[prompt] for prompt in finished} == {State.STORED}
    assert (after["killed while reserved"], service.sold) == (State.RELEASED, [])
