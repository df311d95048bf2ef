"""Things that happen to a cluster once: an import, the death of a node, the arrival of one.

They are measured like the phases, but in processor time for each key or slot, and with a clock from
their beginning to their end. A cluster of its own has them one after the other: `load` fills it,
`takeover` kills node 3 and asks every slot, `join` adds a fourth node.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgpack

import kvstore
from cluster.slots import slot_of
from scripts.bench_figures import MIB
from scripts.bench_loops import PhaseFailed
from scripts.bench_moves import copied, wait_moved
from scripts.failover_scenarios import restart, wait_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kvstore.cli.local_cluster import LocalCluster, LocalNode

    Sampler = Callable[[list[int], Callable[[], None]], None]
    """Samples the processes of these ids while something happens."""

VALUE_BYTES: Final = 100
TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.05
SEED: Final = 7


@dataclass(frozen=True)
class Happened:
    """What an event came to."""

    operations: int
    """Keys, or slots."""
    seconds: float
    copied_bytes: int = 0


def write_import(path: Path, entries: Iterable[tuple[str, bytes]]) -> None:
    """A file for `kvstore load`."""
    with path.open("wb") as file:
        for key, value in entries:
            file.write(msgpack.packb({"key": key, "value": value}))


def run_load(url: str, path: Path) -> None:
    """Import it with the command; a row is durable on a quorum when it is counted.

    Raises:
        PhaseFailed: it did not end well; with what it said.
    """
    command = [sys.executable, "-m", "kvstore", "load", "--url", url, "--timeout", str(TIMEOUT_S)]
    done = subprocess.run(
        [*command, "--restart", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PhaseFailed(f"kvstore load failed: {done.stderr}")


def values(size_bytes: int = VALUE_BYTES) -> Iterator[bytes]:
    """Different ones for ever, the same each time; many copies of one would compress well."""
    rng = random.Random(SEED)
    noise = rng.randbytes(4 * MIB)
    while True:
        start = rng.randrange(len(noise) - size_bytes)
        yield noise[start : start + size_bytes]


class Events:
    """A cluster to which they happen, in the order of their names."""

    NAMES: Final = ("load", "takeover", "join")

    def __init__(self, cluster: LocalCluster, key_count: int) -> None:
        self.cluster = cluster
        self._keys = [f"event:{number:08}" for number in range(key_count)]

    def run(self, name: str, sample: Sampler) -> Happened:
        """Let it happen under the eye of a sampler."""
        happen: Callable[[Sampler], Happened] = getattr(self, name)
        return happen(sample)

    def load(self, sample: Sampler) -> Happened:
        """All keys by `kvstore load`."""
        with tempfile.TemporaryDirectory(prefix="ringkv-import-") as made:
            path = Path(made) / "import.msgpack"
            write_import(path, zip(self._keys, values(), strict=False))
            took = Clock()
            sample(self._pids(), lambda: took.time(lambda: run_load(self.cluster.url, path)))
        return Happened(len(self._keys), took.seconds)

    def takeover(self, sample: Sampler) -> Happened:
        """Kill -9 of node 3, and one call that reads a key of every slot; then it comes back."""
        victim = self.cluster.nodes[2]
        wait_back(self.cluster)
        of_slot = {slot_of(key.encode()): key for key in self._keys}
        led = self._slots("slots_led", victim)
        assert victim.process is not None
        survivors = [pid for pid in self._pids() if pid != victim.process.pid]
        took = Clock()
        with kvstore.connect(self.cluster.url, timeout=TIMEOUT_S) as client:
            client.get_many(of_slot.values())  # connected, and knows who leads

            def happen() -> None:
                victim.signal(signal.SIGKILL)
                took.time(lambda: client.get_many(of_slot.values()))

            sample(survivors, happen)
        restart(self.cluster, victim)
        wait_back(self.cluster)
        return Happened(led, took.seconds)

    def join(self, sample: Sampler) -> Happened:
        """A fourth node, from its readiness until nobody has anything to move."""
        before = copied(self.cluster)
        begun = time.monotonic()
        node = self.cluster.add_node()
        wait_for(lambda: node.fetch("/health/ready") is not None, f"{node.name} to serve")
        ended = [0.0]

        def happen() -> None:
            wait_for(lambda: self._slots("slots_held", node) > 0, f"{node.name} to be given slots")
            ended[0] = wait_moved(self.cluster)

        sample(self._pids(), happen)
        return Happened(
            self._slots("slots_held", node), ended[0] - begun, copied(self.cluster) - before
        )

    def _slots(self, which: str, node: LocalNode) -> int:
        """What the first node says of it; 0 if it does not know it."""
        document = self.cluster.nodes[0].fetch("/v1/cluster") or {"nodes": []}
        return sum(one[which] for one in document["nodes"] if one["name"] == node.name)

    def _pids(self) -> list[int]:
        return [node.process.pid for node in self.cluster.nodes if node.process is not None]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Ask again and again.

    Raises:
        PhaseFailed: a minute was not enough.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise PhaseFailed(f"waited {TIMEOUT_S:g} s for {what}")
        time.sleep(POLL_S)


class Clock:
    """How long something took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def time(self, what: Callable[[], object]) -> None:
        """Do it."""
        begun = time.perf_counter()
        what()
        self.seconds = time.perf_counter() - begun
