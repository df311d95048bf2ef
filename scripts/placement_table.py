"""Print the tables of `docs/decisions/0002-placement.md`: balance, movement and time of placements.

Every way of placing is a function from a topology to the owners of each slot, the primary first. It
is given the same clusters and the same changes: three joins, three leaves, three doubled weights.
Shown is the worst of three, as a multiple of the least possible: the newcomer's fair share, what
the leaver held, what the heavier node's share grew by. Everything is seeded; only the processor
times differ from run to run.
"""

from __future__ import annotations

import random
import sys
import time
from bisect import bisect_left
from heapq import nsmallest
from itertools import islice
from math import floor, log
from typing import TYPE_CHECKING, NamedTuple

import mmh3

from cluster.placement import LOAD_MAX, place
from cluster.shares import primary_shares, replica_shares
from cluster.topology import (
    Node,
    Topology,
    found_topology,
    with_node,
    with_weight,
    without_node,
)
from scripts.placement_min_cost import Owners, min_cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RING_POINTS = 128


def ringkv(topology: Topology) -> Owners:
    """The product's own."""
    return place(topology).owners


def rendezvous(topology: Topology) -> Owners:
    """Highest random weight (Thaler and Ravishankar, 1998), weights by Mosharaf's logarithm."""
    nodes = [(node.id, node.id.to_bytes(8, "big"), node.weight) for node in topology.nodes]
    owners = []
    for slot in range(topology.slot_count):
        scores = (
            (-log((mmh3.hash(name, slot, signed=False) + 0.5) / 2**32) / weight, id_)
            for id_, name, weight in nodes
        )
        owners.append(tuple(id_ for _, id_ in nsmallest(topology.replicas, scores)))
    return owners


def jump(topology: Topology) -> Owners:
    """Jump hash (Lamping and Veach, 2014) over the nodes in order of arrival, no weights."""
    arrivals = sorted(topology.nodes, key=lambda node: int(node.name[1:]))
    owners = []
    for slot in range(topology.slot_count):
        chosen: dict[int, None] = {}
        attempt = 0
        while len(chosen) < topology.replicas:
            chosen[arrivals[_jump(slot, attempt, len(arrivals))].id] = None
            attempt += 1
        owners.append(tuple(chosen))
    return owners


def _jump(slot: int, attempt: int, buckets: int) -> int:
    key = mmh3.hash64(slot.to_bytes(8, "big"), attempt, signed=False)[0]
    bucket, following = -1, 0
    while following < buckets:
        bucket = following
        key = (key * 2862933555777941757 + 1) % 2**64
        following = floor((bucket + 1) * 2**31 / ((key >> 33) + 1))
    return bucket


def plain_ring(topology: Topology) -> Owners:
    """Karger's ring with 128 random points per unit of weight."""
    return [tuple(islice(walk, topology.replicas)) for walk in _ring_walks(topology)]


def bounded_ring(topology: Topology) -> Owners:
    """The same ring, slots in order, full nodes skipped (Mirrokni et al., 2018), replicas only."""
    shares = replica_shares(topology.nodes, topology.slot_count, topology.replicas)
    limits = {
        node.id: max(floor(share * LOAD_MAX), floor(share) + 1)
        for node, share in zip(topology.nodes, shares, strict=True)
    }
    owners = []
    for walk in _ring_walks(topology):
        candidates = list(islice((node for node in walk if limits[node] > 0), topology.replicas))
        for node in candidates:
            limits[node] -= 1
        owners.append(tuple(candidates))
    return owners


def _ring_walks(topology: Topology) -> Iterator[Iterator[int]]:
    points = sorted(
        (mmh3.hash64(node.id.to_bytes(8, "big"), index, signed=False)[0], node.id)
        for node in topology.nodes
        for index in range(round(RING_POINTS * node.weight))
    )
    for slot in range(topology.slot_count):
        token = mmh3.hash64(slot.to_bytes(8, "big"), 7, signed=False)[0]
        start = bisect_left(points, (token, 0))
        ahead = (points[at % len(points)][1] for at in range(start, start + len(points)))
        yield iter(_distinct(ahead))


def _distinct(nodes: Iterator[int]) -> Iterator[int]:
    seen: set[int] = set()
    for node in nodes:
        if node not in seen:
            seen.add(node)
            yield node


