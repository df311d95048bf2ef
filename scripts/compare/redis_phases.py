"""The operations of a Redis Cluster through redis-py: plain, with WAIT 1, and within one slot.

SET and its WAIT travel together, in one pipeline over the connection of the key's master: one
round trip, the fastest way that the library has to ask for both. The same for INCR.
"""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from kvstore.cli.local_cluster import HOST
from scripts.bench_loops import TASKS, PhaseFailed, at_half_of_peak, in_tasks, repeat
from scripts.bench_phases import COUNTER
from scripts.compare.store import Entrant

try:
    redis: Any = import_module("redis")
    redis_asyncio: Any = import_module("redis.asyncio")
except ImportError:  # the contestant says so
    redis = redis_asyncio = None

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from scripts.bench_figures import Timing
    from scripts.bench_loops import Opened
    from scripts.compare.store import Load, Phase

BATCH_KEYS: Final = 100
WAIT_MS: Final = 5_000
CONNECTIONS_MAX: Final = 2 * TASKS
"""Of the asyncio client to each node."""


def mset_groups(keys: Sequence[str]) -> list[list[str]]:
    """The same keys in groups that share a slot, by a tag in front."""
    return [
        [f"{{{start}}}{key}" for key in keys[start : start + BATCH_KEYS]]
        for start in range(0, len(keys) - BATCH_KEYS + 1, BATCH_KEYS)
    ]


def make_entrants(client: Any, port: int) -> list[Entrant]:
    """Three ways of using one cluster; ``client`` is a `redis.RedisCluster`."""
    batch = f"-{BATCH_KEYS}"
    tasks = f"-{TASKS}-tasks"
    opened = _Opened(port)
    return [
        Entrant(
            "redis",
            client="redis-py RedisCluster with hiredis; asyncio: its asyncio twin",
            promise="write: fsynced on 1 of 2, replicated later; read: not linearizable",
            phases={
                "put": lambda load, s: _put(client, load, s),
                "get": lambda load, s: _get(client, load, s),
                f"put_many{batch}": lambda load, s: _pipeline_put(client, load, s),
                f"get_many{batch}": lambda load, s: _pipeline_get(client, load, s),
                f"put{tasks}": _tasks(opened.put),
                f"get{tasks}": _tasks(opened.get),
                f"incr-one-key{tasks}": _tasks(opened.incr),
                "put-half-peak": _half(opened.put),
                "get-half-peak": _half(opened.get),
            },
        ),
        Entrant(
            "redis + WAIT 1",
            client="the same; SET and WAIT in one pipeline",
            promise="write: fsynced on 2 of 2, may still be lost in a failover",
            phases={
                "put": lambda load, s: _put_wait(client, load, s),
                f"put_many{batch}": lambda load, s: _pipeline_put_wait(client, load, s),
                f"put{tasks}": _tasks(opened.put_wait),
                f"incr-one-key{tasks}": _tasks(opened.incr_wait),
                "put-half-peak": _half(opened.put_wait),
            },
        ),
        Entrant(
            "redis MSET/MGET",
            client=f"redis-py RedisCluster; the {BATCH_KEYS} keys of a call share a slot",
            promise="as redis; all keys of a call must have one tag",
            phases={
                f"put_many{batch}": lambda load, s: _mset(client, load, s),
                f"get_many{batch}": lambda load, s: _mget(client, load, s),
            },
        ),
    ]


def _put(client: Any, load: Load, seconds: float) -> Timing:
    keys, value = load.drawn, load.value
    return repeat(lambda: client.set(random.choice(keys), value), seconds)


def _get(client: Any, load: Load, seconds: float) -> Timing:
    keys = load.drawn
    return repeat(lambda: client.get(random.choice(keys)), seconds)


def _put_wait(client: Any, load: Load, seconds: float) -> Timing:
    keys, value = load.drawn, load.value

    def call() -> None:
        key = random.choice(keys)
        node = client.get_redis_connection(client.get_node_from_key(key))
        _, copies = node.pipeline(transaction=False).set(key, value).wait(1, WAIT_MS).execute()
        check(copies)

    return repeat(call, seconds)


