"""What a figure depends on besides the program: the machine, and its raw speed in this minute.

A write cannot be faster than the disk's fsync and the round trips it needs, so these two are
measured in the same run. Figures of two machines compare as multiples of them.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import psutil
import uvloop

from scripts.bench_figures import MIB, Timing, timing_of

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

APPEND: Final = bytes(100)
APPENDS: Final = 100
STREAM_BYTES: Final = 128 * MIB
STREAM_BLOCK_BYTES: Final = MIB
ROUND_TRIPS: Final = 5_000
ROUND_TRIPS_UNTIMED: Final = 500
MESSAGE: Final = bytes(100)
PING_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Machine:
    """Where and on what the figures were measured."""

    cpu: str
    cpu_count: int
    load_average: float
    """Over the last minute, before the benchmark: whether others were busy."""
    python: str
    kernel: str
    file_system: str
    fsync: Timing
    """Of an append of 100 bytes with its fsync, in the data directory."""
    round_trip: Timing
    """Of 100 bytes there and back over loopback TCP between two processes."""
    disk_mib_per_s: float
    """Of one long write with one fsync at its end, in the data directory."""

    def lines(self) -> list[str]:
        """For a person."""
        append, trip = self.fsync, self.round_trip
        return [
            f"processor    {self.cpu}, {self.cpu_count} logical; load average "
            f"{self.load_average:.2f} before",
            f"software     Python {self.python}, {self.kernel}",
            f"data on      {self.file_system}",
            f"raw append   {append.p50_ms:.3f} ms p50, {append.p99_ms:.3f} ms p99 "
            f"({len(APPEND)} bytes with fsync, {APPENDS} times)",
            f"raw TCP      {trip.p50_ms:.3f} ms p50, {trip.p99_ms:.3f} ms p99 "
            f"({len(MESSAGE)} bytes there and back over loopback, uvloop)",
            f"raw disk     {self.disk_mib_per_s:,.0f} MiB/s "
            f"({STREAM_BYTES / MIB:.0f} MiB written, then one fsync)",
        ]


def examine(directory: Path) -> Machine:
    """Measure; takes a second or two."""
    load_average = os.getloadavg()[0]
    return Machine(
        cpu=cpu_model(),
        cpu_count=os.cpu_count() or 1,
        load_average=load_average,
        python=platform.python_version(),
        kernel=f"{platform.system()} {platform.release()}",
        file_system=file_system_of(directory),
        fsync=measure_fsync(directory),
        round_trip=measure_round_trip(),
        disk_mib_per_s=measure_disk(directory),
    )


def cpu_model() -> str:
    """Its name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def file_system_of(directory: Path) -> str:
    """The type of the mount with the longest path above the directory."""
    path = directory.resolve()
    mounts = [
        (len(part.mountpoint), f"{part.fstype} ({part.device})")
        for part in psutil.disk_partitions(all=True)
        if path.is_relative_to(part.mountpoint)
    ]
    return max(mounts)[1] if mounts else "unknown"


def measure_fsync(directory: Path) -> Timing:
    """Appends, each made durable."""
    latencies_s = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        begun = time.perf_counter()
        for _ in range(APPENDS):
            before = time.perf_counter()
            file.write(APPEND)
            os.fsync(file.fileno())
            latencies_s.append(time.perf_counter() - before)
        return timing_of(latencies_s, time.perf_counter() - begun)


def measure_disk(directory: Path) -> float:
    """MiB a second of a long write that ends on the disk."""
    block = os.urandom(STREAM_BLOCK_BYTES)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        begun = time.perf_counter()
        for _ in range(STREAM_BYTES // STREAM_BLOCK_BYTES):
            file.write(block)
        os.fsync(file.fileno())
        return STREAM_BYTES / MIB / (time.perf_counter() - begun)


def measure_round_trip() -> Timing:
    """Two processes with one uvloop each, one message on its way at a time."""
    spawn = multiprocessing.get_context("spawn")  # uvloop and threads do not survive a fork
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve_echo, args=(theirs,), daemon=True)
    process.start()
    try:
        port: int = ours.recv()
        return uvloop.run(_ping(port))
    finally:
        process.terminate()
        process.join()


class _Echo(asyncio.Protocol):
    """Sends back what it receives."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class _Pinger(asyncio.Protocol):
    """Sends the next message when the last is back."""

    def __init__(self) -> None:
        self.latencies_s: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._back_bytes = 0
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._send()

    def data_received(self, data: bytes) -> None:
        self._back_bytes += len(data)
        if self._back_bytes < len(MESSAGE):
            return
        self.latencies_s.append(time.perf_counter() - self._sent_at)
        if len(self.latencies_s) < ROUND_TRIPS + ROUND_TRIPS_UNTIMED:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(exc)

    def _send(self) -> None:
        self._back_bytes = 0
        self._sent_at = time.perf_counter()
        self._transport.write(MESSAGE)


async def _ping(port: int) -> Timing:
    _, pinger = await asyncio.get_running_loop().create_connection(_Pinger, "127.0.0.1", port)
    await asyncio.wait_for(pinger.done, PING_TIMEOUT_S)
    timed = pinger.latencies_s[ROUND_TRIPS_UNTIMED:]
    return timing_of(timed, sum(timed))


def _serve_echo(port_to: Connection) -> None:
    uvloop.run(_echo(port_to))


async def _echo(port_to: Connection) -> None:
    server = await asyncio.get_running_loop().create_server(_Echo, "127.0.0.1", 0)
    port_to.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()
