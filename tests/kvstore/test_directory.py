"""Who leads what, from summaries that come late, twice or crosswise."""

from __future__ import annotations

import random

import pytest

from cluster.ballot import Ballot
from cluster.records import pack_version
from kvstore.node.directory import Directory, pack_leads
from kvstore.wire.protocol import Leads

N1, N2, N3 = 1, 2, 3


def leads(node: int, round_: int, *slots: int) -> Leads:
    position = pack_version(Ballot(round_, node), 7)
    return pack_leads([(slot, position) for slot in slots], (), complete=False)


def lost(*slots: int) -> Leads:
    return pack_leads((), slots, complete=False)


def test_the_newest_ballot_leads_however_late_the_old_one_is_heard() -> None:
    directory = Directory(8)
    assert directory.take(N2, leads(N2, 5, 3)) == ([3], [])
    # What the leader before said, on another connection, arrives only now.
    assert directory.take(N1, leads(N1, 4, 3, 4)) == ([4], [])
    directory.take(N1, lost(3))
    assert directory.leaders[3] == N2
    assert directory.leaders[4] == N1


def test_every_order_of_two_nodes_summaries_ends_the_same() -> None:
    of_1 = [leads(N1, 1, 0, 1), lost(0), leads(N1, 6, 1)]
    of_2 = [leads(N2, 3, 0), lost(0), leads(N2, 5, 0)]
    for seed in range(200):
        rng = random.Random(seed)
        directory = Directory(2)
        queues = {N1: list(of_1), N2: list(of_2)}
        while any(queues.values()):
            node = rng.choice([n for n, queue in queues.items() if queue])
            directory.take(node, queues[node].pop(0))
        assert directory.leaders == [N2, N1]


def test_a_complete_summary_ends_what_it_does_not_name() -> None:
    directory = Directory(4)
    directory.take(N1, leads(N1, 1, 0, 1, 2))
    directory.take(N3, leads(N3, 2, 1))
    position = pack_version(Ballot(3, N1), 0)
    assert directory.take(N1, pack_leads([(2, position)], (), complete=True)) == ([2], [0])
    assert directory.leaders == [None, N3, N1, None]
    assert directory.led_by(N1) == [2]


@pytest.mark.parametrize(
    "bad",
    [
        Leads(False, b"\0", b"", b""),
        Leads(False, b"\0\0", b"\0" * 19, b""),
        Leads(False, b"\0\4", b"\0" * 20, b""),
        Leads(False, b"", b"", b"\xff\xff"),
    ],
)
def test_a_malformed_summary_changes_nothing(bad: Leads) -> None:
    directory = Directory(4)
    directory.take(N1, leads(N1, 1, 0))
    with pytest.raises(ValueError, match=r"summary|list"):
        directory.take(N2, bad)
    assert directory.leaders == [N1, None, None, None]
