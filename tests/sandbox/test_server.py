"""The sandbox as a server, a command, a pytest fixture and a set of control routes."""

from __future__ import annotations

import ast
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from prefect_veogen.sandbox import FAULTS, Sandbox
from prefect_veogen.sandbox.__main__ import main
from prefect_veogen.sandbox.pytest_plugin import veogen_sandbox

__all__ = ["veogen_sandbox"]  # the fixture, also for projects in which the plugin is not installed

IMAGE = {"model": "gpt-4o-image", "prompt": "a lighthouse"}
LONG_ENOUGH = 200.0
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "prefect_veogen" / "sandbox"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(speed=0, tiny_media=True, requests_per_minute=None) as running:
        yield running


@pytest.fixture
def api(sandbox: Sandbox) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sandbox.base_url, headers={"Authorization": f"Bearer {sandbox.token}"}) as client:
        yield client


@pytest.fixture
def control(sandbox: Sandbox) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sandbox.control_url) as client:
        yield client


def is_listening(url: str) -> bool:
    address = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((str(address.hostname), int(address.port or 0))) == 0


def test_the_fixture_is_fast_and_sets_the_environment(veogen_sandbox: Sandbox) -> None:
    assert os.environ["VEOGEN_BASE_URL"] == veogen_sandbox.base_url
    assert os.environ["VEOGEN_API_TOKEN"] == veogen_sandbox.token
    headers = {"Authorization": f"Bearer {os.environ['VEOGEN_API_TOKEN']}"}
    with httpx.Client(base_url=os.environ["VEOGEN_BASE_URL"], headers=headers) as api:
        path = f"/generations/{api.post('/generations', json=IMAGE).json()['data']['id']}"
        while api.get(path).json()["data"]["status"] != "completed":
            time.sleep(0.05)  # the sandbox keeps the limit, too
    assert len(veogen_sandbox.bill) == 1
    assert veogen_sandbox.speed == 100


def test_every_test_gets_a_sandbox_of_its_own(veogen_sandbox: Sandbox) -> None:
    assert len(veogen_sandbox.bill) == 0
    assert veogen_sandbox.requests == ()


def test_stopping_frees_the_ports_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with Sandbox() as sandbox:
        assert is_listening(sandbox.base_url)
        assert is_listening(sandbox.media_url)
        assert any(thread.name == "veogen-sandbox" for thread in threading.enumerate())
    assert not is_listening(sandbox.base_url)
    assert not is_listening(sandbox.media_url)
    assert set(threading.enumerate()) <= before


