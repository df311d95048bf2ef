"""What stopping a node costs, from what the nodes say of their slots."""

from __future__ import annotations

import msgspec

from kvstore.cli.quorums import Survey, slots_lost, slots_naming, slots_stopped, worst_pairs
from kvstore.node.operator_view import ConfigStatus
from kvstore.wire.protocol import RouteNode


def ids(text: str) -> set[int]:
    return set(map(int, text.split()))


def survey(*configs: ConfigStatus, up: str = "1 2 3 4", unled: int = 0) -> Survey:
    nodes = [RouteNode(n, f"n{n}", f"h:{n}", f"h:{n}", "", "alive") for n in range(1, 5)]
    return Survey(nodes, ids(up), list(configs), unled)


def config(members: str, slots: int, *, joint: str = "", learners: str = "") -> ConfigStatus:
    sets = [list(ids(members))] + ([list(ids(joint))] if joint else [])
    return ConfigStatus(sets, list(ids(learners)), slots, True)


def test_one_of_three_can_stop_and_two_cannot() -> None:
    found = survey(config("1 2 3", 7), config("2 3 4", 5))
    assert slots_lost(found, {1}) == 0
    assert slots_lost(found, {1, 2}) == 7
    assert slots_lost(found, {2, 3}) == 12


def test_the_second_of_a_broken_set_cannot_stop() -> None:
    found = survey(config("1 2 3", 7), config("2 3 4", 5), up="2 3 4")
    assert slots_stopped(found) == 0
    assert slots_lost(found, {4}) == 0
    assert slots_lost(found, {2}) == 7
    assert slots_lost(found, {1}) == 0, "it is down already"


def test_while_members_change_each_set_needs_its_majority() -> None:
    found = survey(config("1 2", 3, joint="2 3 4"), up="1 2 3 4")
    assert slots_lost(found, {1}) == 3
    assert slots_lost(found, {3}) == 0


def test_learners_do_not_count_but_are_named() -> None:
    found = survey(config("1 2 3", 7, learners="4"))
    assert slots_lost(found, {4}) == 0
    assert slots_naming(found, 4) == 7
    assert slots_naming(found, 1) == 7


def test_what_has_stopped_already_is_told_apart() -> None:
    found = survey(config("1 2 3", 7), up="1 4", unled=2)
    assert slots_stopped(found) == 9
    assert slots_lost(found, {1}) == 0


def test_pairs_of_nodes_and_zones_the_worst_first() -> None:
    found = survey(config("1 2 3", 7), config("2 3 4", 5))
    zoned = [msgspec.structs.replace(n, zone="a" if n.id < 3 else "b") for n in found.nodes]
    assert worst_pairs(found)[0] == ("n2+n3", "nodes", 12)
    rows = worst_pairs(found._replace(nodes=zoned))
    assert [row for row in rows if row[1] == "zones"] == [], "each zone alone stops them"
    assert len(rows) == 5
