"""Our three nodes, driven by the phases of `scripts.bench_phases`."""

from __future__ import annotations

import signal
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import kvstore
from kvstore.cli.local_cluster import HOST, LocalCluster
from scripts.bench import CLIENT_TIMEOUT_S, NODES, free_ports
from scripts.bench_events import run_load, write_import
from scripts.bench_loops import TASKS, at_half_of_peak
from scripts.bench_phases import PHASES, Target, calling, load_all, one_get, one_put, tasks_incr
from scripts.compare.store import BULK_PREFIX, Entrant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from kvstore.client import Client
    from scripts.bench_figures import Timing
    from scripts.compare.store import Load, Phase

READY_TIMEOUT_S: Final = 120.0


class RingKV:
    """A cluster as `kvstore up` starts it, with a client to each of its entrant's phases."""

    keeps = True

    def __init__(self, directory: Path, nodes: int = NODES) -> None:
        self.name = "ringkv"
        first = free_ports(2 * nodes)
        self.directory = directory
        self.cluster = LocalCluster(
            directory / "nodes", nodes, first, first + nodes, ["--log-level", "warning"]
        )
        self._client: Client | None = None

    @property
    def version(self) -> str:
        """Of the package."""
        return f"ringkv {version('ringkv')}"

    @property
    def pids(self) -> list[int]:
        """One for each node."""
        return [node.process.pid for node in self.cluster.nodes if node.process is not None]

    def start(self) -> None:
        """Return when every node serves."""
        self.cluster.start()
        self.cluster.wait_ready(READY_TIMEOUT_S)
        self._client = kvstore.connect(self.cluster.url, timeout=CLIENT_TIMEOUT_S)

    def stop(self) -> None:
        """Stop every node."""
        if self._client is not None:
            self._client.close()
        self.cluster.stop()

    def kill(self) -> None:
        """Kill -9 of every node."""
        for node in self.cluster.nodes:
            node.signal(signal.SIGKILL)
        self.stop()

    def fill(self, load: Load) -> None:
        """Store every key once."""
        load_all(replace(self.target(load), keys=load.stored))

    @property
    def entrants(self) -> list[Entrant]:
        """One: there is one way."""
        phases: dict[str, Callable[[Target, float], Timing]] = {
            **PHASES,
            f"incr-one-key-{TASKS}-tasks": partial(tasks_incr, TASKS),
            "put-half-peak": lambda target, s: at_half_of_peak(calling(one_put, target), s),
            "get-half-peak": lambda target, s: at_half_of_peak(calling(one_get, target), s),
        }
        return [
            Entrant(
                "ringkv",
                client="kvstore.Client, kvstore.AsyncClient; wrk on node 1",
                promise="write: fsynced on 2 of 3; read: linearizable",
                phases={name: self._phase(phase) for name, phase in phases.items()},
            )
        ]

    def _phase(self, phase: Callable[[Target, float], Timing]) -> Phase:
        return lambda load, seconds: phase(self.target(load), seconds)

    def target(self, load: Load) -> Target:
        """For the phases of `scripts.bench_phases`."""
        assert self._client is not None
        http_url = f"http://{HOST}:{self.cluster.nodes[0].http_port}"
        url = self.cluster.url
        return Target(self._client, url, http_url, self.directory, load.drawn, load.value)

    def prepare_import(self, entries: Iterable[tuple[str, bytes]]) -> None:
        """A file for `kvstore load`."""
        write_import(self._import_file, entries)

    def load_prepared(self) -> None:
        """By `kvstore load`; a row is durable on a quorum when it is counted."""
        run_load(self.cluster.url, self._import_file)

    def scan(self) -> int:
        """By the client, every key with its value."""
        assert self._client is not None
        return sum(1 for _ in self._client.scan(BULK_PREFIX))

    @property
    def _import_file(self) -> Path:
        return self.directory / "import.msgpack"
