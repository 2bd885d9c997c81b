"""Proxies and certificates that the environment names: used as they are meant, or refused by their name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import SecretStr

from prefect_veogen.api.client import VeogenClient
from prefect_veogen.api.http import ResponseLost, fetch_file, url_parts
from prefect_veogen.api.proxies import Proxies
from prefect_veogen.errors import ConfigurationError, NotSent
from prefect_veogen.process.io_loop import on_io
from tests.support.servers import Reply, Request, serving

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
PROXY = "http://proxy:3128"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def client_at(base_url: str) -> VeogenClient:
    return VeogenClient(SecretStr("t"), base_url, requests_per_minute=12_000)


# ---------------------------------------------------------------- what is reached how


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("fd00::/8", "https://[fd12::5]/x", True),
        ("fd00::/8", "https://[fe80::5]/x", False),
        ("localhost, fd00::/8,10.0.0.0/8", "https://10.1.2.3/x", True),
        ("localhost fd00::/8 10.0.0.0/8", "https://11.1.2.3/x", False),
        ("[fd00::]/8", "https://[fd12::5]/x", True),
        ("10.1.2.3/8", "https://10.9.9.9/x", True),
        ("::1", "http://[::1]:8080/x", True),
        ("[::1]", "http://[::1]:8080/x", True),
        ("[::1]:8080", "http://[::1]:8080/x", True),
        ("[::1]:8081", "http://[::1]:8080/x", False),
        ("corp.example", "https://corp.example/x", True),
        ("corp.example", "https://api.corp.example/x", True),
        ("corp.example", "https://notcorp.example/x", False),
        (".corp.example", "https://api.corp.example/x", True),
        ("*.CORP.example", "https://API.corp.example/x", True),
        ("corp.example:8443", "https://corp.example/x", False),
        ("https://corp.example", "https://corp.example/x", True),
        ("http://corp.example", "https://corp.example/x", False),
        ("*", "https://veogen.studio/x", True),
        ("", "https://veogen.studio/x", False),
        (" ,,", "https://veogen.studio/x", False),
        ("fd00::/999,1.2.3.4/99,http://fd00::/8,://", "https://veogen.studio/x", False),
    ],
)
def test_no_proxy_takes_names_addresses_and_networks(
    no_proxy: str, url: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert Proxies.from_environment().proxy_for(*url_parts(url)) == (None if direct else PROXY)


def test_a_scheme_s_own_proxy_comes_before_the_one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "everything:1")
    monkeypatch.setenv("HTTPS_PROXY", "https://secure:2")
    proxies = Proxies.from_environment()
    assert proxies.proxy_for("http", "a", 80) == "http://everything:1"
    assert proxies.proxy_for("https", "a", 443) == "https://secure:2"


@pytest.mark.parametrize("network", ["", "fd00::/8", "127.0.0.0/8,fd00::/8"])
async def test_requests_go_through_the_proxy_or_past_it(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    through: list[str] = []

    def proxy(request: Request) -> Reply:
        through.append(request.path)
        return Reply(200, {}, b'{"data": {"balance_usd": "1"}}')

    def service(request: Request) -> Reply:
        return Reply(200, {}, b'{"data": {"balance_usd": "2"}}')

    with serving(proxy) as proxy_url, serving(service) as service_url:
        monkeypatch.setenv("HTTP_PROXY", proxy_url)
        monkeypatch.setenv("NO_PROXY", network)
        client = client_at(f"{service_url}/api/v1")
        await client.get_account()

        async def peer() -> str | None:
            async with client.transport.open_media(f"{service_url}/a.png", {}) as response:
                return response.peer

        # The peer's address is the media host's own only without a proxy.
        is_direct = "127" in network
        assert (await on_io(peer()) == "127.0.0.1") is is_direct
    assert through == ([] if is_direct else [f"{service_url}/api/v1/account", f"{service_url}/a.png"])


# ---------------------------------------------------------------- what can't be used


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ALL_PROXY", "socks5://user:hunter2@127.0.0.1:1", r"httpx\[socks\]"),
        ("HTTP_PROXY", "socks5h://127.0.0.1:1", r"httpx\[socks\]"),
        ("HTTPS_PROXY", "ftp://user:hunter2@proxy:1", "http://proxy:8080"),
        ("HTTPS_PROXY", "socks4://proxy:1", "http://proxy:8080"),
        ("HTTPS_PROXY", "http://user:hunter2@proxy:99999", "http://proxy:8080"),
        ("HTTP_PROXY", "user:hunter2@proxy:port", "http://proxy:8080"),
        ("HTTP_PROXY", "http://", "http://proxy:8080"),
        ("https_proxy", "http://", "http://proxy:8080"),
        ("SSL_CERT_FILE", "/nowhere.pem", "No such file"),
        ("SSL_CERT_FILE", "/etc/hostname", "no certificate"),
        ("SSL_CERT_FILE", "/etc", "directory"),
        ("SSL_CERT_DIR", "/nowhere", "no such directory"),
        ("SSLKEYLOGFILE", "/nowhere/keys", "No such file"),
    ],
)
async def test_an_unusable_network_setting_is_reported_by_its_name(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"^{variable.upper()}=") as at_the_client:
        client_at("https://veogen.studio/api/v1")
    with pytest.raises(ConfigurationError, match=f"^{variable.upper()}=") as at_a_link:
        await fetch_file("https://veogen.studio/rows.csv")
    for caught in (at_the_client, at_a_link):
        caught.match(says)
        assert caught.value.next_step
        assert "hunter2" not in f"{caught.value} {caught.value.__dict__}"


# ---------------------------------------------------------------- what fails

DEAD = "http://user:hunter2@127.0.0.1:9"


def refused_by_proxy(_: Request) -> Reply:
    return Reply(407, {}, b"")


@pytest.mark.parametrize(
    ("variable", "value", "url"),
    [
        ("HTTP_PROXY", "foo.invalid", "http://127.0.0.1:1/api/v1"),
        ("HTTP_PROXY", DEAD, "http://127.0.0.1:1/api/v1"),
        ("HTTPS_PROXY", DEAD, "https://127.0.0.1:1/api/v1"),
        ("ALL_PROXY", DEAD, "https://127.0.0.1:1/api/v1"),
        ("https_proxy", DEAD, "https://127.0.0.1:1/api/v1"),
    ],
)
async def test_a_proxy_that_is_not_reached_is_what_the_error_names(
    variable: str, value: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    client = client_at(url)
    way = rf"through the proxy {variable.upper()}=http://"
    with pytest.raises(NotSent, match=rf"^Could not connect to \S+ {way}") as at_the_api:
        await client.create_generation({"model": "a", "prompt": "b"})
    assert f"Check {variable.upper()} (" in at_the_api.value.next_step
    assert "VEOGEN_BASE_URL" not in str(at_the_api.value)

    async def media() -> None:
        async with client.transport.open_media(f"{url}/a.png", {}):
            pass

    with pytest.raises(ResponseLost, match=way) as at_the_media:
        await on_io(media())
    with pytest.raises(ConfigurationError, match=way) as at_a_link:
        await fetch_file(f"{url}/rows.csv")
    for caught in (at_the_api, at_the_media, at_a_link):
        assert "hunter2" not in f"{caught.value} {caught.value.__dict__}"
    # As advised: the host is reached without it, and what fails is the host itself.
    assert "or add 127.0.0.1 to NO_PROXY" in at_the_api.value.next_step
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(NotSent) as without:
        await client_at(url).create_generation({"model": "a", "prompt": "b"})
    assert "proxy" not in str(without.value)


async def test_a_proxy_that_refuses_is_what_the_error_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(refused_by_proxy) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.replace("//", "//user:hunter2@"))
        client = client_at("https://veogen.studio/api/v1")
        with pytest.raises(
            ConfigurationError, match=r"through the proxy HTTPS_PROXY=(?s:.*)user and password"
        ) as caught:
            await client.get_account()
    assert "407" in caught.value.message
    assert "hunter2" not in f"{caught.value} {caught.value.__dict__}"


# ---------------------------------------------------------------- by what name


@pytest.mark.parametrize("ask", ["api", "media", "manifest"])
async def test_requests_carry_the_name_of_the_product(ask: str) -> None:
    names: list[str] = []

    def response(request: Request) -> Reply:
        names.append(request.headers["user-agent"])
        return Reply(200, {}, b'{"data": {}}')

    with serving(response) as url:
        client = client_at(f"{url}/api/v1")

        async def media() -> None:
            async with client.transport.open_media(f"{url}/a.png", {}):
                pass

        asks: dict[str, Callable[[], object]] = {
            "api": client.get_account,
            "media": lambda: on_io(media()),
            "manifest": lambda: fetch_file(f"{url}/rows.csv"),
        }
        await asks[ask]()  # type: ignore[misc]
    [name] = names
    assert name.startswith("prefect-veogen/")
    assert name.removeprefix("prefect-veogen/")[0].isdigit()