def check(copies: int) -> None:
    """What WAIT answered.

    Raises:
        PhaseFailed: no replica had the write in time.
    """
    if copies < 1:
        raise PhaseFailed(f"no Redis replica had a write within {WAIT_MS} ms")


def _pipeline_put(client: Any, load: Load, seconds: float) -> Timing:
    def call() -> None:
        pipeline = client.pipeline()
        for key in load.draw(BATCH_KEYS):
            pipeline.set(key, load.value)
        pipeline.execute()

    return repeat(call, seconds, BATCH_KEYS)


def _pipeline_put_wait(client: Any, load: Load, seconds: float) -> Timing:
    """One pipeline, with a WAIT to each master behind its keys."""

    def call() -> None:
        pipeline = client.pipeline()
        nodes = {}
        for key in load.draw(BATCH_KEYS):
            pipeline.set(key, load.value)
            node = client.get_node_from_key(key)
            nodes[node.name] = node
        for node in nodes.values():
            pipeline.execute_command("WAIT", 1, WAIT_MS, target_nodes=node)
        for copies in pipeline.execute()[-len(nodes) :]:
            check(copies)

    return repeat(call, seconds, BATCH_KEYS)


def _pipeline_get(client: Any, load: Load, seconds: float) -> Timing:
    def call() -> None:
        pipeline = client.pipeline()
        for key in load.draw(BATCH_KEYS):
            pipeline.get(key)
        assert len(pipeline.execute()) == BATCH_KEYS

    return repeat(call, seconds, BATCH_KEYS)


def _mset(client: Any, load: Load, seconds: float) -> Timing:
    groups = mset_groups(load.stored)

    def call() -> None:
        client.mset(dict.fromkeys(random.choice(groups), load.value))

    return repeat(call, seconds, BATCH_KEYS)


def _mget(client: Any, load: Load, seconds: float) -> Timing:
    groups = mset_groups(load.stored)
    return repeat(lambda: client.mget(random.choice(groups)), seconds, BATCH_KEYS)


def _tasks(opened: Callable[[Load], Opened]) -> Phase:
    return lambda load, seconds: in_tasks(opened(load), seconds)


def _half(opened: Callable[[Load], Opened]) -> Phase:
    return lambda load, seconds: at_half_of_peak(opened(load), seconds)


class _Opened:
    """Connected asyncio clients, each with its call."""

    def __init__(self, port: int) -> None:
        self._port = port

    def put(self, load: Load) -> Opened:
        return self._calling(lambda client: client.set(random.choice(load.drawn), load.value))

    def get(self, load: Load) -> Opened:
        return self._calling(lambda client: client.get(random.choice(load.drawn)))

    def incr(self, load: Load) -> Opened:
        return self._calling(lambda client: client.incr(COUNTER))

    def put_wait(self, load: Load) -> Opened:
        async def call(client: Any) -> None:
            key = random.choice(load.drawn)
            await _with_wait(client, key, client.pipeline().set(key, load.value))

        return self._calling(call)

    def incr_wait(self, load: Load) -> Opened:
        async def call(client: Any) -> None:
            await _with_wait(client, COUNTER, client.pipeline().incr(COUNTER))

        return self._calling(call)

    @asynccontextmanager
    async def _calling(
        self, call: Callable[[Any], Awaitable[object]]
    ) -> AsyncIterator[Callable[[], Awaitable[object]]]:
        async with redis_asyncio.RedisCluster(
            host=HOST, port=self._port, max_connections=CONNECTIONS_MAX
        ) as client:
            yield lambda: call(client)


async def _with_wait(client: Any, key: str, pipeline: Any) -> None:
    node = client.get_node_from_key(key)
    pipeline.execute_command("WAIT", 1, WAIT_MS, target_nodes=node)
    check((await pipeline.execute())[-1])
