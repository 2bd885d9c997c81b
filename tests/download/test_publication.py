"""Published copies: whole or not at all, in little memory, under names that leave the store's own alone."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import tracemalloc
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest

from prefect_veogen.download.publication import check_publication_key, publish
from prefect_veogen.errors import ConfigurationError, PersonNeeded
from prefect_veogen.models import Asset
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.store import FOLDERS, Store, Writer, open_store

MIB = 1024 * 1024
KEY = "daily/latest.mp4"
FIRST, SECOND = datetime(2026, 11, 1, 6, tzinfo=UTC), datetime(2026, 11, 2, 6, tzinfo=UTC)


async def stored(store: Store, body: bytes, name: str = "clip") -> Asset:
    key = f"assets/{name}.mp4"
    await store.put(key, body, "video/mp4")
    digest = hashlib.sha256(body).hexdigest()
    return Asset(uri=store.uri(key), sha256=digest, size=len(body), content_type="video/mp4", generation_id="g")


async def there(store: Store) -> bytes:
    document = await store.read(KEY)
    assert document is not None
    return document.body


async def publish_all(store: Store, asset: Asset, keys: list[str]) -> None:
    await asyncio.gather(*(publish(store, asset, key) for key in keys))


async def announced(store: Store) -> dict[str, Any]:
    note = await store.read(f"{KEY}.json")
    assert note is not None
    found: dict[str, Any] = json.loads(note.body)
    return found


class Slow:
    """A view of a store, as another process has it, that stops once: at what it reads, or at (or after) a commit."""

    is_killed = False

    def __init__(self, store: Store, at: Literal["read_through", "commit"], *, after: bool = False) -> None:
        self.reached, self.go_on, self.after = asyncio.Event(), asyncio.Event(), after
        view: Any = copy.copy(store)
        if at == "read_through":
            view.read_through = self.wait_before(store.read_through)
        else:
            view.writer = self.writer_of(store)
        self.store: Store = view

    def writer_of(self, store: Store) -> Callable[[str, str], Writer]:
        def writer(key: str, content_type: str) -> Writer:
            found: Any = store.writer(key, content_type)
            found.commit = self.wait_before(found.commit)
            view: Writer = found
            return view

        return writer

    def wait_before(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def wait(*arguments: Any) -> Any:
            result = await call(*arguments) if self.after else None
            self.reached.set()
            await self.go_on.wait()
            if self.is_killed:
                raise RuntimeError("killed")
            return result if self.after else await call(*arguments)

        return wait


async def test_a_copy_replaces_what_was_there_and_says_where_it_comes_from(store_url: str) -> None:
    store = open_store(store_url)
    for body in (b"first", b"second"):
        asset = await stored(store, body)
        assert await publish(store, asset, KEY)
        assert await there(store) == body
    note = await store.read(f"{KEY}.json")
    assert note is not None
    assert json.loads(note.body) == {
        "asset": asset.model_dump(mode="json", exclude_none=True),
        "scheduled": None,
    }


async def test_a_large_asset_is_copied_in_little_memory(store_url: str) -> None:
    store = open_store(store_url)
    asset = await stored(store, bytes(range(256)) * (MIB // 256) * 40)
    await publish(store, await stored(store, b"small", "small"), KEY)  # what is loaded at the first use
    directory = not store_url.startswith("s3:")
    tracemalloc.start()
    await publish(store, asset, KEY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert await store.sha256(KEY) == asset.sha256
    if directory:  # the bucket's server is in this process, too
        assert peak < 8 * MIB


async def test_many_copies_at_once_leave_threads_for_what_they_wait_for(store_url: str) -> None:
    store = open_store(store_url)
    asset = await stored(store, b"x" * 3000)
    keys = [f"daily/{number}.mp4" for number in range(70)]
    async with asyncio.timeout(60):
        await on_io(publish_all(store, asset, keys))
        assert await asyncio.gather(*(store.sha256(key) for key in keys)) == [asset.sha256] * len(keys)


@pytest.mark.parametrize("body", [b"other", None])
async def test_other_bytes_than_those_that_were_bought_are_not_published(body: bytes | None, store_url: str) -> None:
    store = open_store(store_url)
    await publish(store, await stored(store, b"first"), KEY)
    asset = await stored(store, b"second")
    if body is None:
        asset = asset.model_copy(update={"uri": store.uri("assets/nowhere.mp4")})
    else:
        await store.put("assets/clip.mp4", body, "video/mp4")
    with pytest.raises(PersonNeeded, match="gone" if body is None else "not what was stored there"):
        await publish(store, asset, KEY)
    assert await there(store) == b"first"


async def test_an_earlier_slot_leaves_what_is_there_and_the_same_slot_replaces_it(store_url: str) -> None:
    store = open_store(store_url)
    for day, body, is_there in ((2, b"second", True), (1, b"first", False), (2, b"again", True), (3, b"third", True)):
        asset = await stored(store, body)
        assert await publish(store, asset, KEY, datetime(2026, 11, day, tzinfo=UTC)) is is_there
        assert await there(store) == (body if is_there else b"second")


async def test_the_take_that_is_there_replaces_itself_at_any_hour_and_no_other_one(store_url: str) -> None:
    """A day that is made again has midnight for its slot, and its run of the schedule had another hour."""
    store = open_store(store_url)
    for hour, take, body, is_there in (
        (10, "2026-11-02", b"wrong", True),
        (0, "2026-11-02", b"right", True),
        (-1, "2026-11-01", b"yesterday", False),
        (24, "2026-11-03", b"tomorrow", True),
        (23, "2026-11-02", b"late", False),
    ):
        slot = datetime(2026, 11, 2, tzinfo=UTC) + timedelta(hours=hour)
        assert await publish(store, await stored(store, body), KEY, slot, take) is is_there
        assert (await there(store) == body) is is_there
    assert (await announced(store))["take"] == "2026-11-03"


async def test_what_an_older_version_published_without_its_take_is_compared_by_its_time(store_url: str) -> None:
    store = open_store(store_url)
    await publish(store, await stored(store, b"first"), KEY, SECOND)
    assert "take" not in await announced(store)
    assert not await publish(store, await stored(store, b"earlier"), KEY, FIRST, "2026-11-01")
    assert await publish(store, await stored(store, b"same"), KEY, SECOND, "2026-11-02")


@pytest.mark.parametrize(
    ("at", "first", "second"), [("read_through", FIRST, SECOND), ("commit", FIRST, SECOND), ("commit", None, None)]
)
async def test_a_copy_that_is_overtaken_gives_way_to_what_was_announced_last(
    at: Literal["read_through", "commit"], first: datetime | None, second: datetime | None, store_url: str
) -> None:
    store = open_store(store_url)
    old, new = await stored(store, b"old", "old"), await stored(store, b"new", "new")
    slow = Slow(store, at=at)
    late = asyncio.create_task(publish(slow.store, old, KEY, first))
    await slow.reached.wait()
    assert await publish(store, new, KEY, second)
    slow.go_on.set()
    assert not await late
    assert (await there(store), (await announced(store))["asset"]["sha256"]) == (b"new", new.sha256)


@pytest.mark.parametrize("after", [True, False])
async def test_a_slot_between_leaves_the_one_whose_process_was_killed_as_its_copy_came_in(
    after: bool, store_url: str
) -> None:
    store = open_store(store_url)
    await publish(store, await stored(store, b"first", "first"), KEY, FIRST - timedelta(days=1))
    new = await stored(store, b"new", "new")
    slow = Slow(store, at="commit", after=after)
    killed = asyncio.create_task(publish(slow.store, new, KEY, SECOND))
    await slow.reached.wait()
    slow.is_killed = True
    slow.go_on.set()
    with pytest.raises(RuntimeError, match="killed"):
        await killed
    assert not await publish(store, await stored(store, b"between", "between"), KEY, FIRST)
    assert await there(store) == (b"new" if after else b"first")
    assert (await announced(store))["asset"]["sha256"] == new.sha256
    assert await publish(store, new, KEY, SECOND), "its retry"
    assert await there(store) == b"new"


async def test_somebody_elses_file_is_replaced(store_url: str) -> None:
    store = open_store(store_url)
    await store.put(KEY, b"by hand", "video/mp4")
    await store.put(f"{KEY}.json", b"[1]", "application/json")
    assert await publish(store, await stored(store, b"first"), KEY, datetime(2026, 11, 1, tzinfo=UTC))


async def test_an_asset_of_another_store_is_refused(store_url: str) -> None:
    asset = await stored(open_store(f"{store_url}-other"), b"x")
    with pytest.raises(ConfigurationError, match="is not in the store"):
        await publish(open_store(store_url), asset, KEY)


@pytest.mark.parametrize(
    "key",
    [
        *(f"{folder}x" for folder in FOLDERS),
        *(
            "",
            "/x",
            "x/",
            "x//y",
            "../x",
            "x/../y",
            ".locks/x",
            ".unfinished/x",
            "x/.y",
            "x\ny",
            "x\\y",
            " /x",
            "x" * 251,
            "x/" + "ä" * 126 + "/x",
            "/".join(["x" * 200] * 5),
            "{scheduled:%F}.mp4",
            "x.{ext}",
        ),
    ],
)
def test_names_that_are_the_stores_own_or_no_names_are_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match="Nothing can be published as") as caught:
        check_publication_key(key, "site/x.mp4")
    step = "Nothing was bought. Give a path such as site/x.mp4, in none of assets/, "
    assert caught.value.next_step.startswith(step)


@pytest.mark.parametrize(
    "key", ["x.mp4", "daily/2026-11-24.mp4", "site/häuser/a b.png", "assets-of-mine/x.png", "x" * 250, "ä" * 125]
)
def test_other_names_are_taken(key: str) -> None:
    check_publication_key(key, "site/x.mp4")


@pytest.mark.parametrize("key", ["assets/x.mp4", "x{ext}", "{scheduled:%F}.png"])
async def test_the_name_that_a_refusal_shows_is_taken(key: str, store_url: str) -> None:
    store = open_store(store_url)
    asset = await stored(store, b"x")
    with pytest.raises(ConfigurationError) as caught:
        await publish(store, asset, key)
    shown = caught.value.next_step.split("such as ")[1].split(", in none of")[0]
    assert await publish(store, asset, shown)


@pytest.mark.parametrize("key", ["ä" * 123 + ".mp4", "/".join(["x" * 249] * 4)])
async def test_the_longest_name_that_is_taken_can_be_published_with_its_sidecar(key: str, store_url: str) -> None:
    store = open_store(store_url)
    assert await publish(store, await stored(store, b"x"), key)
    assert await store.read(f"{key}.json") is not None


async def test_the_ending_that_a_refusal_shows_is_the_assets_own(store_url: str) -> None:
    store = open_store(store_url)
    asset = await stored(store, b"x")
    with pytest.raises(ConfigurationError, match=r"Let the name end in \.mp4; .* with its dot"):
        await publish(store, asset, "x.png")
