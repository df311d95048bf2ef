"""The cluster that is hurt: five node processes, their network, disks and clocks.

Where this machine lets us, each node has a network namespace; else all are on loopback and reach
each other through proxies (`tests.nemesis.proxies`), and only clients are never cut off. The last
of the founders keeps its data on a small file system of its own, which can be filled. Every node
has a wall clock that can be put off (`tests.nemesis.bent`). On every exit the processes are ended
by their ids and namespaces and mounts are removed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final, Self

from kvstore.cli.local_cluster import LocalCluster, LocalNode
from scripts import network_namespaces
from scripts.network_namespaces import Namespaces
from tests.nemesis.bent import NOTHING, set_offset
from tests.nemesis.proxies import Proxies
from tests.process.cluster_processes import free_port_range

if TYPE_CHECKING:
    from pathlib import Path

FOUNDERS: Final = 5
PLACES: Final = 7
"""Namespaces and ports: the founders and those that join."""

NAME, SUBNET = "rkn", "198.18.78"
SLOT_COUNT: Final = 256
SMALL_DISK: Final = "768m"
RESERVE_BYTES: Final = 128 << 20
READY_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.1
FETCH_SECONDS: Final = 5.0
SETTINGS: Final = (
    *("--scrub-bytes-per-s", "16MiB", "--disk-reserve-bytes", str(RESERVE_BYTES), "--insecure"),
    *("--log-format", "text"),
)


def fetch(node: LocalNode, path: str) -> Any:
    """A JSON document of a node, None if it does not answer in time; patient on a busy machine."""
    url = f"http://{node.host}:{node.http_port}{path}"
    with suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=FETCH_SECONDS) as got:
        return json.load(got)
    return None


class Arena:
    """A context manager; inside, the cluster serves."""

    def __init__(
        self, directory: Path, plant: str = NOTHING, *, with_proxies: bool = False
    ) -> None:
        self._plant = plant
        self.directory = directory
        ports = free_port_range(2 * PLACES)
        extra = ["--slot-count", str(SLOT_COUNT), *SETTINGS]
        self.cluster = LocalCluster(directory / "nodes", FOUNDERS, ports, ports + PLACES, extra)
        node_ports = list(range(ports, ports + PLACES))
        self.links: Namespaces | Proxies
        """What faults of the network are done to."""
        if with_proxies or not network_namespaces.available():
            self.links = Proxies(node_ports)
        else:
            self.links = Namespaces(PLACES, NAME, SUBNET)
        self.small = self.cluster.nodes[-1]
        """The node whose disk can be filled, if `has_small_disk`."""
        self.has_small_disk = False
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._exits.enter_context(self.links)
            for number, node in enumerate(self.cluster.nodes, 1):
                self._place(node, number)
            self._mount()
            self._exits.callback(self.kill)
            self.cluster.start()
            self.cluster.wait_ready(READY_SECONDS)
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def kill(self) -> None:
        """End all processes, by their ids."""
        for node in self.nodes:
            node.signal(signal.SIGKILL)
        for node in self.nodes:
            if node.process is not None:
                node.process.wait()

    @property
    def nodes(self) -> list[LocalNode]:
        """Those that should run now."""
        return self.cluster.nodes

    @property
    def http_addresses(self) -> list[str]:
        """Of the founders."""
        return [f"{node.host}:{node.http_port}" for node in self.nodes[:FOUNDERS]]

    def number(self, node: LocalNode) -> int:
        """Of its place, from 1."""
        return int(node.name[1:])

    # -- nodes -------------------------------------------------------------------------------

    def start(self, node: LocalNode) -> None:
        """Start a node that has ended, on the disk that it has."""
        self.end(node)
        self.cluster.start_node(node)

    def end(self, node: LocalNode) -> None:
        """Kill -9, and wait until it is gone."""
        node.signal(signal.SIGKILL)
        if node.process is not None:
            node.process.wait()

    def wipe(self, node: LocalNode) -> None:
        """All that is on the disk of an ended node is lost."""
        for path in node.directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def replace(self, node: LocalNode, by: LocalNode) -> None:
        """Start an ended node on its empty disk, in the place of its former self."""
        self.end(node)
        node.start(["--join", by.address, "--replace", node.name], list(SETTINGS))

    def add(self) -> LocalNode:
        """One node more; it joins by itself."""
        last, number = self.nodes[FOUNDERS - 1], len(self.nodes) + 1
        step = number - FOUNDERS
        directory = self.directory / "nodes" / f"n{number}"
        node = LocalNode(f"n{number}", last.port + step, last.http_port + step, directory)
        self._place(node, number)
        self.nodes.append(node)
        self.cluster.start_node(node)
        return node

    def remove(self, node: LocalNode) -> None:
        """Forget a node that has left; its disk is free for another."""
        self.end(node)
        self.nodes.remove(node)
        shutil.rmtree(node.directory)

    def set_clock(self, node: LocalNode, offset_ms: int) -> None:
        """Put its wall clock off."""
        set_offset(self._clock_file(node), offset_ms)

    def fill_disk(self, free_bytes: int) -> None:
        """Leave the small disk with so much."""
        found = os.statvfs(self.small.directory)
        excess = found.f_bavail * found.f_frsize - free_bytes
        with suppress(OSError), self._ballast.open("ab") as stream:
            while excess > 0:
                stream.write(bytes(min(excess, 1 << 20)))
                excess -= 1 << 20

    def empty_disk(self) -> None:
        """Give the small disk its room back."""
        self._ballast.unlink(missing_ok=True)

    # -- how it is ---------------------------------------------------------------------------

    def wait_ready(self, node: LocalNode, seconds: float) -> bool:
        """Whether a node serves within a time, or has ended in it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if fetch(node, "/health/ready") is not None:
                return True
            if node.process is None or node.process.poll() is not None:
                return False
            time.sleep(POLL_SECONDS)
        return False

    def unwell(self) -> str:
        """What keeps the cluster from being whole; empty if nothing does."""
        names = {node.name for node in self.nodes}
        for node in self.nodes:
            cluster, figures = fetch(node, "/v1/cluster"), fetch(node, "/v1/cluster/node")
            if cluster is None or figures is None:
                return f"{node.name} does not answer"
            states = {n["name"]: n["state"] for n in cluster["nodes"]}
            if states.keys() != names or not set(states.values()) <= {"alive", "suspect"}:
                return f"{node.name} sees {states}"
            if not figures["ready"]:
                return f"{node.name}: {figures['not_ready_reason']}"
            if figures["damaged_copies"] or figures["slots_moving"]:
                return (
                    f"{node.name}: {figures['damaged_copies']} damaged copies, "
                    f"{figures['slots_moving']} slots moving"
                )
        return ""

    def difference(self) -> str:
        """Where replicas are not where their primary is; empty if all are equal."""
        places: dict[int, dict[str, Any]] = {}
        for node in self.nodes:
            answer = fetch(node, f"/v1/cluster/slots?from=0&limit={SLOT_COUNT}")
            if answer is None:
                return f"{node.name} does not answer"
            for slot in answer["slots"]:
                places.setdefault(slot["slot"], {})[node.name] = slot
        for number, told in places.items():
            primaries = [name for name, slot in told.items() if slot["role"] == "primary"]
            if len(primaries) != 1:
                return f"slot {number} has the primaries {primaries}"
            lead = told[primaries[0]]
            members = {name: told.get(name, {}) for name in lead["members"]}
            stands = {(slot.get("ballot"), slot.get("sequence")) for slot in members.values()}
            if lead["learners"] or stands != {(lead["ballot"], lead["committed"])}:
                return f"slot {number}: {members}"
        return ""

    def scrubs(self) -> dict[str, tuple[int, int]]:
        """Of each node that answers: how often it compared all that it leads, what it found."""
        told = {node.name: fetch(node, "/v1/cluster/node") for node in self.nodes}
        return {
            name: (figures["scrub_passes_total"], figures["damage_found_total"])
            for name, figures in told.items()
            if figures is not None
        }

    def uncompared(self, before: dict[str, tuple[int, int]]) -> str:
        """Who has not compared all of its slots twice since then (the first may be a rest)."""
        now = self.scrubs()
        for name, (passes, _) in before.items():
            if now.get(name, (0, 0))[0] < passes + 2:
                return f"{name} has not compared the copies of its slots"
        return ""

    def wait_for(self, question: Any, seconds: float) -> str:
        """Ask until nothing is wrong; returns what is after that time."""
        deadline = time.monotonic() + seconds
        while (wrong := question()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return str(wrong)

    # -- pieces ------------------------------------------------------------------------------

    @property
    def _ballast(self) -> Path:
        return self.small.directory / "lost+found"

    def _clock_file(self, node: LocalNode) -> Path:
        return self.directory / f"{node.name}.clock"

    def _place(self, node: LocalNode, number: int) -> None:
        """Network and clock."""
        set_offset(self._clock_file(node), 0)
        links = NOTHING
        if isinstance(self.links, Proxies):
            file = self.directory / f"{node.name}.links"
            self.links.write_map(file, number)
            links = str(file)
        else:
            self.links.place_node(node, number)
        bent = [
            sys.executable,
            "-m",
            "tests.nemesis.bent",
            str(self._clock_file(node)),
            self._plant,
            links,
        ]
        node.prefix = [*node.prefix, *bent]

    def _mount(self) -> None:
        """A small disk for the last founder; without root it has what all have."""
        where = self.small.directory
        where.mkdir()
        if os.geteuid() != 0:
            return
        command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "none", str(where)]
        self.has_small_disk = subprocess.run(command, check=False).returncode == 0
        if self.has_small_disk:
            self._exits.callback(subprocess.run, ["umount", "--lazy", str(where)], check=False)
