"""Who is sent away when: time, order, and whom a cluster cannot spare."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.absence import Absences
from cluster.membership import Away, Back, Leave, Patience, apply_change
from tests.cluster.test_membership import cluster

if TYPE_CHECKING:
    from cluster.topology import Topology

MINUTE = 60_000


def looked(absences: Absences, topology: Topology, dead: set[int], *minutes: float) -> list[str]:
    """Who is to be sent away at these times."""
    found = [absences.look(topology, dead, int(minute * MINUTE)) for minute in minutes]
    return [node.name if node is not None else "" for node in found]


def test_ten_minutes_are_waited() -> None:
    absences = Absences()
    assert looked(absences, cluster(5), {2}, 100, 109.9, 110) == ["", "", "n2"]


def test_who_was_back_is_waited_for_anew() -> None:
    absences = Absences()
    looked(absences, cluster(5), {2}, 0, 9)
    looked(absences, cluster(5), set(), 9.5)
    assert looked(absences, cluster(5), {2}, 10, 19.9, 20) == ["", "", "n2"]


def test_one_that_says_it_is_back_is_not_sent_away_by_old_news() -> None:
    absences, topology = Absences(), cluster(5)
    looked(absences, topology, {2}, 0)
    assert looked(absences, topology, {2}, 11) == ["n2"]
    away = apply_change(topology, Away("n2"))
    assert looked(absences, away, {2}, 11, 30) == ["", ""]
    back = apply_change(away, Back("n2"))
    assert looked(absences, back, {2}, 30, 39) == ["", ""], "gossip has not heard of it yet"


def test_the_longest_dead_goes_first() -> None:
    absences = Absences()
    looked(absences, cluster(7), {3}, 0)
    looked(absences, cluster(7), {2, 3}, 1)
    assert looked(absences, cluster(7), {2, 3}, 30) == ["n3"]
    after = apply_change(cluster(7), Away("n3"))
    assert looked(absences, after, {2, 3}, 30) == ["n2"]


@pytest.mark.parametrize("seconds", [0, 5])
def test_the_time_can_be_set(seconds: int) -> None:
    topology = apply_change(cluster(5), Patience(seconds))
    found = looked(Absences(), topology, {2}, 0, 0.1, 1_000)
    assert found == (["", "n2", "n2"] if seconds else ["", "", ""])


@pytest.mark.parametrize(
    ("nodes", "replicas", "dead"),
    [
        (3, 2, {3}),
        (4, 4, {3}),
        (6, 3, {1, 2, 3}),
        (8, 3, {1, 2, 3, 4}),
    ],
    ids=["a small cluster", "all are needed", "half of six", "half of eight"],
)
def test_nobody_goes_where_that_would_do_harm(nodes: int, replicas: int, dead: set[int]) -> None:
    assert looked(Absences(), cluster(nodes, replicas), dead, 0, 1_000) == ["", ""]


def test_who_leaves_is_no_concern() -> None:
    topology = apply_change(cluster(5), Leave("n2"))
    assert looked(Absences(), topology, {2}, 0, 1_000) == ["", ""]
