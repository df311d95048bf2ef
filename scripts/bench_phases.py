"""The phases of the benchmark: what a client does for some seconds, with each call timed.

Keys are drawn at random from those that were stored before, so they spread over all slots and a
get always finds a value. Each phase is a function of a `Target` and of its length in seconds;
`PHASES` names them in the order of the table. `scripts.bench_loops` does the driving.
"""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import kvstore
from scripts.bench_loops import TASKS, WRK_CONNECTIONS, WRK_KEYS_MAX, in_tasks, repeat, run_wrk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from kvstore.client import AsyncClient, Client
    from scripts.bench_figures import Timing
    from scripts.bench_loops import Call

VALUE: Final = random.Random(1).randbytes(100)
"""Random, so that nothing along the way compresses it."""
LOAD_BYTES: Final = 1_000 * len(VALUE)
INCR_TASKS: Final = 100
COUNTER: Final = "counter"

WRK_SCRIPT: Final = """\
local method, keys = "{method}", {{{keys}}}
local body, headers = nil, {{}}
if method == "PUT" then
  body = string.rep("v", {value_bytes})
  headers["Content-Type"] = "application/octet-stream"
end
function request()
  return wrk.format(method, "/v1/kv/" .. keys[math.random(#keys)], headers, body)
end
"""


@dataclass(frozen=True)
class Target:
    """Whom to ask, and for what."""

    client: Client
    url: str
    http_url: str
    directory: Path
    """For a script."""
    keys: Sequence[str]
    """All that are stored, in random order."""
    value: bytes = VALUE

    def draw(self, count: int) -> Sequence[str]:
        """Random keys: neighbours in a random order, which costs the client almost nothing."""
        start = random.randrange(len(self.keys) - count + 1)
        return self.keys[start : start + count]


def shuffled_keys(count: int) -> list[str]:
    """``bench:000000`` and so on, in random order."""
    keys = [f"bench:{number:06}" for number in range(count)]
    random.shuffle(keys)
    return keys


def load_all(target: Target) -> None:
    """Store every key once, which also warms up the nodes."""
    count = max(1, LOAD_BYTES // len(target.value))
    for start in range(0, len(target.keys), count):
        target.client.put_many(dict.fromkeys(target.keys[start : start + count], target.value))


def put(target: Target, seconds: float) -> Timing:
    """One key at a time."""
    client, keys, value = target.client, target.keys, target.value
    return repeat(lambda: client.put(random.choice(keys), value), seconds)


def get(target: Target, seconds: float) -> Timing:
    """One key at a time."""
    client, keys = target.client, target.keys
    return repeat(lambda: client.get(random.choice(keys)), seconds)


def put_many(count: int, target: Target, seconds: float) -> Timing:
    """Many keys a call, one call at a time."""

    def call() -> None:
        target.client.put_many(dict.fromkeys(target.draw(count), target.value))

    return repeat(call, seconds, count)


def get_many(count: int, target: Target, seconds: float) -> Timing:
    """Many keys a call, one call at a time."""

    def call() -> None:
        found = target.client.get_many(target.draw(count))
        assert len(found) == count

    return repeat(call, seconds, count)


@asynccontextmanager
async def calling(
    call: Callable[[Target, AsyncClient], Awaitable[object]], target: Target
) -> AsyncIterator[Call]:
    """A client of its own that makes the call."""
    async with kvstore.connect_async(target.url) as client:
        yield lambda: call(target, client)


def one_put(target: Target, client: AsyncClient) -> Awaitable[object]:
    """Of a random key."""
    return client.put(random.choice(target.keys), target.value)


def one_get(target: Target, client: AsyncClient) -> Awaitable[object]:
    """Of a random key."""
    return client.get(random.choice(target.keys))


def one_incr(target: Target, client: AsyncClient) -> Awaitable[object]:
    """Of the one counter."""
    return client.incr(COUNTER)


def tasks_put(target: Target, seconds: float) -> Timing:
    """One client, many tasks, each with one key at a time."""
    return in_tasks(calling(one_put, target), seconds)


def tasks_get(target: Target, seconds: float) -> Timing:
    """One client, many tasks, each with one key at a time."""
    return in_tasks(calling(one_get, target), seconds)


def incr(target: Target, seconds: float) -> Timing:
    """One key, again and again."""
    return repeat(lambda: target.client.incr(COUNTER), seconds)


def tasks_incr(tasks: int, target: Target, seconds: float) -> Timing:
    """One key by many tasks: each increment is judged on top of those that are in flight."""
    return in_tasks(calling(one_incr, target), seconds, tasks)


def http(method: str, target: Target, seconds: float, connections: int = WRK_CONNECTIONS) -> Timing:
    """By wrk over some connections to one node, which forwards what others lead."""
    keys = ",".join(f'"{key}"' for key in target.keys[:WRK_KEYS_MAX])
    script = WRK_SCRIPT.format(method=method, keys=keys, value_bytes=len(target.value))
    return run_wrk(script, target.http_url, target.directory, seconds, connections)


PHASES: Final[dict[str, Callable[[Target, float], Timing]]] = {
    "put": put,
    "get": get,
    "put_many-100": partial(put_many, 100),
    "get_many-100": partial(get_many, 100),
    "put_many-1000": partial(put_many, 1_000),
    "get_many-1000": partial(get_many, 1_000),
    f"put-{TASKS}-tasks": tasks_put,
    f"get-{TASKS}-tasks": tasks_get,
    "incr-one-key": incr,
    f"incr-one-key-{INCR_TASKS}-tasks": partial(tasks_incr, INCR_TASKS),
    "http-put": partial(http, "PUT"),
    "http-get": partial(http, "GET"),
}
NEEDS_WRK: Final = ("http-put", "http-get")
