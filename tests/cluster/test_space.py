"""Short of disk: writes that grow stop early; reads, deletes and takeovers go on."""

from __future__ import annotations

import msgpack
import msgspec
import pytest

from cluster.messages import Accept, Ack, Establish, Gap, Install
from cluster.operations import (
    Atomic,
    Code,
    Delete,
    Deleted,
    Done,
    Failed,
    Found,
    Incr,
    Operation,
    Put,
    Touch,
)
from tests.cluster.core_harness import MEMBERS, Cluster

RAW = msgspec.Raw(msgpack.packb(1))
GROW = [
    Put(b"a", RAW),
    Incr(b"n", 1),
    Touch(b"a", 1_000),
    Atomic([Put(b"a", RAW), Delete(b"b")]),
]
SHRINK = [Delete(b"a"), Atomic([Delete(b"a"), Delete(b"b")])]


def filled() -> Cluster:
    cluster = Cluster()
    for key in (b"a", b"b"):
        cluster.put(1, key, 1)
    cluster.settle()
    return cluster


def set_full(cluster: Cluster, *nodes: int, full: bool = True) -> None:
    for me in nodes:
        cluster.nodes[me].table.room.set_full(full=full)
        cluster.nodes[me].end_tick()
    cluster.settle()


def refused(cluster: Cluster, operation: Operation) -> bool:
    """Whether it is refused before it is given a sequence, with a word on when to try again."""
    before = cluster.position(1)
    asked = cluster.ask(1, operation)
    answer = asked.answer
    if not isinstance(answer, Failed):
        return False
    assert cluster.position(1) == before
    assert answer.code is Code.OVERLOADED
    assert "full" in answer.detail
    assert answer.retry_after_ms > 0
    return True


@pytest.mark.parametrize("operation", GROW)
def test_a_full_primary_refuses_what_grows(operation: Operation) -> None:
    cluster = filled()
    set_full(cluster, 1)
    assert refused(cluster, operation)
    set_full(cluster, 1, full=False)
    assert not refused(cluster, operation)


@pytest.mark.parametrize("operation", SHRINK)
def test_deletes_and_reads_go_on_when_every_disk_is_full(operation: Operation) -> None:
    cluster = filled()
    set_full(cluster, *MEMBERS)
    deleted, read = cluster.ask(1, operation), cluster.get(1, b"b")
    cluster.settle()
    assert isinstance(deleted.answer, Deleted | Done)
    assert read.answer is not None
    assert not isinstance(read.answer, Failed)
    assert cluster.position(2) == cluster.position(3) == cluster.position(1)


def test_the_others_go_on_without_a_full_member() -> None:
    cluster = filled()
    set_full(cluster, 3)
    asked = cluster.put(1, b"a", 2)
    cluster.deliver(1, 3, Accept)
    assert cluster.waits_for_fsync(3, Ack) == []
    cluster.settle()
    assert isinstance(asked.answer, Done)
    assert cluster.value(3, b"a") == 1, "its reserve is not spent on it"


def test_a_full_member_is_not_pressed_to_catch_up_until_it_has_room() -> None:
    cluster = filled()
    set_full(cluster, 3)
    for n in range(5):
        cluster.put(1, b"a", n)
        cluster.settle()
    for _ in range(30):
        cluster.pass_time(100)
        assert cluster.sent(1, 3, Establish) == []
        assert cluster.sent(1, 3, Install) == []
        cluster.settle()
    assert cluster.value(3, b"a") == 1
    set_full(cluster, 3, full=False)
    cluster.calm_down()
    assert cluster.content(3) == cluster.content(1)


def test_without_a_quorum_that_has_room_writes_are_refused_at_once() -> None:
    cluster = filled()
    set_full(cluster, 2, 3)
    assert refused(cluster, Put(b"a", RAW))
    set_full(cluster, 2, full=False)
    assert not refused(cluster, Put(b"a", RAW))


def test_a_full_member_and_a_dead_one_leave_no_quorum() -> None:
    cluster = filled()
    set_full(cluster, 3)
    cluster.isolate(2)
    cluster.nodes[1].table.peer_down(2)
    assert refused(cluster, Put(b"a", RAW))
    deleted = cluster.delete(1, b"b")
    cluster.settle()
    assert isinstance(deleted.answer, Deleted), "it was in step, so the reserve serves"


def test_a_full_member_lets_itself_be_brought_to_a_new_primary() -> None:
    cluster = filled()
    set_full(cluster, 3)
    cluster.put(1, b"a", 2)
    cluster.settle()
    cluster.depose(1)
    assert cluster.serves(2)
    assert cluster.content(3) == cluster.content(2), "a takeover needs it"
    read = cluster.get(2, b"a")
    cluster.settle()
    assert isinstance(read.answer, Found)


def test_a_full_member_that_missed_something_does_not_ask_for_it() -> None:
    cluster = filled()
    set_full(cluster, 3)
    cluster.put(1, b"a", 2)
    cluster.settle()
    cluster.delete(1, b"b")
    cluster.deliver(1, 3, Accept)
    assert cluster.sent(3, 1, Gap) == []
    assert cluster.waits_for_fsync(3, Ack) == []


def test_a_peer_that_comes_back_is_told() -> None:
    cluster = filled()
    cluster.isolate(3)
    set_full(cluster, 1)
    assert cluster.nodes[3].table.room.full == set()
    cluster.reconnect(3)
    cluster.settle()
    assert cluster.nodes[3].table.room.full == {1}
    cluster.nodes[3].table.peer_down(1)
    assert cluster.nodes[3].table.room.full == set(), "who is away is not full but away"


def test_nothing_is_said_twice() -> None:
    cluster = filled()
    cluster.nodes[2].table.room.set_full(full=True)
    cluster.nodes[2].table.room.set_full(full=True)
    cluster.nodes[2].end_tick()
    assert len(cluster.wire(2, 1)) == 1
