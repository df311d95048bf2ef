"""Three etcd members, asked through the HTTP gateway of their leader.

etcd promises what we promise: an answered write is fsynced on a majority, a read is linearizable.
Its gateway translates JSON with base64 into gRPC, which costs it; Go programs speak gRPC and are
faster. The gateway is what a Python program and wrk can use alike. Asking the leader saves it a hop
that any other member would add.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from kvstore.cli.local_cluster import HOST
from scripts.bench import free_ports
from scripts.bench_loops import (
    TASKS,
    WRK_KEYS_MAX,
    PhaseFailed,
    at_half_of_peak,
    in_tasks,
    repeat,
    run_wrk,
)
from scripts.compare.processes import Processes
from scripts.compare.store import Entrant, executable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from scripts.bench_figures import Timing
    from scripts.bench_loops import Opened
    from scripts.compare.store import Load

MEMBERS: Final = 3
READY_TIMEOUT_S: Final = 60.0
TIMEOUT_S: Final = 30.0
BATCH_KEYS: Final = 100
"""etcd's own limit for a transaction is 128 operations."""
FILL_BYTES: Final = 1_000_000
"""A request may have 1.5 MiB, base64 included."""
QUOTA_BYTES: Final = 8 * 1024**3
JSON: Final = {"Content-Type": "application/json"}

WRK_SCRIPT: Final = """\
local keys, value = {{{keys}}}, "{value}"
local headers = {{["Content-Type"] = "application/json"}}
function request()
  local body = '{{"key":"' .. keys[math.random(#keys)] .. '"{rest}}}'
  return wrk.format("POST", "{path}", headers, body)
end
"""


