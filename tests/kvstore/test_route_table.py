"""Routing tables as differences: whoever follows them has what a whole table would have told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cluster.ballot import Ballot, Position
from cluster.records import pack_version, unpack_version
from cluster.topology import Node, Topology, found_topology
from kvstore.client.routing import RoutingTable
from kvstore.node.directory import Directory, pack_leads
from kvstore.node.route_table import POSITIONS_BEHIND, RouteTable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvstore.wire.protocol import RouteQuery, Routes

SLOTS = 32
ME, N2, N3 = 1, 2, 3
ALIVE = dict.fromkeys((ME, N2, N3), "alive")


def topology(*ids: int, epoch: int = 1) -> Topology:
    nodes = [Node(n, f"n{n}", f"h{n}:1", f"h{n}:2") for n in ids]
    found = found_topology("c1", "test", nodes, slot_count=SLOTS)
    return msgspec.structs.replace(found, epoch=epoch)


class Site:
    """A node that publishes, and a client that follows."""

    def __init__(self, source: int = 77) -> None:
        self.directory = Directory(SLOTS + 1)
        self.table = RouteTable(ME, self.directory, self.led_of, source)
        self.client = RoutingTable(["h1:1"])
        self.led: dict[int, Position] = {}
        self.states = dict(ALIVE)
        self.topology = topology(ME, N2, N3)
        self.round = 0

    def lead(self, node: int, *slots: int) -> None:
        """A node takes slots over, with a new ballot."""
        self.round += 1
        position = Position(Ballot(self.round, node), 0)
        self.led = {n: p for n, p in self.led.items() if n not in slots}
        if node == ME:
            self.led |= dict.fromkeys(slots, position)
        led = [(slot, pack_version(*position)) for slot in slots]
        self.directory.take(node, pack_leads(led, (), complete=False))

    def led_of(self, slots: Iterable[int]) -> Iterable[tuple[int, bytes]]:
        return [(slot, pack_version(*self.led[slot])) for slot in slots if slot in self.led]

    def write(self, slot: int, operations: int) -> None:
        before = self.led[slot]
        self.led[slot] = Position(before.established, before.sequence + operations)

    def look(self) -> None:
        self.table.walk()
        self.table.look(self.topology, self.states, 0)

    def ask(self, client: RoutingTable | None = None) -> Routes:
        """The client fetches what it needs."""
        self.look()
        return self.fetch(self.client if client is None else client)

    def fetch(self, client: RoutingTable) -> Routes:
        query: RouteQuery = client.query("h1:1", 1).frame  # type: ignore[assignment]
        told = self.table.routes(query.source, query.since)
        client.load(told, 0.0, "h1:1")
        return told

    def check(self) -> None:
        """The client knows what one knows that fetches the whole table now."""
        fresh = RoutingTable(["h1:1"])
        fresh.load(self.table.routes(0, 0), 0.0)
        assert self.client.primaries == fresh.primaries
        assert set(self.client.addresses) == set(fresh.addresses)
        behind = [
            int.from_bytes(new, "big") - int.from_bytes(old, "big")
            for new, old in zip(fresh.positions, self.client.positions, strict=True)
        ]
        assert all(0 <= passed < POSITIONS_BEHIND for passed in behind)
        assert all(
            position.sequence - unpack_version(fresh.positions[slot]).sequence >= 0
            for slot, position in self.led.items()
        ), "what is told is committed"


def begun() -> Site:
    site = Site()
    site.lead(ME, *range(SLOTS // 2))
    site.lead(N2, *range(SLOTS // 2, SLOTS))
    assert site.ask().since == 0
    site.check()
    return site


def test_a_slot_that_moved_is_all_that_is_told() -> None:
    site = begun()
    site.lead(N3, 5)
    told = site.ask()
    assert (told.since, told.version) == (1, 2)
    assert (told.slots, len(told.positions), [n.id for n in told.nodes]) == (b"\0\5", 20, [N3])
    assert site.client.primaries[5] == "h3:1"
    site.check()
    assert site.ask().slots == b"", "nothing new is an empty difference"


def test_versions_may_be_skipped() -> None:
    site = begun()
    for slot in (3, 4, 3):
        site.lead(N3, slot)
        site.look()
    assert site.ask().slots == b"\0\3\0\4"
    site.check()


def test_a_node_that_was_taken_out_while_it_led_answers_and_names_nobody() -> None:
    """Found by fuzzing the port: it raised, and its clients heard nothing."""
    site = begun()
    site.topology = topology(N2, N3, epoch=2)
    told = site.ask()
    assert [node.id for node in told.nodes] == [N2, N3]
    assert site.client.primaries[0] not in site.client.addresses
    assert site.client.primaries[SLOTS - 1] == "h2:1"
    site.check()


def test_a_dead_node_leads_nothing_and_is_back() -> None:
    site = begun()
    site.lead(N3, 1, 2)
    site.ask()
    site.states[N3] = "dead"
    told = site.ask()
    assert (told.slots, told.primaries) == (b"\0\1\0\2", b"\xff" * 4)
    assert [(n.id, n.state) for n in told.nodes] == [(N3, "dead")]
    site.check()
    site.states[N3] = "alive"
    site.ask()
    assert site.client.primaries[1] == "h3:1"
    site.check()


def test_positions_are_told_before_the_key_log_has_forgotten_them() -> None:
    site = begun()
    site.write(7, POSITIONS_BEHIND - 1)
    assert site.ask().slots == b"", "not with each write"
    site.write(7, 1)
    assert site.ask().slots == b"\0\7"
    site.check()


def test_the_whole_table_is_sent_where_a_difference_cannot_be() -> None:
    site = begun()
    site.topology = topology(ME, N2, epoch=2)
    assert site.ask().since == 0, "a node is gone"
    site.check()
    assert site.ask().since > 0
    site.lead(N2, *range(SLOTS))
    assert site.ask().since == 0, "most slots have changed"
    again = Site(source=78)
    again.lead(N2, *range(SLOTS))
    again.look()
    assert again.fetch(site.client).since == 0, "another process counts anew"


def test_a_node_that_joins_is_told_with_its_address() -> None:
    site = begun()
    site.topology = topology(ME, N2, N3, 9, epoch=2)
    told = site.ask()
    assert (told.since, told.slots, [n.address for n in told.nodes]) == (1, b"", ["h9:1"])
    assert "h9:1" in site.client.addresses
    site.client.lead({4: 9})
    assert site.client.primaries[4] == "h9:1"


def test_a_difference_that_does_not_fit_is_left_alone_and_the_whole_table_fetched() -> None:
    site = begun()
    site.lead(N3, 5)
    site.look()
    told = site.table.routes(77, 1)
    before = list(site.client.primaries)
    for bad in (
        msgspec.structs.replace(told, slots=b"\0\x20"),
        msgspec.structs.replace(told, positions=b""),
        msgspec.structs.replace(told, cluster_id="c2"),
        msgspec.structs.replace(told, primaries=b"\0"),
    ):
        site.fetch(site.client)
        before = list(site.client.primaries)
        site.client.load(bad, 0.0, "h1:1")
        assert site.client.primaries == before
        assert site.fetch(site.client).since == 0


def test_a_look_goes_over_the_slots_of_which_something_was_told_and_over_no_others() -> None:
    """To look at all of them took 20 to 40 ms, in which a node did nothing else."""
    site = begun()
    looked: list[int] = []
    led_of = site.table._led_of
    site.table._led_of = lambda slots: looked.extend(slots) or led_of(slots)  # type: ignore[func-returns-value]
    site.lead(N3, 5, 9)
    site.table.look(site.topology, site.states, 0)
    site.table.look(site.topology, site.states, 0)
    assert looked == [5, 9]


def test_who_leads_a_slot_by_nobodys_word_is_seen_when_a_node_can_be_asked_again() -> None:
    site = begun()
    site.topology = topology(ME, N3, epoch=2)
    site.ask()
    site.lead(N2, 3)
    site.ask()
    assert site.client.primaries[3] not in site.client.addresses
    site.topology = topology(ME, N2, N3, epoch=3)
    site.ask()
    assert site.client.primaries[3] == site.client.primaries[SLOTS - 1] == "h2:1"
    site.check()


EVENTS = st.one_of(
    st.tuples(st.just("lead"), st.sampled_from([ME, N2, N3]), st.integers(0, SLOTS - 1)),
    st.tuples(st.just("state"), st.sampled_from([N2, N3]), st.sampled_from(["dead", "alive"])),
    st.tuples(st.just("write"), st.integers(0, SLOTS - 1), st.integers(1, 100)),
    st.tuples(st.just("look"), st.just(0), st.just(0)),
    st.tuples(st.just("ask"), st.just(0), st.just(0)),
)


@given(st.lists(EVENTS, max_size=40))
def test_differences_add_up_to_the_table(events: list[tuple[str, int, int]]) -> None:
    site = begun()
    for kind, a, b in events:
        if kind == "lead":
            site.lead(a, b)
        elif kind == "state":
            site.states[a] = str(b)
        elif kind == "write" and a in site.led:
            site.write(a, b)
        elif kind == "look":
            site.look()
        elif kind == "ask":
            site.ask()
            site.check()
    site.ask()
    site.check()
