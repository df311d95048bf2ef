"""Owners computed in a process of its own are those that are computed here."""

from __future__ import annotations

import sys

import pytest

from cluster.system_slot import owners
from cluster.topology import Node, Topology, TopologyError, decode_topology, found_topology
from kvstore.node.aside import SMALL_SLOTS, aside


def cluster(nodes: int, slot_count: int, replicas: int = 3) -> Topology:
    listed = [Node(n * 7_919, f"n{n}", f"h{n}:1", f"h{n}:2") for n in range(1, nodes + 1)]
    return found_topology("c1", "test", listed, slot_count=slot_count, replicas=replicas)


@pytest.mark.parametrize("slot_count", [64, 2 * SMALL_SLOTS])
@pytest.mark.parametrize("nodes", [1, 2, 5])
async def test_the_owners_are_the_same(nodes: int, slot_count: int) -> None:
    topology = cluster(nodes, slot_count)
    assert await aside(owners, topology) == owners(topology)


async def test_errors_are_raised_here() -> None:
    with pytest.raises(TopologyError):
        await aside(decode_topology, b"\xc1")


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere/python"])
async def test_a_process_that_fails_costs_no_more_than_time(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    topology = cluster(3, 2 * SMALL_SLOTS)
    assert await aside(owners, topology) == owners(topology)
