"""Rule 18: what rots on one disk is found, never served, and replaced from the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack
import pytest

from cluster.ballot import Ballot
from cluster.digest import Examined, judge
from cluster.messages import Accept, Ack, Chunk, Compare, Compared, Condemn, Establish, Install
from cluster.operations import (
    Code,
    Delete,
    Deleted,
    Done,
    Failed,
    Found,
    Get,
    Incr,
    Number,
    Put,
    Scan,
    Touch,
)
from cluster.records import decode_record, encode_record, pack_version
from cluster.scrub import NOBODY, RECHECK_MS
from kvstore.storage import keyspace
from kvstore.storage.engine import Table
from tests.cluster.core_harness import MEMBERS, SLOT, Asked, Cluster

if TYPE_CHECKING:
    from cluster.messages import SlotMessage
    from cluster.operations import Operation

STALE = encode_record(pack_version(Ballot(1, 1), 1), msgpack.packb("old"))
"""A record as good as any, and not the one that was written."""


def filled(*members: int) -> Cluster:
    members = members or MEMBERS
    made = Cluster(owners=(members,), ids=members)
    for n in range(20):
        made.put(1, b"k%02d" % n, n)
    made.settle()
    return made


def begun(cluster: Cluster) -> None:
    """Until the first comparison is on its way."""
    while not cluster.sent(1, 3, Compare):
        cluster.pass_time(50)


def scrubbed(cluster: Cluster, seconds: int = 5) -> None:
    for _ in range(10 * seconds):
        cluster.pass_time(100)
        cluster.settle()


def found(cluster: Cluster) -> set[tuple[int, int]]:
    """Who raised an alarm, and over whom."""
    return {(me, alarm.node) for me, node in cluster.nodes.items() for alarm in node.alarms}


def settled(cluster: Cluster, *nodes: int) -> None:
    """All copies are equal, nobody is damaged or has an open finding."""
    first, *others = nodes or MEMBERS
    for other in others:
        assert cluster.content(other) == cluster.content(first)
    for me in nodes or MEMBERS:
        assert not cluster.slot(me).damaged
        assert not cluster.nodes[me].table.scrub.findings
        assert not cluster.nodes[me].table.scrub.damaged


def condemnation(ballot: Ballot, *, failed: bool = False) -> Condemn:
    """Of the whole slot."""
    return Condemn(SLOT, ballot, 1, failed, b"", b"", 100)


def value(asked: Asked) -> object:
    assert isinstance(asked.answer, Found), asked.answer
    return msgpack.unpackb(decode_record(asked.answer.record).value)


# -- judging -----------------------------------------------------------------------------------

A, B, C, ROTTEN = Examined(b"a", ""), Examined(b"b", ""), Examined(b"c", ""), Examined(b"", "x")


@pytest.mark.parametrize(
    ("found", "right", "damaged", "unclear"),
    [
        ([A], {0}, set(), set()),
        ([A, A, A], {0, 1, 2}, set(), set()),
        ([A, A, B], {0, 1}, {2}, set()),
        ([A, B, C], set(), set(), {0, 1, 2}),
        ([A, B], set(), set(), {0, 1}),
        ([A, ROTTEN], {0}, {1}, set()),
        ([A, B, ROTTEN], set(), {2}, {0, 1}),
        ([ROTTEN, ROTTEN, A], {2}, {0, 1}, set()),
        ([ROTTEN, ROTTEN], set(), {0, 1}, set()),
        ([A, A, B, B], set(), set(), {0, 1, 2, 3}),
        ([A, A, B, C, A], {0, 1, 4}, {2, 3}, set()),
        ([A, A, B, C], set(), set(), {0, 1, 2, 3}),
    ],
)
def test_nobody_is_judged_but_by_a_checksum_or_a_majority(
    found: list[Examined], right: set[int], damaged: set[int], unclear: set[int]
) -> None:
    verdict = judge(dict(enumerate(found)))
    assert [set(nodes) for nodes in verdict] == [right, damaged, unclear]


# -- finding and repairing -----------------------------------------------------------------------


def test_a_healthy_cluster_is_compared_and_nobody_is_alarmed() -> None:
    cluster = filled()
    scrubbed(cluster)
    assert found(cluster) == set()
    assert cluster.nodes[1].table.scrub.passes_total > 1
    assert cluster.nodes[1].table.scrub.bytes_total > 0
    assert cluster.nodes[2].table.scrub.stretches_total == 0, "only the primary asks"


@pytest.mark.parametrize("rotten", [2, 3])
@pytest.mark.parametrize("record", [None, STALE, b""], ids=["flipped", "stale", "gone"])
def test_a_members_bad_copy_is_replaced_from_the_primary(rotten: int, record: bytes | None) -> None:
    cluster = filled()
    cluster.rot(rotten, b"k07", record)
    scrubbed(cluster)
    assert found(cluster) == {(1, rotten)}
    assert cluster.nodes[rotten].table.scrub.repaired_total == 1
    assert cluster.slot(rotten).generation == 1, "a whole copy, not a patch"
    settled(cluster)
    assert cluster.serves(1)


@pytest.mark.parametrize("record", [None, STALE, b""], ids=["flipped", "stale", "gone"])
def test_a_primary_whose_copy_is_bad_hands_over_and_is_repaired(record: bytes | None) -> None:
    cluster = filled()
    cluster.rot(1, b"k07", record)
    scrubbed(cluster)
    assert (1, 1) in found(cluster)
    assert cluster.nodes[1].table.scrub.repaired_total == 1
    settled(cluster)
    assert cluster.serves(1), "it took the slot back once it was repaired"
    assert value_at(cluster, 1, b"k07") == 7


def value_at(cluster: Cluster, at: int, key: bytes) -> object:
    asked = cluster.get(at, key)
    cluster.settle()
    return value(asked)


def test_what_should_not_be_there_is_found_too() -> None:
    cluster = filled()
    cluster.rot(3, b"k07+", STALE)
    scrubbed(cluster)
    assert found(cluster) == {(1, 3)}
    settled(cluster)


def test_a_key_log_that_differs_is_found() -> None:
    cluster = filled()
    node = cluster.nodes[2]
    batch = node.engine.batch()
    batch.put(Table.LOG, keyspace.log_key(node.slot.prefix, 5), b"not what was written")
    node.engine.write(batch)
    scrubbed(cluster)
    assert found(cluster) == {(1, 2)}
    settled(cluster)


def test_of_two_that_differ_nobody_can_tell() -> None:
    cluster = filled(1, 2)
    cluster.rot(2, b"k07", STALE)
    before = cluster.content(1), cluster.content(2)
    scrubbed(cluster)
    assert found(cluster) == {(1, NOBODY)}
    assert (SLOT, NOBODY) in cluster.nodes[1].table.scrub.findings, "the alarm stays"
    assert (cluster.content(1), cluster.content(2)) == before, "nobody guesses"
    assert len(cluster.nodes[1].alarms) == 1, "one alarm, not one a second"


@pytest.mark.parametrize("rotten", [1, 2])
def test_of_two_the_one_whose_checksum_fails_is_replaced(rotten: int) -> None:
    cluster = filled(1, 2)
    cluster.rot(rotten, b"k07")
    scrubbed(cluster)
    settled(cluster, 1, 2)
    assert cluster.nodes[rotten].table.scrub.repaired_total == 1


def test_two_of_three_with_failed_checksums_are_replaced_from_the_third() -> None:
    cluster = filled()
    cluster.rot(1, b"k07")
    cluster.rot(3, b"k11")
    scrubbed(cluster, 8)
    settled(cluster)
    assert value_at(cluster, 1, b"k07") == 7
    assert value_at(cluster, 1, b"k11") == 11


def test_a_busy_slot_is_compared_without_a_false_alarm() -> None:
    """A write in every tick, acknowledged late, and one member that misses some of them."""
    cluster = filled()
    scrub = cluster.nodes[1].table.scrub
    for n in range(200):
        cluster.put(1, b"k%02d" % (n % 20), n)
        if n % 10 == 0:
            cluster.drop(1, 3, Accept)
        cluster.pass_time(50)
        cluster.deliver_all()
        if n % 3 == 0:
            cluster.settle()
    assert scrub.stretches_total > 20
    scrubbed(cluster, 2)
    assert found(cluster) == set()
    settled(cluster)


def test_a_busy_slots_rot_is_found_while_it_is_busy() -> None:
    cluster = filled()
    cluster.rot(2, b"k19", STALE)
    for n in range(40):
        cluster.put(1, b"k00", n)
        cluster.pass_time(50)
        cluster.put(1, b"k01", n)
        cluster.settle()
    assert found(cluster) == {(1, 2)}
    assert cluster.nodes[2].table.scrub.repaired_total == 1
    settled(cluster)


def test_large_slots_are_compared_stretch_by_stretch() -> None:
    cluster = Cluster()
    for n in range(30):
        cluster.put(1, b"k%02d" % n, b"x" * 20_000)
    cluster.settle()
    cluster.rot(3, b"k29", STALE)
    begun(cluster)
    asked = cluster.sent(1, 3, Compare)
    assert len(asked) == 1, "the pace allows no more at once"
    assert asked[0].end
    scrubbed(cluster, 8)
    assert found(cluster) == {(1, 3)}
    settled(cluster)


def test_the_pace_is_kept_and_can_be_none() -> None:
    cluster = filled()
    for node in cluster.nodes.values():
        node.table.scrub.bytes_per_s = 0
    cluster.rot(2, b"k07")
    before = cluster.nodes[1].table.scrub.stretches_total
    scrubbed(cluster)
    assert cluster.nodes[1].table.scrub.stretches_total == before
    assert found(cluster) == set()


def test_small_slots_are_compared_in_bursts_at_the_same_pace() -> None:
    cluster = Cluster(owners=(MEMBERS,) * 64)
    cluster.settle()
    asked: list[int] = []
    for _ in range(40):
        cluster.pass_time(50)
        asked.append(len(cluster.sent(1, 3, Compare)))
        cluster.settle()
    assert 30 <= sum(asked) <= 40, "sixteen a second"
    assert sum(map(bool, asked)) <= 4, "in two frames a second"


def test_an_answer_from_another_position_is_void() -> None:
    cluster = filled()
    begun(cluster)
    question = cluster.drop(1, 3, Compare)[0]
    cluster.drop(1, 2, Compare)
    cluster.put(1, b"k07", "newer")
    cluster.settle()
    cluster.inject(1, 3, question)
    (answer,) = cluster.sent(3, 1, Compared)
    assert (answer.digest, answer.damage) == (b"", "")


# -- what a damaged replica may do ---------------------------------------------------------------


def condemned(at: int = 3) -> Cluster:
    """A member that knows that it is damaged, cut off from the copy that it waits for."""
    cluster = filled()
    primary = cluster.primary(1)
    cluster.hold(1, at)
    cluster.inject(1, at, condemnation(primary.ballot))
    cluster.sync(at)
    cluster.drop(at, 1)
    assert cluster.slot(at).damaged
    return cluster


def test_a_damaged_replica_acknowledges_nothing() -> None:
    cluster = condemned()
    asked = cluster.put(1, b"k07", "new")
    cluster.deliver(1, 3, Accept)
    assert cluster.waits_for_fsync(3, Ack) == []
    assert cluster.position(3) < cluster.position(1), "what it does not hold it does not claim"
    cluster.settle()
    assert isinstance(asked.answer, Done), "the others are a quorum"
    again = Establish(SLOT, cluster.primary(1).ballot, cluster.primary(1).base, 21)
    cluster.inject(1, 3, again)
    assert cluster.waits_for_fsync(3, Ack) == []


def test_a_damaged_replica_is_never_best() -> None:
    """It alone has the newest operation with the old primary; nobody may lead without that."""
    cluster = filled()
    cluster.hold(1, 2)
    lost = cluster.put(1, b"k07", "only on 1 and 3")
    cluster.settle()
    assert isinstance(lost.answer, Done)
    cluster.hold(1, 3)
    cluster.inject(1, 3, condemnation(cluster.primary(1).ballot))
    cluster.isolate(1)
    cluster.settle()
    for _ in range(60):
        cluster.pass_time(100, nodes=(2, 3))
        cluster.settle()
    assert not cluster.serves(2)
    assert not cluster.serves(3)
    for a in MEMBERS:
        for b in MEMBERS:
            cluster.drop(a, b)
    cluster.reconnect(1)
    cluster.calm_down()
    settled(cluster)
    assert value_at(cluster, 1, b"k07") == "only on 1 and 3"


def test_a_damaged_replicas_promise_counts_for_one_who_stands_as_high() -> None:
    cluster = condemned()
    cluster.isolate(1)
    for _ in range(60):
        cluster.pass_time(100, nodes=(2, 3))
        cluster.settle()
    assert cluster.serves(2)
    assert not cluster.slot(3).damaged, "the new primary has brought it a copy"
    assert value_at(cluster, 2, b"k07") == 7


def test_that_it_is_damaged_outlives_a_crash() -> None:
    cluster = condemned(2)
    cluster.crash(2)
    assert cluster.slot(2).damaged
    assert cluster.nodes[2].table.scrub.damaged == 1
    cluster.release(1, 2)
    scrubbed(cluster)
    settled(cluster)


def test_a_crash_in_the_middle_of_the_copy_leaves_it_damaged() -> None:
    cluster = Cluster()
    for n in range(12):
        cluster.put(1, b"k%02d" % n, b"x" * 500_000)
    cluster.settle()
    cluster.rot(3, b"k03")
    scrub_until_condemned(cluster, 3)
    cluster.deliver(3, 1)
    cluster.deliver(1, 3, Chunk)
    assert cluster.slot(3).copy is not None
    cluster.crash(3)
    assert cluster.slot(3).damaged
    assert cluster.slot(3).generation == 0
    cluster.calm_down()
    settled(cluster)


def scrub_until_condemned(cluster: Cluster, at: int) -> None:
    for _ in range(200):
        cluster.pass_time(100)
        for a in MEMBERS:
            for b in MEMBERS:
                cluster.deliver(a, b, Compare, Compared)
        cluster.sync(1)
        if cluster.sent(1, at, Condemn):
            cluster.deliver(1, at, Condemn)
            cluster.sync(at)
            return
    raise AssertionError("nobody was condemned")


def test_a_copy_that_is_itself_damaged_replaces_nothing() -> None:
    cluster = condemned()
    cluster.rot(1, b"k11")
    cluster.release(1, 3)
    cluster.inject(3, 1, gap_of(cluster, 3))
    cluster.deliver(1, 3, Chunk)
    assert cluster.slot(3).damaged
    cluster.calm_down()
    settled(cluster)
    assert value_at(cluster, 1, b"k11") == 11


def test_what_has_rotted_is_not_what_others_are_brought() -> None:
    """Found by the simulation: a member that was behind had the rotten record, too."""
    cluster = filled()
    cluster.hold(1, 3)
    asked = cluster.put(1, b"k11", "new")
    cluster.sync(1)
    cluster.deliver(1, 2, Accept)
    cluster.sync(2)
    cluster.deliver(2, 1, Ack)
    assert isinstance(asked.answer, Done)
    cluster.rot(1, b"k11")
    cluster.drop(1, 3)
    cluster.inject(3, 1, gap_of(cluster, 3))
    assert not cluster.sent(1, 3, Install)
    cluster.release(1, 3)
    cluster.calm_down()
    settled(cluster)
    assert value_at(cluster, 1, b"k11") == "new"


def gap_of(cluster: Cluster, at: int) -> SlotMessage:
    primary = cluster.primary(1)
    cluster.inject(1, at, Establish(SLOT, primary.ballot, primary.base, cluster.slot(1).sequence))
    return cluster.drop(at, 1)[0]


def test_nobody_but_the_ballots_primary_condemns() -> None:
    cluster = filled()
    ballot = cluster.primary(1).ballot
    cluster.inject(2, 3, condemnation(ballot))
    cluster.inject(1, 3, condemnation(Ballot(ballot.round - 1, 1)))
    cluster.inject(1, 1, condemnation(ballot))
    assert not any(cluster.slot(me).damaged for me in MEMBERS)


def test_a_late_condemnation_does_not_condemn_the_new_copy() -> None:
    cluster = filled()
    condemn = condemnation(cluster.primary(1).ballot)
    cluster.inject(1, 3, condemn)
    cluster.settle()
    assert cluster.nodes[3].table.scrub.repaired_total == 1
    cluster.inject(1, 3, condemn)
    assert not cluster.slot(3).damaged


def test_what_was_written_anew_is_not_condemned() -> None:
    cluster = filled()
    cluster.inject(1, 3, condemnation(cluster.primary(1).ballot, failed=True))
    assert not cluster.slot(3).damaged
    cluster.rot(3, b"k07")
    cluster.inject(1, 3, condemnation(cluster.primary(1).ballot, failed=True))
    assert cluster.slot(3).damaged


def test_a_lost_condemnation_is_repeated() -> None:
    cluster = filled()
    cluster.rot(3, b"k07")
    for _ in range(10):
        cluster.pass_time(RECHECK_MS // 5)
        cluster.drop(1, 3, Condemn)
        cluster.settle()
    scrubbed(cluster)
    assert len(cluster.nodes[1].alarms) == 1
    settled(cluster)


# -- meeting damage --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    [
        Get(b"k07"),
        Scan(SLOT, b"k", b"", 100, values=True),
        Incr(b"k07", 1),
        Touch(b"k07", 10_000),
        Put(b"k07", msgpack.packb(1), "", 0, b"*"),
        Delete(b"k07", b"*"),
    ],
    ids=lambda operation: type(operation).__name__.lower(),
)
def test_what_needs_a_damaged_record_waits_for_a_good_one(operation: Operation) -> None:
    cluster = filled()
    cluster.rot(1, b"k07")
    asked = cluster.ask(1, operation)
    cluster.settle()
    assert asked.answers == []
    assert asked.moved == [False], "given back, and never started"
    cluster.settle()
    assert cluster.serves(2), "without waiting for the scrub to come by"
    cluster.submit(2, asked)
    cluster.nodes[2].end_tick()
    cluster.settle()
    assert not isinstance(asked.answer, Failed)
    assert asked.answer is not None
    if isinstance(asked.answer, Number):
        assert asked.answer.value == 8
    cluster.calm_down()
    settled(cluster)


def test_an_eventual_reader_is_sent_to_the_primary() -> None:
    cluster = filled()
    cluster.rot(3, b"k07")
    assert cluster.nodes[3].table.read_replica(SLOT, Get(b"k07", eventual=True)) is None
    cluster.nodes[3].end_tick()
    cluster.settle()
    assert found(cluster) == {(1, 3)}, "the primary was told"
    assert cluster.nodes[3].table.scrub.repaired_total == 1
    answer = cluster.nodes[3].table.read_replica(SLOT, Get(b"k07", eventual=True))
    assert isinstance(answer, Found)


def test_where_no_good_copy_is_left_that_is_said() -> None:
    cluster = filled()
    for me in MEMBERS:
        cluster.rot(me, b"k07")
    asked = cluster.get(1, b"k07")
    cluster.settle()
    cluster.submit(1, asked)
    cluster.nodes[1].end_tick()
    assert isinstance(asked.answer, Failed)
    assert asked.answer.code is Code.CORRUPT
    assert "k07" in asked.answer.detail
    assert cluster.serves(1), "the other keys are served on"
    assert value_at(cluster, 1, b"k08") == 8
    assert not any(cluster.slot(me).damaged for me in MEMBERS), "there is nothing to copy"


@pytest.mark.parametrize("mend", ["put", "delete"])
def test_what_is_lost_can_be_written_or_deleted_anew(mend: str) -> None:
    cluster = filled()
    for me in MEMBERS:
        cluster.rot(me, b"k07")
    scrubbed(cluster, 1)
    asked = cluster.put(1, b"k07", "new") if mend == "put" else cluster.delete(1, b"k07")
    cluster.settle()
    assert isinstance(asked.answer, Done | Deleted)
    scrubbed(cluster, 3)
    settled(cluster)
    assert not cluster.nodes[1].table.scrub.lost


def test_the_only_copy_that_rots_is_said() -> None:
    cluster = filled(1)
    cluster.rot(1, b"k07")
    asked = cluster.get(1, b"k07")
    cluster.settle()
    assert isinstance(asked.answer, Failed)
    assert asked.answer.code is Code.CORRUPT
