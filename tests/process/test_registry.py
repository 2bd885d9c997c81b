"""A process has one value per owner and key, which goes away with its owner and never crosses a fork."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref

from prefect_veogen.process.registry import Registry
from prefect_veogen.sandbox import Sandbox


class Owner:
    """What values belong to."""


class Thing:
    """A value."""


async def test_an_owner_has_one_value_per_key() -> None:
    things, owner = Registry[str, Thing](), Owner()
    first = things.get("a", Thing, owner=owner)
    assert things.get("a", Thing, owner=owner) is first
    others = [things.get("b", Thing, owner=owner), things.get("a", Thing, owner=Owner()), things.get("a", Thing)]
    assert len({first, *others}) == 4


async def test_a_forgotten_value_is_made_anew() -> None:
    things = Registry[str, Thing]()
    first = things.get("a", Thing)
    things.forget("a")
    things.forget("never made")
    assert things.get("a", Thing) is not first


def test_each_event_loop_has_its_own_until_it_is_closed() -> None:
    locks, made = Registry[None, asyncio.Lock](), []

    async def wait_in_line() -> None:
        lock = locks.get(None, asyncio.Lock)
        assert locks.get(None, asyncio.Lock) is lock
        made.append(weakref.ref(lock))

        async def acquire() -> None:
            async with locks.get(None, asyncio.Lock):
                await asyncio.sleep(0)

        await asyncio.gather(*(acquire() for _ in range(3)))  # a lock that was waited for refers to its loop

    for _ in range(4):
        asyncio.run(wait_in_line())
    gc.collect()
    assert [lock() is None for lock in made] == [True, True, True, False]


def test_a_value_goes_away_with_the_object_it_belongs_to() -> None:
    things, owner = Registry[None, Thing](), Owner()
    thing = weakref.ref(things.get(None, Thing, owner=owner))
    assert thing() is not None
    del owner
    assert thing() is None


# In a process of its own: a fork beside the threads of other tests may find their locks locked for ever.
FORKING = """
import asyncio, os, warnings
from prefect_veogen.process.io_loop import io_loop
from prefect_veogen.session import open_session

warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads is the point

def shared(session):
    client = session.client
    return [io_loop(), client, client.limiter, client.transport, session.poller, session.catalogue]

async def spend():
    session = open_session()
    await session.client.get_account()
    return session

session = asyncio.run(spend())
parents, session_poller = shared(session), session.poller
child = os.fork()
if child == 0:
    own = shared(asyncio.run(spend()))
    os._exit(sum(one is other for one, other in zip([*own, session.poller], [*parents, session_poller])))
assert os.waitpid(child, 0)[1] == 0
assert all(one is other for one, other in zip(shared(open_session()), parents))
asyncio.run(spend())
print("done")
"""


def test_a_forked_child_has_its_own_client_limiter_and_poller(sandbox: Sandbox) -> None:
    ran = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout, ran.returncode) == ("done\n", 0), ran.stderr
    assert [request.status for request in sandbox.requests] == [200, 200, 200]