class Figures(NamedTuple):
    """One row: loads over shares, movement over the least, seconds of one placement."""

    held: float
    led: float
    join: float
    leave: float
    weight: float
    seconds: float


def measure(way: Callable[[Topology], Owners], topology: Topology) -> Figures:
    """Place, change three times in each manner, and compare."""
    started = time.process_time()
    before = way(topology)
    seconds = time.process_time() - started
    held_shares = _shares(topology)
    led_shares = primary_shares(topology.nodes, topology.slot_count, list(held_shares.values()))
    held = dict.fromkeys(held_shares, 0)
    led = dict.fromkeys(held_shares, 0)
    for owners in before:
        led[owners[0]] += 1
        for owner in owners:
            held[owner] += 1

    zones = sorted({node.zone for node in topology.nodes})
    joins, leaves, weights = [], [], []
    for change, place_of_change in enumerate((0.1, 0.5, 0.8)):
        node = topology.nodes[int(len(topology.nodes) * place_of_change)]
        newcomer = _node(10_000 + change, zones[change % len(zones)], 1.0, random.Random(change))
        joined = with_node(topology, newcomer)
        joins.append(_moves(before, way(joined)) / _shares(joined)[newcomer.id])
        if len(topology.nodes) > topology.replicas:
            smaller = without_node(topology, node.id)
            leaves.append(_moves(before, way(smaller)) / held[node.id])
        heavier = with_weight(topology, node.id, node.weight * 2)
        grown = (share - held_shares[id_] for id_, share in _shares(heavier).items())
        least = sum(max(0.0, growth) for growth in grown)
        if least > 1 and way is not jump:
            weights.append(_moves(before, way(heavier)) / least)
    return Figures(
        max(held[id_] / share for id_, share in held_shares.items()),
        max(led[id_] / share for id_, share in zip(held_shares, led_shares, strict=True)),
        max(joins),
        max(leaves, default=0.0),
        max(weights, default=0.0),
        seconds,
    )


def _shares(topology: Topology) -> dict[int, float]:
    shares = replica_shares(topology.nodes, topology.slot_count, topology.replicas)
    return dict(zip((node.id for node in topology.nodes), shares, strict=True))


def _moves(before: Owners, after: Owners) -> int:
    return sum(len({*new} - {*old}) for old, new in zip(before, after, strict=True))


def _node(number: int, zone: str, weight: float, chance: random.Random) -> Node:
    id_ = chance.getrandbits(48) ^ number << 20
    return Node(id_, f"n{number}", f"h{number}:1", f"h{number}:2", zone, weight)


def cluster(count: int, *, zones: int = 1, weights: int = 1, slot_count: int = 16_384) -> Topology:
    """A cluster with its nodes dealt over zones, and weights 1 to ``weights`` dealt over those."""
    chance = random.Random(1)
    nodes = [
        _node(number, f"z{number % zones}", 1.0 + number // zones % weights, chance)
        for number in range(count)
    ]
    return found_topology("c1", "table", nodes, slot_count=slot_count)


def show(name: str, count: int, figures: Figures) -> None:
    """One line of a Markdown table."""
    moved = (f"{figure:.2f}" if figure else "-" for figure in figures[2:5])
    row = (name, str(count), f"{figures.held:.3f}", f"{figures.led:.3f}", *moved)
    print("|", " | ".join(row), f"| {figures.seconds:.2f} |", flush=True)


HEAD = "| {} | nodes | replicas | primaries | join | leave | weight | s |"


def main() -> None:
    """All tables; sizes may be given as arguments."""
    sizes = [int(argument) for argument in sys.argv[1:]] or [3, 10, 30, 100, 300, 1_000]
    print(HEAD.format("way"))
    print("| --- " * 8 + "|")
    for way in (ringkv, rendezvous, jump, plain_ring, bounded_ring, min_cost):
        for count in sizes:
            show(way.__name__, count, measure(way, cluster(count)))
    print()
    print(HEAD.format("ringkv with"))
    print("| --- " * 8 + "|")
    for zones, weights in ((3, 1), (5, 1), (1, 4), (3, 4)):
        for count in sizes:
            topology = cluster(count, zones=zones, weights=weights)
            show(f"{zones} zones, weights 1 to {weights}", count, measure(ringkv, topology))
    for count in sizes[-2:]:
        show("32,768 slots", count, measure(ringkv, cluster(count, slot_count=32_768)))


if __name__ == "__main__":
    main()