def test_stopping_does_not_wait_for_answers_that_never_come(sandbox: Sandbox, api: httpx.Client) -> None:
    sandbox.fault("slow-answer", seconds=3600)
    outcome: queue.Queue[Exception] = queue.Queue()

    def ask() -> None:
        try:
            api.post("/generations", json=IMAGE, timeout=60)
        except httpx.HTTPError as error:
            outcome.put(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while not len(sandbox.bill):
        pass
    sandbox.stop()
    asking.join(5)
    assert isinstance(outcome.get_nowait(), httpx.TransportError)


def test_a_sandbox_can_be_stopped_twice_and_started_again() -> None:
    sandbox = Sandbox().start()
    with pytest.raises(RuntimeError, match="running already"):
        sandbox.start()
    sandbox.stop()
    sandbox.stop()
    with sandbox:
        assert httpx.get(f"{sandbox.base_url}/balance").status_code == 401


def test_a_chosen_port_is_used_and_a_taken_one_is_an_error() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Sandbox(port) as sandbox:
        assert sandbox.base_url == f"http://127.0.0.1:{port}/api/v1"
        with pytest.raises(OSError, match="in use"):
            Sandbox(port).start()


def test_media_come_from_another_origin_than_the_api(sandbox: Sandbox) -> None:
    assert urlsplit(sandbox.media_url).port != urlsplit(sandbox.base_url).port
    assert {urlsplit(url).hostname for url in (sandbox.media_url, sandbox.base_url)} == {"127.0.0.1"}


@pytest.mark.parametrize(
    "options",
    [
        {"port": 65536},
        {"media_port": -1},
        {"speed": -1},
        {"speed": float("nan")},
        {"balance_usd": -5},
        {"balance_usd": "nan"},
        {"balance_usd": "inf"},
        {"requests_per_minute": 0},
        {"create_shape": "newest"},
        {"parameters_echo": "all"},
    ],
)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Sandbox(**options)  # type: ignore[arg-type]


def test_every_request_is_in_the_log(sandbox: Sandbox, api: httpx.Client) -> None:
    api.post("/generations", json=IMAGE)
    api.get("/generations", params={"type": "image"})
    httpx.get(f"{sandbox.base_url}/balance")
    assert [(one.method, one.path, one.query, one.status, one.had_authorization) for one in sandbox.requests] == [
        ("POST", "/api/v1/generations", "", 201, True),
        ("GET", "/api/v1/generations", "type=image", 200, True),
        ("GET", "/api/v1/balance", "", 401, False),
    ]
    assert {one.origin for one in sandbox.requests} == {"api"}


BUYER = """
import json, sys, urllib.request
for _ in range(25):
    request = urllib.request.Request(
        sys.argv[1] + "/generations",
        data=json.dumps({"model": "gpt-4o-image", "prompt": "from a process"}).encode(),
        headers={"Authorization": "Bearer " + sys.argv[2]},
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 201
"""


def test_many_threads_and_processes_buy_side_by_side(sandbox: Sandbox, api: httpx.Client) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", BUYER, sandbox.base_url, sandbox.token]) for _ in range(2)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: api.post("/generations", json=IMAGE), range(100)))
    assert [process.wait(30) for process in processes] == [0, 0]
    assert {answer.status_code for answer in answers} == {201}
    assert len({purchase.id for purchase in sandbox.bill}) == len(sandbox.bill) == 150
    assert sandbox.bill.total_usd == Decimal("3.00")
    assert sandbox.balance_usd == Decimal("97.00")


def test_5000_generations_do_not_slow_the_answers_down(sandbox: Sandbox, api: httpx.Client) -> None:
    engine = sandbox._engine  # 5,000 purchases over HTTP would take 5 s
    engine.buy(IMAGE)

    def seconds_for_looks() -> float:
        import time

        began = time.perf_counter()
        for _ in range(50):
            api.get("/generations", params={"type": "image", "per_page": 1})
            api.get("/account")
        return time.perf_counter() - began

    few = seconds_for_looks()
    for _ in range(4999):
        engine.buy({**IMAGE, "model": "gpt-image-2"})
    assert seconds_for_looks() < 3 * few + 0.1


# --- control routes


def test_faults_can_be_armed_over_http(sandbox: Sandbox, api: httpx.Client, control: httpx.Client) -> None:
    armed = control.post("/faults", json={"name": "500-before-charge", "times": 2, "kind": "image"})
    assert (armed.status_code, armed.json()["times_left"]) == (201, 2)
    assert api.post("/generations", json=IMAGE).status_code == 500
    listed = control.get("/faults").json()
    assert [(one["name"], one["times_left"], one["applied"]) for one in listed["armed"]] == [
        ("500-before-charge", 1, 1)
    ]
    assert set(listed["known"]) == set(FAULTS)
    assert control.delete("/faults").json() == {"armed": []}
    assert api.post("/generations", json=IMAGE).status_code == 201


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ('{"name": "look-50"}', "did you mean 'look-500'"),
        ('{"name": "look-500", "tims": 1}', "did you mean 'times'"),
        ('{"times": 1}', "name"),
        ("[]", "object"),
        ("{", "JSON"),
    ],
)
def test_a_mistake_over_http_is_explained(control: httpx.Client, body: str, hint: str) -> None:
    answer = control.post("/faults", content=body)
    assert answer.status_code == 422
    assert hint in answer.json()["error"]


def test_the_clock_can_be_moved_over_http(sandbox: Sandbox, api: httpx.Client, control: httpx.Client) -> None:
    api.post("/generations", json=IMAGE)
    before = sandbox.now
    assert control.post("/clock", json={"advance_seconds": LONG_ENOUGH}).json()["speed"] == 0
    assert (sandbox.now - before).total_seconds() == LONG_ENOUGH
    assert control.get("/generations").json()["generations"][0]["status"] == "completed"
    control.post("/clock", json={"speed": 2.5})
    assert sandbox.speed == 2.5
    for wrong in ({}, {"speed": "fast"}, {"advance": 1}, {"advance_seconds": -1}, {"advance_seconds": 1e300}):
        assert control.post("/clock", json=wrong).status_code == 422


