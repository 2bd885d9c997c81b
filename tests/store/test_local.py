"""A directory as a store: one creator wins, and a file system that can't guarantee it is refused."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from prefect_veogen.errors import (
    StoreRefused,
    StoreUnavailable,
    UnsafeStore,
)
from prefect_veogen.store import VersionConflict, open_store
from tests.support.stores import assert_one_creator_wins, failures, unfinished


def without_links(error: int) -> Callable[..., None]:
    """Return an `os.link` as on a file system without hard links."""

    def link(*arguments: Any, **keywords: Any) -> None:
        raise OSError(error, os.strerror(error))

    return link


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
async def test_without_hard_links_one_of_many_creators_still_wins(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", without_links(error))
    store = open_store(tmp_path)
    await store.check()
    await assert_one_creator_wins(store)
    assert unfinished(store) == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, None], ids=["ENOLCK", "ENOTSUP", "no effect"])
async def test_a_directory_without_locks_is_refused(
    number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        if number is not None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UnsafeStore, match="s3://bucket/prefix"):
        await open_store(tmp_path).check()


WITHOUT_FCNTL = """
import asyncio, sys
sys.modules["fcntl"] = None  # as on Windows
import prefect_veogen
from prefect_veogen.errors import UnsafeStore
from prefect_veogen.store import open_store
try:
    asyncio.run(open_store(sys.argv[1]).check())
except UnsafeStore as error:
    print(error)
"""


def test_a_system_without_file_locks_imports_the_package_and_is_referred_to_a_bucket(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_FCNTL, str(tmp_path / "store")]
    reported = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "can't guard money" in reported
    assert "Use s3://bucket/prefix as VEOGEN_STORE" in reported
    assert not (tmp_path / "store").exists()


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory for a user without privileges, whom the test becomes if it runs as root: root may write anywhere."""
    with TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(me)


@pytest.mark.parametrize("folder", ["", "assets", "claims", "receipts", ".unfinished"])
async def test_a_folder_without_write_permission_is_named_before_anything_is_bought(
    folder: str, open_to_all: Path
) -> None:
    closed = open_to_all / "store" / folder
    closed.mkdir(parents=True)
    closed.chmod(0o555)
    with pytest.raises(StoreRefused, match="Permission denied") as caught:
        await open_store(open_to_all / "store").check()
    assert str(closed) in str(caught.value)
    closed.chmod(0o755)
    await open_store(open_to_all / "store").check()


async def test_a_folder_on_another_disk_is_refused_before_anything_is_bought(tmp_path: Path) -> None:
    with TemporaryDirectory(dir="/dev/shm") as elsewhere:
        (tmp_path / "assets").symlink_to(elsewhere)
        with pytest.raises(StoreRefused, match="another file system"):
            await open_store(tmp_path).check()
        assert os.listdir(elsewhere) == []  # noqa: PTH208 - a symlink's other end


async def test_a_full_disk_is_refused_before_anything_is_bought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_a_full_disk = os.statvfs_result((4096, 4096, 1_000_000, 2, 2, 1000, 1000, 1000, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: of_a_full_disk)
    with pytest.raises(StoreUnavailable, match="8,192 bytes"):
        await open_store(tmp_path).check()


async def test_a_directory_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    failed = await failures(open_store(str(tmp_path / "file" / "store")))
    assert {call for call, error in failed.items() if error is None} <= {"read", "find", "stat", "clear_unfinished"}
    for call, error in failed.items():
        assert error is None or isinstance(error, StoreUnavailable | VersionConflict), (call, repr(error))
