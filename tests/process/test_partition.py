"""Two real nodes that cannot reach each other, one way or both, while a third reaches both.

Gossip finds everybody alive by the third one, so nothing is taken over; whoever is asked for a slot
of a primary that it cannot reach gets there by a detour (rule 10). With root the packets vanish and
nobody is told; elsewhere a gate refuses the connections.
"""

from __future__ import annotations

import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from scripts import network_namespaces
from scripts.network_namespaces import Namespaces
from tests.process.cluster_processes import READY_S, SMALL, make_cluster, states_seen_by, wait_for
from tests.process.gates import Gates

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvstore.cli.local_cluster import LocalCluster, LocalNode

KEYS = 6
SLOTS = 256
TIMEOUT_S = 25


class Network(Protocol):
    """What can be taken away between two nodes, by their numbers."""

    def lose(self, sender: int, receiver: int) -> None:
        """Nothing that one sends to the other arrives."""

    def find(self, sender: int, receiver: int) -> None:
        """As before."""


@contextmanager
def cluster_on_a_network(
    directory: Path, *, vanish: bool
) -> Iterator[tuple[LocalCluster, Network]]:
    cluster = make_cluster(directory, extra=[*SMALL, "--insecure"])
    if vanish:
        with Namespaces(3, "rkp", "198.18.80") as namespaces:
            namespaces.place(cluster)
            try:
                cluster.start()
                cluster.wait_ready(READY_S)
                yield cluster, namespaces
            finally:
                cluster.stop()
        return
    with Gates([node.port for node in cluster.nodes]) as gates:
        founders = ["--founders", ",".join(gates.addresses)]
        try:
            for node, address in zip(cluster.nodes, gates.addresses, strict=True):
                node.start(founders, [*SMALL, "--advertised-address", address])
            cluster.wait_ready(READY_S)
            yield cluster, gates
        finally:
            cluster.stop()


def put(node: LocalNode, key: str, value: bytes) -> int:
    """Through this node's HTTP port, once; the status."""
    url = f"http://{node.host}:{node.http_port}/v1/kv/{key}?timeout={TIMEOUT_S}"
    request = urllib.request.Request(url, data=value, method="PUT")
    with urllib.request.urlopen(request, timeout=2 * TIMEOUT_S) as answer:
        return int(answer.status)


def place(cluster: LocalCluster, key: str) -> dict[str, Any]:
    """Where a key's slot lives, as the third node sees it."""
    found: dict[str, Any] = cluster.nodes[2].fetch(f"/v1/cluster/slots?key={key}")["slots"][0]
    return found


def led_by_the_first(cluster: LocalCluster) -> list[str]:
    names = (f"k{number}" for number in range(1_000))
    led = (name for name in names if place(cluster, name)["primary"] == "n1")
    return [next(led) for _ in range(KEYS)]


def unlinked(node: LocalNode) -> bool:
    status = node.fetch("/v1/cluster/node")
    return status is None or any("no connection" in text for text in status["problems"])


@pytest.mark.parametrize(
    "vanish",
    [True, False] if network_namespaces.available() else [False],
    ids=lambda vanish: "packets vanish" if vanish else "connections are refused",
)
def test_who_cannot_reach_a_primary_goes_round_and_takes_nothing(
    tmp_path: Path, vanish: bool
) -> None:
    with cluster_on_a_network(tmp_path, vanish=vanish) as (cluster, network):
        second = cluster.nodes[1]
        keys = led_by_the_first(cluster)
        before = [place(cluster, key)["ballot"] for key in keys]
        for lost in ([(2, 1)], [(1, 2)], [(1, 2), (2, 1)]):
            for way in lost:
                network.lose(*way)
            assert {put(second, key, b"v") for key in keys} <= {200, 201}
            assert set(states_seen_by(cluster, 2).values()) == {"alive"}
            for way in lost:
                network.find(*way)
            wait_for(lambda: not any(map(unlinked, cluster.nodes)), "all are linked again", 30)
        assert [place(cluster, key)["ballot"] for key in keys] == before, "nobody took anything"
        assert all(place(cluster, key)["primary"] == "n1" for key in keys)