def test_bill_requests_and_generations_can_be_read_over_http(
    sandbox: Sandbox, api: httpx.Client, control: httpx.Client
) -> None:
    generation_id = api.post("/generations", json=IMAGE).json()["data"]["id"]
    bill = control.get("/bill").json()
    assert (bill["count"], bill["total_usd"], bill["balance_usd"]) == (1, "0.02", "99.98")
    assert bill["purchases"][0]["id"] == generation_id
    assert [one["path"] for one in control.get("/requests").json()["requests"]] == ["/api/v1/generations"]
    assert control.get("/generations").json()["generations"][0]["prompt"] == IMAGE["prompt"]
    assert control.post("/reset").status_code == 200
    assert (control.get("/bill").json()["count"], sandbox.generations) == (0, ())


def test_the_page_for_people_shows_pictures_without_using_up_faults(
    sandbox: Sandbox, api: httpx.Client, control: httpx.Client
) -> None:
    generation_id = api.post("/generations", json={**IMAGE, "prompt": "<b>bold</b>"}).json()["data"]["id"]
    sandbox.advance(LONG_ENOUGH)
    sandbox.fault("media-404")
    page = control.get("").text
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "media-404" in page
    assert f'src="/_sandbox/preview/{generation_id}"' in page
    assert control.get(f"/preview/{generation_id}").content.startswith(b"\x89PNG")
    assert len(sandbox.faults) == 1
    assert [one.path for one in sandbox.requests] == ["/api/v1/generations"]


# --- the command


def started(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "prefect_veogen.sandbox", "--port", "0", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def stopped(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    process.send_signal(number)
    code = process.wait(timeout=20)
    with process.stdout or nullcontext() as output:
        return code, output.read() if output else ""


def test_the_command_prints_its_address_first_and_ends_cleanly() -> None:
    options = ("--balance", "0.5", "--token", "t", "--speed", "0", "--requests-per-minute", "2")
    processes = {number: started(*options) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, process in processes.items():
        base_url = first_line(process)
        with httpx.Client(base_url=base_url, headers={"Authorization": "Bearer t"}) as api:
            assert api.get("/balance").json() == {"remaining_balance": 0.5, "used_balance": 0.0}
            assert [api.get("/balance").status_code for _ in range(2)] == [200, 429]
        code, rest = stopped(process, number)
        assert code == 0
        assert rest.startswith(f"export VEOGEN_BASE_URL={base_url}\nexport VEOGEN_API_TOKEN=t\n")
        assert not is_listening(base_url)


def test_the_command_explains_a_taken_port(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    port = urlsplit(sandbox.base_url).port
    assert main(["--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--port 99999", "--speed inf", "--balance nan", "--requests-per-minute -5"])
def test_the_command_refuses_what_no_sandbox_can_be(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    assert words.split()[1].lstrip("-") in capsys.readouterr().err.lower().replace("infinity", "inf")


def test_the_command_lists_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-faults"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(FAULTS)


# --- architecture


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found.add(str(node.module))
    return found


def test_the_sandbox_needs_one_web_framework_and_nothing_of_the_package() -> None:
    allowed = {"starlette", "uvicorn", "av", "PIL", "pytest"} | set(sys.stdlib_module_names)
    for path in PACKAGE.glob("*.py"):
        for name in imported_modules(path):
            ours = name.startswith("prefect_veogen.sandbox")
            assert ours or name.split(".")[0] in allowed, f"{path.name} imports {name}"


def test_importing_the_sandbox_imports_no_server_and_no_media_library() -> None:
    # An empty parent package, because what the real one imports is not the sandbox's doing.
    program = f"""
import sys, types
parent = types.ModuleType("prefect_veogen")
parent.__path__ = [{str(PACKAGE.parent)!r}]
sys.modules["prefect_veogen"] = parent
import prefect_veogen.sandbox, prefect_veogen.sandbox.__main__
print(sorted({{"starlette", "uvicorn", "av", "PIL"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
