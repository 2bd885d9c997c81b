"""Who owns a lease, and whether that owner is still alive."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from prefect_veogen.ledger import lease as liveness
from prefect_veogen.ledger.lease import CLOCK_TOLERANCE, Owner, own_lease


def on_another_machine(holder: Owner, lease: timedelta) -> Owner:
    return holder.model_copy(
        update={"process": "another-boot/pid:[1]/42.1", "host": "elsewhere", "lease_until": datetime.now(UTC) + lease}
    )


def test_a_holder_lives_while_it_holds_and_is_dead_afterwards() -> None:
    with own_lease(0.0, "run-1") as holder:
        assert not holder.is_dead()
        assert (holder.pid, holder.flow_run_id) == (os.getpid(), "run-1")
    assert holder.is_dead()


def test_a_holder_that_was_written_down_and_read_again_is_the_same() -> None:
    with own_lease(60, None) as holder:
        again = Owner.model_validate_json(holder.model_dump_json())
        assert again == holder
        assert not again.is_dead()
    assert again.is_dead()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_holder_is_dead_however_it_ended(error: type[BaseException]) -> None:
    with pytest.raises(error), own_lease(60, None) as holder:
        raise error
    assert holder.is_dead()


def child() -> tuple[subprocess.Popen[str], Owner]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    mark = liveness._process_mark(process.pid)
    assert mark is not None
    until = datetime.now(UTC) + timedelta(hours=1)
    return process, Owner(id="1", host="here", pid=process.pid, process=mark, lease_until=until)


@pytest.mark.parametrize("buried", [False, True])
def test_a_killed_process_is_dead_at_once_whether_or_not_it_is_buried(buried: bool) -> None:
    process, holder = child()
    assert not holder.is_dead()
    process.kill()
    if buried:
        process.wait()
    deadline = time.monotonic() + 30
    while not holder.is_dead() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holder.is_dead()
    process.communicate()


def test_a_living_process_is_alive_even_after_its_lease() -> None:
    process, holder = child()
    assert not holder.model_copy(update={"lease_until": datetime.now(UTC) - timedelta(days=1)}).is_dead()
    process.communicate("\n")


def test_another_process_with_the_same_id_is_another_process() -> None:
    process, holder = child()
    assert holder.process is not None
    before_it = f"{holder.process.rpartition('.')[0]}.1"
    assert holder.model_copy(update={"process": before_it}).is_dead()
    process.communicate("\n")


@pytest.mark.parametrize("tolerance", [timedelta(seconds=1), -CLOCK_TOLERANCE + timedelta(seconds=1)])
def test_a_holder_elsewhere_lives_as_long_as_its_lease_and_the_tolerance(tolerance: timedelta) -> None:
    with own_lease(60, None) as holder:
        assert not on_another_machine(holder, tolerance).is_dead()


def test_a_holder_elsewhere_is_dead_when_its_lease_ran_out() -> None:
    with own_lease(60, None) as holder:
        gone = on_another_machine(holder, -CLOCK_TOLERANCE - timedelta(seconds=1))
        assert gone.is_dead()
        assert not gone.renewed(60).is_dead()


def test_a_holder_in_another_container_is_judged_by_its_lease() -> None:
    with own_lease(60, None) as holder:
        assert holder.process is not None
        boot, _, _ = holder.process.partition("/")
        neighbour = holder.model_copy(update={"process": f"{boot}/pid:[1]/{holder.pid}.1"})
        assert not neighbour.is_dead()


def test_where_the_system_reports_nothing_the_lease_decides() -> None:
    with own_lease(60, None) as holder:
        assert not holder.model_copy(update={"process": None}).is_dead()
        late = {"process": None, "lease_until": datetime.now(UTC) - CLOCK_TOLERANCE - timedelta(seconds=1)}
        assert holder.model_copy(update=late).is_dead()


# In a process of its own: a fork beside the threads of other tests may find their locks taken for ever.
FORKING = """
import os
from prefect_veogen.ledger.lease import own_lease
with own_lease(60, None) as holder:
    child = os.fork()
    if child == 0:
        os._exit(holder.is_dead())
    print(os.waitpid(child, 0)[1])
"""


def test_a_forked_child_does_not_take_its_parent_for_dead() -> None:
    assert subprocess.check_output([sys.executable, "-c", FORKING], text=True).split() == ["0"]
