"""A Redis Cluster of three masters, each with a replica, and `appendfsync always` on all six.

Redis acknowledges what one master has on its disk. `WAIT 1` holds the caller until a replica has
said that it has the write too. A replica answers that question after the fsync of its own turn of
the event loop, so both disks have it by then; Redis does not promise it, and later versions have
WAITAOF for that. Neither makes it a quorum: replication is asynchronous, a failover may choose a
replica without the write, and a read may come from a master that was deposed.
"""

from __future__ import annotations

import re
import signal
import subprocess
from typing import TYPE_CHECKING, Any, Final

from kvstore.cli.local_cluster import HOST
from scripts.bench import free_ports
from scripts.bench_loops import PhaseFailed
from scripts.compare.processes import Processes
from scripts.compare.redis_import import import_commands, write_import
from scripts.compare.redis_phases import make_entrants, mset_groups, redis
from scripts.compare.store import BULK_PREFIX, executable, library_missing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from scripts.compare.store import Entrant, Load

PACKAGE: Final = "redis-server"
MASTERS: Final = 3
NODES: Final = 2 * MASTERS
READY_TIMEOUT_S: Final = 120.0
FILL_KEYS: Final = 1_000
SCAN_COUNT: Final = 1_000
WAIT_MS: Final = 60_000


class RedisCluster:
    """Six processes and the clients of their entrants.

    Raises:
        Missing: Redis or its Python client is not installed.
    """

    name = "redis"
    keeps = True

    def __init__(self, directory: Path) -> None:
        self._server = executable("redis-server", PACKAGE)
        self._cli = executable("redis-cli", PACKAGE)
        if redis is None:
            raise library_missing("redis", "redis[hiredis]")
        self._directory = directory
        self._processes = Processes(directory)
        first = free_ports(2 * NODES)
        self._ports = list(range(first, first + NODES))
        self._client: Any = None

    @property
    def version(self) -> str:
        """Of the server and of the client."""
        said = subprocess.run([self._server, "--version"], capture_output=True, text=True)
        found = re.search(r"v=(\S+)", said.stdout)
        return f"redis {found[1] if found else '?'}, redis-py {redis.__version__}"

    @property
    def pids(self) -> list[int]:
        """One for each master and replica."""
        return self._processes.pids

    def start(self) -> None:
        """Return when every slot is served and every replica follows."""
        made = [self._start_one(port) for port in self._ports]
        self._processes.wait_until(lambda: all(map(self._answers, self._ports)), READY_TIMEOUT_S)
        if any(made):
            self._found()
        self._processes.wait_until(lambda: all(map(self._serves, self._ports)), READY_TIMEOUT_S)
        self._client = redis.RedisCluster(host=HOST, port=self._ports[0])

    def _start_one(self, port: int) -> bool:
        """Start a server; whether it is one without data."""
        directory = self._directory / str(port)
        fresh = not directory.exists()
        directory.mkdir(exist_ok=True)
        settings = {
            "port": port,
            "cluster-port": port + NODES,
            "bind": HOST,
            "dir": directory,
            "cluster-enabled": "yes",
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",  # no snapshots beside the log
            "repl-diskless-sync-delay": 0,
            "loglevel": "warning",
        }
        flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        self._processes.start(f"redis-{port}", [self._server, *flags])
        return fresh

    def _found(self) -> None:
        addresses = [f"{HOST}:{port}" for port in self._ports]
        flags = ["--cluster-replicas", "1", "--cluster-yes"]
        command = [self._cli, "--cluster", "create", *addresses, *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PhaseFailed(f"the Redis Cluster was not made:\n{done.stdout}{done.stderr}")

    def _answers(self, port: int) -> bool:
        try:
            with redis.Redis(HOST, port) as one:
                return bool(one.ping())
        except redis.RedisError:  # not listening yet, or loading
            return False

    def _serves(self, port: int) -> bool:
        with redis.Redis(HOST, port, decode_responses=True) as one:
            cluster = one.execute_command("CLUSTER INFO")
            follows = one.info("replication")
        state = cluster["cluster_state"] if isinstance(cluster, dict) else cluster
        if follows["role"] == "slave":
            return bool(follows["master_link_status"] == "up")
        return "ok" in state and follows["connected_slaves"] == 1

    def stop(self) -> None:
        """Stop all six."""
        if self._client is not None:
            self._client.close()
        self._processes.stop()

    def kill(self) -> None:
        """Kill -9 of all six."""
        self._processes.kill()

    def fill(self, load: Load) -> None:
        """Every key once alone, and once in the groups that share a slot."""
        count = max(1, FILL_KEYS * 100 // len(load.value))
        for start in range(0, len(load.stored), count):
            pipeline = self._client.pipeline()
            for key in load.stored[start : start + count]:
                pipeline.set(key, load.value)
            pipeline.execute()
        for group in mset_groups(load.stored):
            self._client.mset(dict.fromkeys(group, load.value))

    @property
    def entrants(self) -> list[Entrant]:
        """Plain, with WAIT, and with keys that share a slot."""
        return make_entrants(self._client, self._ports[0])

    def prepare_import(self, entries: Iterable[tuple[str, bytes]]) -> None:
        """One file of commands for each master."""
        slots = {port: self._slots(port) for port in self._ports}
        write_import(self._directory, {p: led for p, led in slots.items() if led}, entries)

    def _slots(self, port: int) -> list[range]:
        """Slots that the server of this port leads."""
        with redis.Redis(HOST, port, decode_responses=True) as one:
            shards = one.execute_command("CLUSTER SLOTS")
        lead: list[range] = []
        for shard in shards:
            begin, end, master = shard[:3]
            if int(master[1]) == port:
                lead.append(range(int(begin), int(end) + 1))
        return lead

    def load_prepared(self) -> None:
        """Mass insertion: `redis-cli --pipe` to each master at once, then WAIT on each."""
        running = []
        for port, file in import_commands(self._directory):
            command = [self._cli, "-p", str(port), "--pipe"]
            with file.open("rb") as commands:
                running.append(
                    subprocess.Popen(
                        command,
                        stdin=commands,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        try:
            for process in running:
                said, _ = process.communicate()
                if process.returncode or b"errors: 0" not in said:
                    raise PhaseFailed(f"redis-cli --pipe failed: {said.decode()}")
        finally:
            for process in running:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
        for node in self._client.get_primaries():
            with redis.Redis(HOST, node.port) as one:
                one.set(own_key(one, self._slots(node.port)[0]), b"last")  # what WAIT waits for
                one.wait(1, WAIT_MS)

    def scan(self) -> int:
        """SCAN of each master; the values of a page by one pipeline of GETs.

        MGET takes keys of one slot only, and a page has keys of a thousand slots.
        """
        count = 0
        for node in self._client.get_primaries():
            with redis.Redis(HOST, node.port) as one:
                cursor = -1
                while cursor != 0:
                    cursor, keys = one.scan(max(0, cursor), f"{BULK_PREFIX}*", SCAN_COUNT)
                    pipeline = one.pipeline(transaction=False)
                    for key in keys:
                        pipeline.get(key)
                    count += sum(value is not None for value in pipeline.execute())
        return count


def own_key(one: Any, slots: range) -> str:
    """A key of these slots."""
    number = 0
    while int(one.execute_command("CLUSTER KEYSLOT", f"last:{number}")) not in slots:
        number += 1
    return f"last:{number}"
