"""The phases of the benchmark: what a client does for some seconds, with each call timed.

Keys are drawn at random from those that were stored before, so they spread over all slots and a
get always finds a value. Each phase is a function of a `Target` and of its length in seconds;
`PHASES` names them in the order of the table.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Final

import kvstore
from scripts.bench_figures import Timing, timing_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from kvstore.client import AsyncClient, Client

VALUE: Final = random.Random(1).randbytes(100)
"""Random, so that nothing along the way compresses it."""
LOAD_KEYS: Final = 1_000
TASKS: Final = 64
INCR_TASKS: Final = 100
COUNTER: Final = "counter"
WRK_CONNECTIONS: Final = 32
WRK_MISSING: Final = "http: not measured, there is no wrk here (the Debian package is called wrk)"

WRK_SCRIPT: Final = """\
local method, key_count = "{method}", {key_count}
local body, headers = nil, {{}}
if method == "PUT" then
  body = string.rep("v", {value_bytes})
  headers["Content-Type"] = "application/octet-stream"
end
function request()
  local path = string.format("/v1/kv/bench:%06d", math.random(0, key_count - 1))
  return wrk.format(method, path, headers, body)
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("\\nFIGURES %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class PhaseFailed(Exception):
    """A phase whose figures would mean nothing; the message says why."""


@dataclass(frozen=True)
class Target:
    """Whom to ask, and for what."""

    client: Client
    url: str
    http_url: str
    directory: Path
    """For a script."""
    keys: list[str]
    """All that are stored, in random order."""

    def draw(self, count: int) -> list[str]:
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
    for start in range(0, len(target.keys), LOAD_KEYS):
        target.client.put_many(dict.fromkeys(target.keys[start : start + LOAD_KEYS], VALUE))


def put(target: Target, seconds: float) -> Timing:
    """One key at a time."""
    client, keys = target.client, target.keys
    return _repeat(lambda: client.put(random.choice(keys), VALUE), seconds)


def get(target: Target, seconds: float) -> Timing:
    """One key at a time."""
    client, keys = target.client, target.keys
    return _repeat(lambda: client.get(random.choice(keys)), seconds)


def put_many(count: int, target: Target, seconds: float) -> Timing:
    """Many keys a call, one call at a time."""

    def call() -> None:
        target.client.put_many(dict.fromkeys(target.draw(count), VALUE))

    return _repeat(call, seconds, count)


def get_many(count: int, target: Target, seconds: float) -> Timing:
    """Many keys a call, one call at a time."""

    def call() -> None:
        found = target.client.get_many(target.draw(count))
        assert len(found) == count

    return _repeat(call, seconds, count)


def _repeat(call: Callable[[], object], seconds: float, keys_per_call: int = 1) -> Timing:
    latencies_s: list[float] = []
    clock = time.perf_counter
    begun = now = clock()
    while now < begun + seconds:
        before = now
        call()
        now = clock()
        latencies_s.append(now - before)
    return timing_of(latencies_s, now - begun, keys_per_call)


def tasks_put(target: Target, seconds: float) -> Timing:
    """One client, many tasks, each with one key at a time."""

    async def call(client: AsyncClient) -> None:
        await client.put(random.choice(target.keys), VALUE)

    return asyncio.run(_repeat_in_tasks(call, target.url, seconds))


def tasks_get(target: Target, seconds: float) -> Timing:
    """One client, many tasks, each with one key at a time."""

    async def call(client: AsyncClient) -> None:
        await client.get(random.choice(target.keys))

    return asyncio.run(_repeat_in_tasks(call, target.url, seconds))


def incr(target: Target, seconds: float) -> Timing:
    """One key, again and again."""
    return _repeat(lambda: target.client.incr(COUNTER), seconds)


def tasks_incr(target: Target, seconds: float) -> Timing:
    """One key by many tasks: each increment is judged on top of those that are in flight."""

    async def call(client: AsyncClient) -> None:
        await client.incr(COUNTER)

    return asyncio.run(_repeat_in_tasks(call, target.url, seconds, INCR_TASKS))


async def _repeat_in_tasks(
    call: Callable[[AsyncClient], Awaitable[None]], url: str, seconds: float, tasks: int = TASKS
) -> Timing:
    latencies_s: list[float] = []
    clock = time.perf_counter

    async with kvstore.connect_async(url) as client:

        async def work(end: float) -> None:
            now = clock()
            while now < end:
                before = now
                await call(client)
                now = clock()
                latencies_s.append(now - before)

        await asyncio.gather(*(call(client) for _ in range(tasks)))  # connects, untimed
        begun = clock()
        await asyncio.gather(*(work(begun + seconds) for _ in range(tasks)))
        return timing_of(latencies_s, clock() - begun)


def http(method: str, target: Target, seconds: float) -> Timing:
    """By wrk over some connections to one node, which forwards what others lead."""
    wrk = shutil.which("wrk")
    assert wrk is not None
    script = target.directory / f"{method.lower()}.lua"
    script.write_text(
        WRK_SCRIPT.format(method=method, key_count=len(target.keys), value_bytes=len(VALUE))
    )
    duration = f"-d{ceil(seconds)}s"  # it knows whole seconds only
    command = [wrk, "-t1", f"-c{WRK_CONNECTIONS}", duration, "-s", str(script), target.http_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return wrk_timing(done.stdout + done.stderr)


def wrk_timing(output: str) -> Timing:
    """From the line that our script prints.

    Raises:
        PhaseFailed: there is none, or requests failed.
    """
    lines = [line.split()[1:] for line in output.splitlines() if line.startswith("FIGURES ")]
    if not lines:
        raise PhaseFailed(f"wrk gave no figures:\n{output}")
    requests, duration_us, p50_us, p99_us, errors = map(int, lines[0])
    if errors or not requests:
        raise PhaseFailed(f"{errors} of {requests} requests failed:\n{output}")
    return Timing(requests, duration_us / 1e6, p50_us / 1e3, p99_us / 1e3)


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
    f"incr-one-key-{INCR_TASKS}-tasks": tasks_incr,
    "http-put": partial(http, "PUT"),
    "http-get": partial(http, "GET"),
}
NEEDS_WRK: Final = ("http-put", "http-get")