class Etcd:
    """Three processes.

    Raises:
        Missing: etcd is not installed.
    """

    name = "etcd"
    keeps = True

    def __init__(self, directory: Path) -> None:
        self._server = executable("etcd", "etcd-server")
        self._directory = directory
        self._processes = Processes(directory)
        first = free_ports(2 * MEMBERS)
        self._ports = list(range(first, first + MEMBERS))
        self._leader_port = first
        self._connection: http.client.HTTPConnection | None = None

    @property
    def version(self) -> str:
        """Of the server."""
        said = subprocess.run(
            [self._server, "--version"], capture_output=True, text=True, check=False
        )
        found = re.search(r"etcd Version: (\S+)", said.stdout)
        return f"etcd {found[1] if found else '?'}"

    @property
    def pids(self) -> list[int]:
        """One for each member."""
        return self._processes.pids

    def start(self) -> None:
        """Return when there is a leader that serves."""
        peers = {port: f"http://{HOST}:{port + MEMBERS}" for port in self._ports}
        founders = ",".join(f"m{port}={peer}" for port, peer in peers.items())
        for port, peer in peers.items():
            client = f"http://{HOST}:{port}"
            settings = {
                "name": f"m{port}",
                "data-dir": str(self._directory / f"m{port}"),
                "listen-client-urls": client,
                "advertise-client-urls": client,
                "listen-peer-urls": peer,
                "initial-advertise-peer-urls": peer,
                "initial-cluster": founders,
                "initial-cluster-state": "new",
                "quota-backend-bytes": str(QUOTA_BYTES),
                "logger": "zap",
                "log-level": "error",
            }
            flags = [f"--{name}={value}" for name, value in settings.items()]
            self._processes.start(f"etcd-{port}", [self._server, *flags])
        self._processes.wait_until(self._has_leader, READY_TIMEOUT_S)
        self._connection = http.client.HTTPConnection(HOST, self._leader_port, timeout=TIMEOUT_S)
        self._post("/v3/kv/range", {"key": encoded("any")})

    def _has_leader(self) -> bool:
        leading = None
        for port in self._ports:
            request = urllib.request.Request(
                f"http://{HOST}:{port}/v3/maintenance/status", b"{}", JSON
            )
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                    status = json.load(answer)
            except (OSError, urllib.error.URLError, http.client.HTTPException):
                return False
            if status.get("leader") == status["header"]["member_id"]:
                leading = port
        if leading is not None:
            self._leader_port = leading
        return leading is not None

    def stop(self) -> None:
        """Stop all members."""
        if self._connection is not None:
            self._connection.close()
        self._processes.stop()

    def fill(self, load: Load) -> None:
        """Store every key once, many in a transaction."""
        count = max(1, min(BATCH_KEYS, FILL_BYTES // (2 * len(load.value))))
        for start in range(0, len(load.stored), count):
            some = load.stored[start : start + count]
            self._post("/v3/kv/txn", transaction("requestPut", some, load.value))

    @property
    def entrants(self) -> list[Entrant]:
        """One; it has no increment of its own."""
        tasks = f"-{TASKS}-tasks"
        return [
            Entrant(
                "etcd",
                client="http.client, aiohttp and wrk on the leader's JSON gateway",
                promise="write: fsynced on 2 of 3; read: linearizable",
                phases={
                    "put": self._put,
                    "get": self._get,
                    f"put_many-{BATCH_KEYS}": self._put_many,
                    f"get_many-{BATCH_KEYS}": self._get_many,
                    f"put{tasks}": lambda load, s: in_tasks(self._opened_put(load), s),
                    f"get{tasks}": lambda load, s: in_tasks(self._opened_get(load), s),
                    "put-half-peak": lambda load, s: at_half_of_peak(self._opened_put(load), s),
                    "get-half-peak": lambda load, s: at_half_of_peak(self._opened_get(load), s),
                    "http-put": self._wrk_put,
                    "http-get": self._wrk_get,
                },
            )
        ]

    def _post(self, path: str, document: Any) -> Any:
        """One request on the one connection.

        Raises:
            PhaseFailed: it was not answered well.
        """
        assert self._connection is not None
        self._connection.request("POST", path, json.dumps(document), JSON)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != http.client.OK:
            raise PhaseFailed(f"etcd answered {answer.status}: {body[:200]!r}")
        return json.loads(body)

    def _put(self, load: Load, seconds: float) -> Timing:
        value = encoded(load.value)
        return repeat(
            lambda: self._post(
                "/v3/kv/put", {"key": encoded(random.choice(load.drawn)), "value": value}
            ),
            seconds,
        )

    def _get(self, load: Load, seconds: float) -> Timing:
        return repeat(
            lambda: self._post("/v3/kv/range", {"key": encoded(random.choice(load.drawn))}), seconds
        )

    def _put_many(self, load: Load, seconds: float) -> Timing:
        def call() -> None:
            self._post("/v3/kv/txn", transaction("requestPut", load.draw(BATCH_KEYS), load.value))

        return repeat(call, seconds, BATCH_KEYS)

    def _get_many(self, load: Load, seconds: float) -> Timing:
        def call() -> None:
            found = self._post("/v3/kv/txn", transaction("requestRange", load.draw(BATCH_KEYS)))
            assert len(found["responses"]) == BATCH_KEYS

        return repeat(call, seconds, BATCH_KEYS)

    def _opened_put(self, load: Load) -> Opened:
        value = encoded(load.value)
        return self._calling(
            "/v3/kv/put", lambda: {"key": encoded(random.choice(load.drawn)), "value": value}
        )

    def _opened_get(self, load: Load) -> Opened:
        return self._calling("/v3/kv/range", lambda: {"key": encoded(random.choice(load.drawn))})

    @asynccontextmanager
    async def _calling(
        self, path: str, document: Callable[[], Any]
    ) -> AsyncIterator[Callable[[], Awaitable[object]]]:
        url = f"http://{HOST}:{self._leader_port}{path}"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=TASKS)) as session:

            async def call() -> None:
                async with session.post(url, json=document()) as answer:
                    answer.raise_for_status()
                    await answer.json()

            yield call

    def _wrk_put(self, load: Load, seconds: float) -> Timing:
        return self._wrk("/v3/kv/put", ',"value":"\' .. value .. \'"', load, seconds)

    def _wrk_get(self, load: Load, seconds: float) -> Timing:
        return self._wrk("/v3/kv/range", "", load, seconds)

    def _wrk(self, path: str, rest: str, load: Load, seconds: float) -> Timing:
        script = WRK_SCRIPT.format(
            keys=",".join(f'"{encoded(key)}"' for key in load.drawn[:WRK_KEYS_MAX]),
            value=encoded(load.value),
            path=path,
            rest=rest,
        )
        url = f"http://{HOST}:{self._leader_port}"
        return run_wrk(script, url, self._directory, seconds)


def encoded(text: str | bytes) -> str:
    """A key or value in the gateway's JSON."""
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


def transaction(operation: str, keys: Any, value: bytes | None = None) -> Any:
    """All or nothing: the only way to have many keys in one request."""
    more = {} if value is None else {"value": encoded(value)}
    return {"success": [{operation: {"key": encoded(key), **more}} for key in keys]}
