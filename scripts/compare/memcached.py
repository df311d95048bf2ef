"""One memcached, for reads from memory: what a cache without any promise does on this machine."""

from __future__ import annotations

import os
import random
import subprocess
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from kvstore.cli.local_cluster import HOST
from scripts.bench import free_ports
from scripts.bench_loops import repeat
from scripts.compare.processes import Processes
from scripts.compare.store import Entrant, executable, library_missing

try:
    pymemcache: Any = import_module("pymemcache")
except ImportError:  # the contestant says so
    pymemcache = None

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.bench_figures import Timing
    from scripts.compare.store import Load

MEMORY_MIB: Final = 1_024
READY_TIMEOUT_S: Final = 20.0
BATCH_KEYS: Final = 100


class Memcached:
    """One process.

    Raises:
        Missing: memcached or its Python client is not installed.
    """

    name = "memcached"
    keeps = False

    def __init__(self, directory: Path) -> None:
        self._server = executable("memcached", "memcached")
        if pymemcache is None:
            raise library_missing("memcached", "pymemcache")
        self._processes = Processes(directory)
        self._port = free_ports(1)
        self._client: Any = None

    @property
    def version(self) -> str:
        """Of the server and of the client."""
        said = subprocess.run(
            [self._server, "--version"], capture_output=True, text=True, check=False
        )
        return f"{said.stdout.strip()}, pymemcache {pymemcache.__version__}"

    @property
    def pids(self) -> list[int]:
        """Of the one process."""
        return self._processes.pids

    def start(self) -> None:
        """Return when it answers."""
        command = [self._server, "-l", HOST, "-p", str(self._port), "-U", "0"]
        user = ["-u", "root"] if os.getuid() == 0 else []
        self._processes.start("memcached", [*command, "-m", str(MEMORY_MIB), *user])
        self._client = pymemcache.Client((HOST, self._port), no_delay=True)
        self._processes.wait_until(self._answers, READY_TIMEOUT_S)

    def _answers(self) -> bool:
        try:
            return bool(self._client.version())
        except OSError:
            return False

    def stop(self) -> None:
        """Stop it."""
        if self._client is not None:
            self._client.close()
        self._processes.stop()

    def fill(self, load: Load) -> None:
        """Store every key once."""
        for start in range(0, len(load.stored), BATCH_KEYS):
            some = load.stored[start : start + BATCH_KEYS]
            failed = self._client.set_many(dict.fromkeys(some, load.value))
            assert not failed

    @property
    def entrants(self) -> list[Entrant]:
        """Reads only."""
        return [
            Entrant(
                "memcached",
                client="pymemcache Client",
                promise="nothing is durable, nothing is replicated: memory of one process",
                phases={"get": self._get, f"get_many-{BATCH_KEYS}": self._get_many},
            )
        ]

    def _get(self, load: Load, seconds: float) -> Timing:
        client, keys = self._client, load.drawn
        return repeat(lambda: client.get(random.choice(keys)), seconds)

    def _get_many(self, load: Load, seconds: float) -> Timing:
        def call() -> None:
            found = self._client.get_many(load.draw(BATCH_KEYS))
            assert found

        return repeat(call, seconds, BATCH_KEYS)
