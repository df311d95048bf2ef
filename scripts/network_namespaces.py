"""Nodes on a network of their own that can be cut: one namespace each, joined by a bridge.

Only what is made here is touched: namespaces and devices whose names begin with ``rkv``, and
addresses of a subnet reserved for benchmarks (RFC 2544). A node is *cut off* by taking its port out
of the bridge's forwarding: packets vanish, no connection is told anything. Needs root and
``ip``; where they are missing, `available` says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from kvstore.cli.local_cluster import LocalCluster

SUBNET: Final = "198.18.77"
BRIDGE: Final = "rkvbr"
HOST_PART: Final = 10
"""Node n has the address ``SUBNET.(HOST_PART + n)``; this machine's own is ``SUBNET.1``."""


def available() -> bool:
    """Whether namespaces can be made here."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("bridge") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "rkvtry"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", "rkvtry"], capture_output=True, check=False)
    return made.returncode == 0


class Namespaces:
    """A bridge with this many nodes on it; a context manager that leaves nothing behind."""

    def __init__(self, count: int) -> None:
        self._numbers = range(1, count + 1)

    def __enter__(self) -> Self:
        self._remove()
        try:
            _run("ip", "link", "add", BRIDGE, "type", "bridge")
            _run("ip", "addr", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
            _run("ip", "link", "set", BRIDGE, "up")
            for number in self._numbers:
                self._add(number)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._remove()

    def place(self, cluster: LocalCluster) -> None:
        """Give each node of a cluster that is not started its namespace."""
        for number, node in zip(self._numbers, cluster.nodes, strict=True):
            node.host = f"{SUBNET}.{HOST_PART + number}"
            node.prefix = ["ip", "netns", "exec", f"rkv{number}"]

    def cut(self, number: int) -> None:
        """Nothing leaves or reaches this node any more."""
        _run("bridge", "link", "set", "dev", f"rkv{number}a", "state", "0")

    def mend(self, number: int) -> None:
        """As before."""
        _run("bridge", "link", "set", "dev", f"rkv{number}a", "state", "3")

    def _add(self, number: int) -> None:
        name, inner, outer = f"rkv{number}", f"rkv{number}b", f"rkv{number}a"
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
        _run("ip", "link", "set", inner, "netns", name)
        _run("ip", "link", "set", outer, "master", BRIDGE, "up")
        inside = ["ip", "-n", name]
        _run(*inside, "addr", "add", f"{SUBNET}.{HOST_PART + number}/24", "dev", inner)
        _run(*inside, "link", "set", inner, "up")
        _run(*inside, "link", "set", "lo", "up")

    def _remove(self) -> None:
        for number in self._numbers:
            _run("ip", "netns", "del", f"rkv{number}", check=False)
            _run("ip", "link", "del", f"rkv{number}a", check=False)
        _run("ip", "link", "del", BRIDGE, check=False)


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True)
