"""Writes that depend on each other do not wait for each other's fsync; and what nobody waits for.

Conditions are judged against the newest state, in flight or not (rule 1), so a chain of them takes
as many fsyncs as a single write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cluster.operations import (
    ABSENT,
    PRESENT,
    Atomic,
    Conflict,
    Delete,
    Deleted,
    Done,
    Incr,
    Number,
    Put,
)
from cluster.slot import Primary
from tests.cluster.core_harness import SLOT, Asked, Cluster

if TYPE_CHECKING:
    import pytest

RAW = msgspec.Raw(msgspec.msgpack.encode("value"))


def commit_with_one_fsync_each(c: Cluster) -> None:
    """What is in flight at node 1 is delivered, synced once at two nodes, and answered."""
    c.deliver_all()
    c.sync(1, 2)
    c.deliver_all()


def test_a_hundred_increments_take_one_fsync() -> None:
    c = Cluster()
    asked = [c.incr(1, b"n") for _ in range(100)]
    assert c.slot(1).sequence == 100, "all are judged, each on top of the one before"
    assert all(each.answer is None for each in asked)
    commit_with_one_fsync_each(c)
    numbers = [each.answer.value for each in asked if isinstance(each.answer, Number)]
    assert numbers == list(range(1, 101))


def test_a_chain_of_conditions_takes_one_fsync() -> None:
    c = Cluster()
    made = c.ask(1, Put(b"k", RAW, expect=ABSENT))
    refused = c.ask(1, Put(b"k", RAW, expect=ABSENT))
    version = c.primary(1).ballot_bytes + (1).to_bytes(8, "big")
    replaced = c.ask(1, Put(b"k", RAW, expect=version))
    too_late = c.ask(1, Delete(b"k", version))
    batch = c.ask(1, Atomic([Delete(b"k", PRESENT), Put(b"m", RAW, expect=ABSENT)]))
    gone = c.ask(1, Delete(b"k"))
    missed = c.ask(1, Atomic([Put(b"k", RAW), Delete(b"k2", PRESENT)]))
    assert c.slot(1).sequence == 4, "conflicts are reads"
    commit_with_one_fsync_each(c)
    for each in (made, replaced, batch):
        assert isinstance(each.answer, Done)
    assert isinstance(made.answer, Done)
    assert refused.answer == Conflict(made.answer.version)
    assert isinstance(replaced.answer, Done)
    assert too_late.answer == Conflict(replaced.answer.version)
    assert isinstance(gone.answer, Deleted)
    assert not gone.answer.existed
    assert missed.answer == Conflict(b"")
    assert c.value(1, b"k") is None, "all or nothing"
    assert c.value(1, b"m") == "value"


def handing_over() -> tuple[Cluster, Asked, Asked]:
    """Node 2 hands the slot back to node 1, and holds two increments meanwhile."""
    c = Cluster()
    c.depose(1)
    c.reconnect(1)
    c.settle()
    c.put(2, b"k", 5)
    c.pass_time(100, nodes=(2,))
    assert c.primary(2).handing_to == 1
    return c, c.incr(2, b"n"), c.incr(2, b"n")


def test_what_is_held_and_withdrawn_is_not_carried_out() -> None:
    c, over, waits = handing_over()
    assert c.slot(2).sequence == 1
    taken = c.nodes[2].table.withdraw([SLOT], lambda ticket: ticket is over)
    assert taken == [over]
    c.settle()
    assert (over.answer, over.moved) == (None, [])
    assert waits.moved == [False]


def test_a_primary_that_reaches_no_quorum_takes_nothing() -> None:
    c = Cluster()
    before = c.put(1, b"k", 1)
    c.settle()
    for peer in (2, 3):
        c.nodes[1].table.peer_down(peer)
    refused = [c.put(1, b"k", 2), c.get(1, b"k")]
    assert [each.accepted for each in refused] == [False, False]
    assert c.slot(1).sequence == 1, "nobody need wonder what became of it"
    c.nodes[1].table.peer_up(3)
    again = c.ask(1, Incr(b"n", 1))
    c.settle()
    assert isinstance(before.answer, Done)
    assert isinstance(again.answer, Number)


def test_r5_held_retries_that_fill_the_room_wait_for_the_new_ballot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.primary.RETRIED_OPERATIONS_MAX", 2)
    c = Cluster()
    node = c.nodes[1]
    asked = [c.new(Incr(b"n", 1)) for _ in range(4)]
    node.table.leadership.renew(c.slot(1))
    node.end_tick()
    while not isinstance(c.slot(1).role, Primary):
        c.sync(*c.ids)
        c.deliver_all()
    assert not c.serves(1)
    for each in asked:
        c.submit(1, each, retry=True)
        assert each.accepted
    c.settle()
    assert [each.moved for each in asked] == [[True]] * 4
    assert c.value(1, b"n") == 2  # the first two, which filled the room
    for each in asked:
        c.retry(1, each)
        c.settle()
    assert c.value(1, b"n") == 4
