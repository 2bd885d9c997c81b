"""``python -m prefect_veogen.sandbox``: serve until interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from prefect_veogen.sandbox.faults import FAULTS, FaultKind
from prefect_veogen.sandbox.server import Sandbox
from prefect_veogen.sandbox.settings import DEFAULT_TOKEN


def main(argv: Sequence[str] | None = None) -> int:
    """Serve a sandbox until SIGINT or SIGTERM; the first line printed is its base URL."""
    parser = _make_parser()
    options = parser.parse_args(argv)
    if options.list_faults:
        _print(*(f"{kind.name:28} {kind.place:8} {kind.summary}{_show_parameters(kind)}" for kind in FAULTS.values()))
        return 0
    try:
        sandbox = _make_sandbox(options)
    except ValueError as error:
        parser.error(str(error))
    stopping = threading.Event()
    _stop_on_signals(stopping)
    try:
        sandbox.start()
    except OSError as error:
        reason = f"cannot listen on 127.0.0.1:{options.port}: {error.strerror or error}"
        sys.stderr.write(f"{reason}; give another --port, or 0 for any free one\n")
        return 1
    with_variables = (f"export {name}={value}" for name, value in sandbox.environment.items())
    _print(sandbox.base_url, *with_variables, f"# control page: {sandbox.control_url}, stop with Ctrl-C")
    # Short waits: on Windows, Ctrl-C does not interrupt an endless one.
    while not stopping.wait(0.5):
        pass
    sandbox.stop()
    return 0


def _make_sandbox(options: argparse.Namespace) -> Sandbox:
    return Sandbox(
        options.port,
        media_port=options.media_port,
        speed=options.speed,
        balance_usd=options.balance,
        requests_per_minute=options.requests_per_minute or None,
        token=options.token,
        tiny_media=options.tiny_media,
        seed=options.seed,
        create_shape=options.create_shape,
    )


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prefect-veogen sandbox", description="A local Veogen Studio: nothing costs money, everything can fail."
    )
    parser.add_argument("--port", type=int, default=8765, help="port of the API; 0 takes any free one (default: 8765)")
    parser.add_argument("--media-port", type=int, default=0, help="port of the media host (default: any free one)")
    parser.add_argument("--speed", type=float, default=1.0, help="sandbox seconds per real second (default: 1)")
    parser.add_argument(
        "--balance", type=_parse_money, default=Decimal(100), help="starting balance in USD (default: 100)"
    )
    parser.add_argument(
        "--requests-per-minute", type=int, default=120, help="rate limit in sandbox time; 0: none (default: 120)"
    )
    parser.add_argument("--token", default=DEFAULT_TOKEN, help="the only valid token (default: %(default)s)")
    parser.add_argument("--tiny-media", action="store_true", help="pictures of 160 pixels, clips of one second")
    parser.add_argument("--seed", type=int, default=0, help="decides how long each generation takes (default: 0)")
    parser.add_argument("--create-shape", choices=("older", "newer"), default="older", help="response to a purchase")
    parser.add_argument("--list-faults", action="store_true", help="list the faults that can be armed, and exit")
    return parser


def _show_parameters(kind: FaultKind) -> str:
    return f" [{', '.join(f'{name}={value!r}' for name, value in kind.parameters.items())}]" if kind.parameters else ""


def _parse_money(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of money") from None


def _stop_on_signals(stopping: threading.Event) -> None:
    # Only the main thread can handle signals; in any other, the caller stops the sandbox.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopping.set())


def _print(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
