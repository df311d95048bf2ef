"""How a benchmark drives a store: one call after the other, in tasks, at a fixed rate, or by wrk.

The first two are *closed loops*: a caller waits for its answer before it asks again, so a slow
answer lowers the rate. `at_half_of_peak` is an *open loop*: calls have times at which they are due,
whatever became of those before, and a call that had to wait for a free task is timed from when it
was due. Otherwise a pause would count once instead of for everybody who met it.

They know nothing of any store: what is called is handed to them.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from math import ceil
from typing import TYPE_CHECKING, Final

from scripts.bench_figures import Timing, timing_of

if TYPE_CHECKING:
    from pathlib import Path

Call = Callable[[], Awaitable[object]]
Opened = AbstractAsyncContextManager[Call]
"""A client that is connected inside and makes the call."""

TASKS: Final = 64
PEAK_SHARE: Final = 0.5
WRK_CONNECTIONS: Final = 32
WRK_KEYS_MAX: Final = 10_000
WRK_MISSING: Final = "http: not measured, there is no wrk here (the Debian package is called wrk)"
WRK_DONE: Final = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("\\nFIGURES %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class PhaseFailed(Exception):
    """A phase whose figures would mean nothing; the message says why."""


def repeat(call: Callable[[], object], seconds: float, keys_per_call: int = 1) -> Timing:
    """One call at a time."""
    latencies_s: list[float] = []
    clock = time.perf_counter
    begun = now = clock()
    while now < begun + seconds:
        before = now
        call()
        now = clock()
        latencies_s.append(now - before)
    return timing_of(latencies_s, now - begun, keys_per_call)


def in_tasks(opened: Opened, seconds: float, tasks: int = TASKS) -> Timing:
    """One client, many tasks, each with one call at a time."""

    async def run() -> Timing:
        async with opened as call:
            return await _closed(call, seconds, tasks)

    return asyncio.run(run())


def at_half_of_peak(opened: Opened, seconds: float, tasks: int = TASKS) -> Timing:
    """Find the peak of a closed loop, then time calls that are due at half of its rate."""

    async def run() -> Timing:
        async with opened as call:
            peak = await _closed(call, seconds * PEAK_SHARE, tasks)
            return await _open(call, peak.operations / peak.seconds / 2, seconds, tasks)

    return asyncio.run(run())


def at_rate(opened: Opened, per_second: float, seconds: float, tasks: int = TASKS) -> Timing:
    """Calls that are due at this rate."""

    async def run() -> Timing:
        async with opened as call:
            return await _open(call, per_second, seconds, tasks)

    return asyncio.run(run())


async def _closed(call: Call, seconds: float, tasks: int) -> Timing:
    latencies_s: list[float] = []
    clock = time.perf_counter

    async def work(end: float) -> None:
        now = clock()
        while now < end:
            before = now
            await call()
            now = clock()
            latencies_s.append(now - before)

    await asyncio.gather(*(call() for _ in range(tasks)))  # connects, untimed
    begun = clock()
    await asyncio.gather(*(work(begun + seconds) for _ in range(tasks)))
    return timing_of(latencies_s, clock() - begun)


async def _open(call: Call, per_second: float, seconds: float, tasks: int) -> Timing:
    latencies_s: list[float] = []
    clock = time.perf_counter
    begun = clock()
    due_times = iter([begun + n / per_second for n in range(max(1, int(seconds * per_second)))])

    async def work() -> None:
        for due in due_times:
            early = due - clock()
            if early > 0:
                await asyncio.sleep(early)
                due = clock()  # a timer that rings late is not the store's fault
            await call()
            latencies_s.append(clock() - due)

    await asyncio.gather(*(work() for _ in range(tasks)))
    return timing_of(latencies_s, clock() - begun)


def run_wrk(
    script: str, url: str, directory: Path, seconds: float, connections: int = WRK_CONNECTIONS
) -> Timing:
    """Some connections to one URL; the Lua script has a function `request`.

    Raises:
        PhaseFailed: wrk failed, or requests did.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise PhaseFailed(WRK_MISSING)
    file = directory / "requests.lua"
    file.write_text(script + WRK_DONE)
    duration = f"-d{ceil(seconds)}s"  # it knows whole seconds only
    command = [wrk, "-t1", f"-c{connections}", duration, "-s", str(file), url]
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
