"""Nodes on a network of their own that can be cut: one namespace each, joined by a bridge.

Only what is made here is touched: namespaces and devices whose names begin with ``rkv`` (or what
else is given), and addresses of a subnet reserved for benchmarks (RFC 2544). A node is *cut off* by
taking its port out of the bridge's forwarding: packets vanish, no connection is told anything. What
one node sends to another is *lost* when its neighbour table names a hardware address that nobody
has. Needs root and ``ip``; where they are missing, `available` says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from kvstore.cli.local_cluster import LocalCluster, LocalNode

NAME: Final = "rkv"
SUBNET: Final = "198.18.77"
HOST_PART: Final = 10
"""Node n has the address ``SUBNET.(HOST_PART + n)``; this machine's own is ``SUBNET.1``."""

NOBODY: Final = "02:00:00:00:00:00"
SLOW: Final = (
    ("netem", "delay", "30ms", "15ms"),
    ("tbf", "rate", "2mbit", "burst", "16kb", "latency", "300ms"),
)
"""Ways to slow a link down; the first that the kernel has is taken."""


def available() -> bool:
    """Whether namespaces can be made here."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("bridge") is None:
        return False
    name = f"rkvtry{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.returncode == 0


class Namespaces:
    """A bridge with this many nodes on it; a context manager that leaves nothing behind.

    Args:
        count: Places for nodes.
        name: Of two at a time each needs its own, and its own subnet.
        subnet: The first three parts of all addresses.
    """

    def __init__(self, count: int, name: str = NAME, subnet: str = SUBNET) -> None:
        self._numbers = range(1, count + 1)
        self._name = name
        self._subnet = subnet
        self._bridge = f"{name}br"

    def __enter__(self) -> Self:
        self._remove()
        try:
            _run("ip", "link", "add", self._bridge, "type", "bridge")
            _run("ip", "addr", "add", f"{self._subnet}.1/24", "dev", self._bridge)
            _run("ip", "link", "set", self._bridge, "up")
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
        for number, node in zip(self._numbers, cluster.nodes, strict=False):
            self.place_node(node, number)

    def place_node(self, node: LocalNode, number: int) -> None:
        """Give a node that is not started a namespace."""
        assert number in self._numbers
        node.host = self._host(number)
        node.prefix = ["ip", "netns", "exec", f"{self._name}{number}"]

    def cut(self, number: int) -> None:
        """Nothing leaves or reaches this node any more."""
        _run("bridge", "link", "set", "dev", f"{self._name}{number}a", "state", "0")

    def mend(self, number: int) -> None:
        """As before."""
        _run("bridge", "link", "set", "dev", f"{self._name}{number}a", "state", "3")

    def lose(self, sender: int, receiver: int) -> None:
        """What one node sends to another vanishes; the other way nothing changes."""
        self._neighbour("replace", sender, receiver, "lladdr", NOBODY, "nud", "permanent")

    def find(self, sender: int, receiver: int) -> None:
        """As before."""
        self._neighbour("del", sender, receiver)

    def slow(self, number: int) -> None:
        """What is sent to this node arrives late."""
        device = f"{self._name}{number}a"
        for way in SLOW:
            command = ["tc", "qdisc", "replace", "dev", device, "root", *way]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return

    def hasten(self, number: int) -> None:
        """As before."""
        _run("tc", "qdisc", "del", "dev", f"{self._name}{number}a", "root", check=False)

    def _neighbour(self, what: str, sender: int, receiver: int, *how: str) -> None:
        inside = ["ip", "-n", f"{self._name}{sender}"]
        device = f"{self._name}{sender}b"
        _run(*inside, "neigh", what, self._host(receiver), *how, "dev", device, check=what != "del")

    def _host(self, number: int) -> str:
        return f"{self._subnet}.{HOST_PART + number}"

    def _add(self, number: int) -> None:
        name = f"{self._name}{number}"
        inner, outer = f"{name}b", f"{name}a"
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
        _run("ip", "link", "set", inner, "netns", name)
        _run("ip", "link", "set", outer, "master", self._bridge, "up")
        inside = ["ip", "-n", name]
        _run(*inside, "addr", "add", f"{self._host(number)}/24", "dev", inner)
        _run(*inside, "link", "set", inner, "up")
        _run(*inside, "link", "set", "lo", "up")

    def _remove(self) -> None:
        for number in self._numbers:
            _run("ip", "netns", "del", f"{self._name}{number}", check=False)
            _run("ip", "link", "del", f"{self._name}{number}a", check=False)
        _run("ip", "link", "del", self._bridge, check=False)


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True)
