"""Where media may come from: no address that only this machine or its network may reach."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from prefect_veogen.errors import DownloadBroken, MediaRejected
from prefect_veogen.sandbox import Sandbox
from tests.support.deliveries import (
    CLIP_BYTES,
    bought,
    delivered,
    elsewhere,
)
from tests.support.servers import Reply, serving


@pytest.mark.parametrize(
    "location",
    [
        "http://[::1",
        "http://a..b/",
        "http://127.0.0.1:99999/",
        "ftp://127.0.0.1/x",
        "javascript:alert(1)",
        "http://",
        "",
    ],
)
async def test_a_redirect_to_nowhere_is_an_error_of_ours(location: str, sandbox: Sandbox) -> None:
    nowhere = Reply(302, {"location": location})
    with serving(lambda request: nowhere) as host, pytest.raises((MediaRejected, DownloadBroken)):
        await delivered(elsewhere(f"{host}/x.mp4"))


@pytest.mark.parametrize("url", ["not a link", "file:///etc/passwd", "data:video/mp4;base64,AAAA"])
async def test_an_output_that_is_no_link_is_refused(url: str, sandbox: Sandbox) -> None:
    with pytest.raises(MediaRejected, match="not a valid http") as caught:
        await delivered(elsewhere(url))
    assert "kept" not in str(caught.value)


# ---------------------------------------------------------------- addresses


HOSTS_OF_TESTS: list[list[str]] = []


@pytest.fixture(scope="module")
def audited() -> None:
    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            for hosts in HOSTS_OF_TESTS:
                hosts.append(arguments[1][0])

    sys.addaudithook(note)  # it can't be removed, and notes nothing where no test listens


@pytest.fixture
def hosts_connected_to(audited: None) -> Iterator[list[str]]:
    hosts: list[str] = []
    HOSTS_OF_TESTS.append(hosts)
    yield hosts
    HOSTS_OF_TESTS.remove(hosts)


@pytest.mark.parametrize("setting", [None, "false"])
async def test_a_redirect_to_a_link_local_address_is_refused_without_connecting(
    setting: str | None, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, hosts_connected_to: list[str]
) -> None:
    if setting:
        monkeypatch.setenv("VEOGEN_ALLOW_PRIVATE_MEDIA", setting)
        generation = elsewhere("http://169.254.169.254/latest/meta-data/")
    else:
        generation = await bought(sandbox)
        sandbox.fault("media-redirect-private")
    with pytest.raises(MediaRejected, match=r"private address 169\.254\.169\.254") as caught:
        await delivered(generation)
    assert "VEOGEN_ALLOW_PRIVATE_MEDIA=true" in str(caught.value)
    assert setting or "127.0.0.1" in hosts_connected_to
    assert "169.254.169.254" not in hosts_connected_to


TUNNELS_TO_LINK_LOCAL = ["[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]", "[2001:0:4136:e378:8000:63bf:5601:5601]"]
TUNNELS_TO_PRIVATE = ["[64:ff9b::7f00:1]", "[2002:a00:1::1]"]
NO_HOSTS = ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "0.0.0.0", "[::]", "224.0.0.1", "[ff02::1]"]


@pytest.mark.parametrize("host", [*NO_HOSTS, *TUNNELS_TO_LINK_LOCAL])
async def test_addresses_that_no_service_has_are_refused_even_beside_a_private_api(host: str, sandbox: Sandbox) -> None:
    with pytest.raises(MediaRejected, match="private address"):
        await delivered(elsewhere(f"http://{host}:9/x.mp4"))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.1", "[::1]", "192.168.1.1", "[fd00:ec2::254]", "localhost", *TUNNELS_TO_PRIVATE]
)
async def test_a_public_api_gets_no_media_from_private_addresses(
    host: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BASE_URL", "http://192.0.2.1.invalid/api/v1")
    with pytest.raises(MediaRejected, match="private address"):
        await delivered(elsewhere(f"http://{host}:9/x.mp4"))


async def test_a_name_that_changes_its_address_after_the_check_gets_nothing_in(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_ALLOW_PRIVATE_MEDIA", "false")
    resolve, addresses = socket.getaddrinfo, ["93.184.215.14", "127.0.0.1"]

    def rebinding(host: Any, *arguments: Any, **keywords: Any) -> Any:
        named = str(host).startswith(("rebinding", "b'rebinding"))
        return resolve(addresses.pop(0) if named else host, *arguments, **keywords)

    with serving(lambda request: Reply(200, {}, CLIP_BYTES)) as host:
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        with pytest.raises(MediaRejected, match="private address rebinding"):
            await delivered(elsewhere(host.replace("127.0.0.1", "rebinding.example") + "/x.mp4"))
    assert addresses == []


async def test_the_setting_opens_every_address(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_ALLOW_PRIVATE_MEDIA", "true")
    with serving(lambda request: Reply(200, {}, CLIP_BYTES)) as host:
        delivery = await delivered(elsewhere(host.replace("127.0.0.1", "0.0.0.0") + "/x.mp4"))
    assert delivery.asset.size == len(CLIP_BYTES)
