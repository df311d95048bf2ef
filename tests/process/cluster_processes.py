"""Real node processes for tests: a cluster under a directory, on ports that were free."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import pytest

from kvstore.cli.local_cluster import LocalCluster
from kvstore.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

READY_S = 30.0
SPARE = 3
"""Ports kept for nodes that join."""

SMALL = ["--slot-count", "256"]
"""Fewer slots start faster; what is tested does not depend on their number."""


def free_port_range(count: int) -> int:
    """The first of `count` neighbouring ports that were free a moment ago."""
    for first in range(20_000 + os.getpid() % 500 * 20, 60_000, 2 * count):
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise AssertionError("no free ports")


def is_free(port: int) -> bool:
    """Whether it could be bound just now."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def make_cluster(directory: Path, nodes: int = 3, extra: list[str] | None = None) -> LocalCluster:
    """A cluster that is not started."""
    each = nodes + SPARE
    first = free_port_range(2 * each)
    return LocalCluster(directory, nodes, first, first + each, SMALL if extra is None else extra)


@contextmanager
def running_cluster(
    directory: Path, nodes: int = 3, extra: list[str] | None = None
) -> Iterator[LocalCluster]:
    """A cluster that serves; ended by the ids of its processes."""
    cluster = make_cluster(directory, nodes, extra)
    cluster.start()
    try:
        cluster.wait_ready(READY_S)
        yield cluster
    finally:
        cluster.stop()


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Until it holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def states_seen_by(cluster: LocalCluster, viewer: int) -> dict[str, str]:
    """Each node's state as node number `viewer` (from 0) sees it."""
    document = cluster.nodes[viewer].fetch("/v1/cluster")
    return {} if document is None else {node["name"]: node["state"] for node in document["nodes"]}


def command(*arguments: str, url: str = "", stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    environment = {name: v for name, v in os.environ.items() if not name.startswith("KVSTORE_")}
    if url:
        environment["KVSTORE_URL"] = url
    done = subprocess.run(
        [sys.executable, "-m", "kvstore", *arguments],
        input=stdin,
        capture_output=True,
        timeout=50,
        check=False,
        env=environment,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def command_here(*arguments: str, url: str = "") -> subprocess.CompletedProcess[str]:
    """As `command`, in this process: without an interpreter and its imports for each."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in [name for name in os.environ if name.startswith("KVSTORE_")]:
            patch.delenv(name)
        if url:
            patch.setenv("KVSTORE_URL", url)
        patch.setattr(sys, "argv", ["kvstore", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    status = ended.value.code
    assert isinstance(status, int)
    texts = (stream.buffer.getvalue().decode() for stream in (out, err))
    return subprocess.CompletedProcess(arguments, status, *texts)


async def wait_for_async(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """As `wait_for`, on an event loop."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.02)
