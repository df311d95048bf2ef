"""Rules 1 to 8 and 16 of the protocol, one by one: each test fails if its rule is taken out."""

from __future__ import annotations

from array import array

import msgpack
import msgspec
import pytest

from cluster.ballot import Ballot
from cluster.key_log import LogEntry, encode_entry
from cluster.messages import Accept, Ack, Confirm, Confirmed, Gap, Prepare, Promise, Refuse
from cluster.operations import (
    ABSENT,
    PRESENT,
    Absent,
    Code,
    Conflict,
    Deleted,
    Done,
    Failed,
    Found,
    Get,
    Number,
    Put,
    Result,
    Stale,
)
from cluster.records import decode_record, pack_version
from tests.cluster.core_harness import SLOT, Cluster


def slots_of(confirm: Confirm) -> list[int]:
    return array("H", confirm.slots).tolist()


def found_value(result: Result | None) -> object:
    assert isinstance(result, Found)
    return msgpack.unpackb(decode_record(result.record).value)


def test_r1_a_write_goes_to_every_member_beside_the_own_fsync() -> None:
    c = Cluster()
    c.put(1, b"k", 5)
    assert c.value(1, b"k") == 5
    assert [m.sequence for m in c.sent(1, 2, Accept)] == [1]
    assert c.sent(1, 2, Accept) == c.sent(1, 3, Accept)


def test_r1_a_condition_is_judged_against_what_is_in_flight() -> None:
    c = Cluster()
    first = c.put(1, b"k", 1, expect=ABSENT)
    second = c.put(1, b"k", 2, expect=ABSENT)
    c.settle()
    assert isinstance(first.answer, Done)
    assert second.answer == Conflict(first.answer.version)
    assert c.value(1, b"k") == c.value(3, b"k") == 1


def test_r2_an_accept_over_a_gap_is_not_applied() -> None:
    c = Cluster()
    c.put(1, b"a", 1)
    c.drop(1, 2)
    c.put(1, b"b", 2)
    c.deliver(1, 2)
    assert c.value(2, b"b") is None
    assert not c.waits_for_fsync(2, Ack)
    assert [m.position for m in c.sent(2, 1, Gap)] == [c.position(2)]
    c.settle()
    assert c.content(2) == c.content(1)


def test_r2_an_accept_is_acknowledged_after_the_fsync() -> None:
    c = Cluster()
    c.put(1, b"k", 5)
    c.deliver(1, 2)
    assert c.value(2, b"k") == 5
    assert not c.sent(2, 1, Ack)
    c.sync(2)
    assert [m.sequence for m in c.sent(2, 1, Ack)] == [1]


def test_r2_an_accept_of_a_lower_ballot_is_refused_by_name() -> None:
    c = Cluster()
    c.put(1, b"k", 5)
    c.depose(1)
    c.drop(3, 1)
    c.deliver(1, 3, Accept)
    assert c.value(3, b"k") is None
    assert c.sent(3, 1, Refuse) == [Refuse(SLOT, c.slot(2).established)]


def test_r2_an_accept_is_refused_as_soon_as_a_higher_ballot_is_promised() -> None:
    """The old ballot is still the one that is established here."""
    c = Cluster()
    c.inject(2, 3, Prepare(SLOT, Ballot(9, 2)))
    c.put(1, b"k", 5)
    c.deliver(1, 3, Accept)
    assert c.value(3, b"k") is None
    assert c.sent(3, 1, Refuse) == [Refuse(SLOT, Ballot(9, 2))]
    assert not c.waits_for_fsync(3, Ack)


def test_r2_an_accept_is_not_applied_before_its_ballot_is_established() -> None:
    c = Cluster()
    ballot = Ballot(9, 2)
    c.inject(2, 3, Prepare(SLOT, ballot))
    assert c.slot(3).promised == ballot
    entry = encode_entry(LogEntry(9, 2, 7, 99, []))
    c.inject(2, 3, Accept(SLOT, ballot, c.slot(3).sequence + 1, entry, []))
    assert c.slot(3).sequence == 0
    assert not c.waits_for_fsync(3, Ack)
    assert c.sent(3, 2, Gap)


def test_r3_a_write_is_answered_when_a_quorum_is_durable() -> None:
    c = Cluster()
    asked = c.put(1, b"k", 5)
    c.deliver_all()
    assert asked.answer is None
    c.sync(1)
    assert asked.answer is None, "the primary alone is no quorum"
    c.sync(2)
    c.deliver_all()
    assert asked.answer == Done(pack_version(c.slot(1).established, 1))


def test_r3_the_primary_counts_itself_on_the_same_terms() -> None:
    c = Cluster()
    asked = c.put(1, b"k", 5)
    c.deliver_all()
    c.sync(2)
    c.deliver_all()
    assert asked.answer is None, "the primary has applied it, but its fsync is not over"
    c.sync(3)
    c.deliver_all()
    assert isinstance(asked.answer, Done), "two others are a quorum too"


def test_r3_a_doubled_acknowledgement_counts_once() -> None:
    c = Cluster(owners=((1, 2, 3, 4, 5),), ids=(1, 2, 3, 4, 5))
    asked = c.put(1, b"k", 5)
    c.sync(1)
    c.deliver_all()
    c.sync(2)
    (ack,) = c.sent(2, 1, Ack)
    for _ in range(3):
        c.inject(2, 1, ack)
    assert asked.answer is None
    c.settle()
    assert isinstance(asked.answer, Done)


def test_r3_answers_go_out_in_commit_order() -> None:
    c = Cluster()
    operations = [c.put(1, b"%d" % n, n) for n in range(3)]
    again = c.retry(1, operations[0])
    c.deliver_all()
    c.sync(3, 2, 1)
    c.deliver_all()
    assert c.answered == [operations[0], again, *operations[1:]]


def test_r3_a_failed_condition_waits_for_the_state_that_it_was_judged_against() -> None:
    c = Cluster()
    written = c.put(1, b"k", 1)
    refused = c.put(1, b"k", 2, expect=ABSENT)
    c.deliver_all()
    assert not c.answered, "confirmed, but what it was judged against is not committed"
    c.settle()
    assert isinstance(written.answer, Done)
    assert refused.answer == Conflict(written.answer.version)


def test_r3_a_failed_condition_is_confirmed_like_a_read() -> None:
    c = Cluster()
    asked = c.put(1, b"k", 2, expect=PRESENT)
    assert asked.answer is None
    c.deliver_all()
    assert asked.answer == Conflict(b"")


def test_r4_a_primary_that_learns_of_a_higher_promise_stops() -> None:
    c = Cluster()
    c.isolate(1)
    written, read = c.put(1, b"k", 5), c.get(1, b"k")
    c.pass_time(0, nodes=(2, 3))
    c.settle()
    assert c.serves(1), "it does not know yet"
    c.deliver(1, 3, Accept)
    c.deliver(3, 1, Refuse)
    assert not c.serves(1)
    assert not c.put(1, b"k", 6).accepted
    assert written.moved == [True], "it was started: whoever sends it on sends a retry"
    assert read.moved == [True]
    for node in (2, 3):
        c.inject(node, 1, Ack(SLOT, Ballot(1, 1), 1))
    assert written.answer is None, "nothing that comes late brings it back"


def test_r4_what_was_never_started_is_given_back_as_such() -> None:
    c = Cluster()
    c.isolate(1)
    c.pass_time(0, nodes=(2,))
    c.deliver_all()
    c.sync(2)
    c.deliver_all()
    c.sync(3)
    c.deliver_all()
    held = c.put(2, b"k", 5)
    assert held.accepted
    assert not c.serves(2), "it is establishing"
    c.inject(3, 2, Refuse(SLOT, Ballot(99, 3)))
    assert held.moved == [False]


def test_r5_a_retry_is_answered_from_the_log() -> None:
    c = Cluster()
    asked = c.incr(1, b"n")
    c.settle()
    c.retry(1, asked)
    c.settle()
    assert asked.answers == [Number(c.version(1), 1)] * 2
    assert c.value(1, b"n") == 1


def test_r5_a_retry_waits_for_the_commit_of_the_first_attempt() -> None:
    c = Cluster()
    asked = c.incr(1, b"n")
    c.retry(1, asked)
    assert not asked.answers
    c.settle()
    assert asked.answers == [Number(c.version(1), 1)] * 2


def test_r5_a_retry_is_recognised_after_a_takeover() -> None:
    c = Cluster()
    asked = c.incr(1, b"n")
    c.settle()
    c.depose(1)
    c.retry(2, asked)
    c.settle()
    assert asked.answers[0] == asked.answers[1]
    assert c.value(2, b"n") == 1


def test_r5_a_first_attempt_from_before_the_takeover_is_looked_up_too() -> None:
    """Two nodes forwarded it, neither knows of the other."""
    c = Cluster()
    asked = c.incr(1, b"n", seen=c.version(1))
    c.settle()
    c.depose(1)
    c.first(2, asked)
    c.settle()
    assert c.value(2, b"n") == 1


def test_r5_a_first_attempt_behind_its_retry_is_looked_up() -> None:
    c = Cluster()
    put = Put(b"k", msgspec.Raw(msgpack.packb(1)))
    asked = c.new(put, seen=c.version(1))
    c.retry(1, asked)
    c.settle()
    c.put(1, b"k", 2)
    c.first(1, asked)
    c.settle()
    assert asked.answers[0] == asked.answers[1]
    assert c.value(1, b"k") == 2


def test_r5_the_failed_condition_of_a_retry_is_written_down() -> None:
    c = Cluster()
    c.put(1, b"k", 1)
    c.settle()
    put = Put(b"k", msgspec.Raw(msgpack.packb(2)), expect=ABSENT)
    asked = c.new(put, seen=c.version(1))
    c.retry(1, asked)
    c.settle()
    assert c.log(3)[-1].keys == []
    c.delete(1, b"k")
    c.settle()
    c.first(1, asked)
    c.settle()
    assert isinstance(asked.answers[0], Conflict)
    assert asked.answers[1] == asked.answers[0], "no other attempt may still succeed"
    assert c.value(1, b"k") is None


def test_r5_beyond_the_log_nothing_is_executed_on_suspicion() -> None:
    c = Cluster()
    early = c.version(1)
    retried = c.incr(1, b"n", seen=early)
    for number in range(400):
        c.put(1, b"k", number)
    c.settle()
    c.depose(1)
    c.retry(2, retried)
    fresh = c.incr(2, b"m", seen=early)
    c.settle()
    assert isinstance(retried.answer, Failed)
    assert retried.answer.code is Code.UNKNOWN
    assert fresh.answer == Stale(c.version(2))
    assert c.value(2, b"n") == 1
    assert c.value(2, b"m") is None


def test_r5_when_the_ids_of_retries_are_full_a_new_ballot_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.primary.RETRIED_OPERATIONS_MAX", 2)
    c = Cluster()
    before = c.slot(1).established
    for _ in range(2):
        c.retry(1, c.incr(1, b"n"))
    c.settle()
    assert c.slot(1).established > before
    assert c.serves(1)
    assert c.primary(1).retried == set()
    assert c.value(1, b"n") == 2


def test_r6_a_read_is_answered_by_a_confirmation_and_no_fsync() -> None:
    c = Cluster()
    c.put(1, b"k", 5)
    c.settle()
    read = c.get(1, b"k")
    assert read.answer is None
    c.deliver_all()
    assert found_value(read.answer) == 5
    assert not any(node.unsynced for node in c.nodes.values())


def test_r6_a_deposed_primary_answers_no_read() -> None:
    c = Cluster()
    c.depose(1)
    written = c.put(2, b"k", 5)
    c.settle()
    assert isinstance(written.answer, Done)
    read = c.get(1, b"k")
    assert read.accepted
    c.pass_time(2_000, nodes=(1,))
    for peer in (2, 3):
        c.deliver(1, peer, Confirm)
        c.deliver(peer, 1, Confirmed)
    assert read.answer is None
    c.deliver(2, 1, Refuse)
    c.pass_time(20_000, nodes=(1,))
    assert read.answer is None
    assert read.moved == [True]


def test_r6_a_confirmation_serves_no_read_that_came_after_it_was_asked_for() -> None:
    c = Cluster()
    early = c.get(1, b"k")
    for peer in (2, 3):
        c.deliver(1, peer, Confirm)
    late = c.get(1, b"k")
    for peer in (2, 3):
        c.deliver(peer, 1, Confirmed)
    assert early.answer == Absent()
    assert late.answer is None
    c.deliver_all()
    assert late.answer == Absent()


def test_r6_one_confirmation_serves_all_reads_of_a_tick() -> None:
    c = Cluster()
    reads = [c.new(Get(b"%d" % n)) for n in range(5)]
    for read in reads:
        c.submit(1, read)
    c.nodes[1].end_tick()
    assert all(len(c.sent(1, peer, Confirm)) <= 1 for peer in (2, 3))
    c.deliver_all()
    assert c.answered == reads


def test_r6_a_read_sees_what_is_in_flight_and_waits_for_it() -> None:
    c = Cluster()
    c.put(1, b"k", 5)
    read = c.get(1, b"k")
    c.deliver_all()
    assert read.answer is None, "confirmed, but not committed"
    c.settle()
    assert found_value(read.answer) == 5


def test_r6_a_peer_confirms_only_the_slots_that_it_was_asked_about() -> None:
    """Node 3 is asked about slot 1 alone, and it knows that slot 0 has another primary."""
    c = Cluster(owners=((1, 2, 3), (1, 3, 4)), ids=(1, 2, 3, 4))
    c.inject(2, 3, Prepare(0, Ballot(9, 2)))
    for _ in range(2):  # whom a round asks depends on its number
        reads = [c.new(Get(b"k"), slot=slot) for slot in (0, 1)]
        for read in reads:
            c.submit(1, read)
        c.nodes[1].end_tick()
        c.drop(1, 2)
        for peer in (3, 4):
            c.deliver(1, peer)
            c.deliver(peer, 1, Confirmed)
        assert reads[0].answer is None


def test_r6_a_late_answer_speaks_only_for_what_it_was_asked_about() -> None:
    """Node 3 is asked about slot 1 alone, then about both; its first answer comes last."""
    c = Cluster(owners=((1, 2, 3), (1, 3, 4)), ids=(1, 2, 3, 4))
    for a, b in ((1, 2), (1, 3), (1, 4)):
        c.hold(a, b)
    tried = 0
    for _ in range(2):  # whom a round asks depends on its number
        reads = [c.new(Get(b"k"), slot=slot) for slot in (0, 1)]
        for read in reads:
            c.submit(1, read)
        c.nodes[1].end_tick()
        asked = [slots_of(confirm) for confirm in c.sent(1, 3, Confirm)]
        c.deliver(1, 3)
        late = c.drop(3, 1)
        c.drop(1, 2)
        c.drop(1, 4)
        if asked != [[1]]:
            continue
        tried += 1
        c.inject(2, 3, Prepare(0, Ballot(9, 2)))
        c.pass_time(50, nodes=(1,))
        assert [slots_of(confirm) for confirm in c.sent(1, 3, Confirm)] == [[0, 1]]
        c.inject(3, 1, late[0])
        assert [read.answer for read in reads] == [None, Absent()]
    assert tried


def test_r6_who_was_not_asked_about_a_slot_is_not_counted_there() -> None:
    """Slot 2 has five members, so it needs two confirmations of those that were asked about it."""
    c = Cluster(owners=((1, 2, 3), (1, 2, 3), (1, 4, 5, 2, 3)), ids=(1, 2, 3, 4, 5))
    for peer in (2, 3, 4, 5):
        c.hold(1, peer)
    for _ in range(4):
        reads = [c.new(Get(b"k"), slot=slot) for slot in (2, 0, 1)]
        for read in reads:
            c.submit(1, read)
        c.nodes[1].end_tick()
        asked = {
            peer for peer in (2, 3, 4, 5) for m in c.sent(1, peer, Confirm) if 2 in slots_of(m)
        }
        assert len(asked) == 2
        c.drop(1, max(asked))
        for peer in (2, 3, 4, 5):
            c.deliver(1, peer)
            c.deliver(peer, 1)
        assert reads[0].answer is None


def test_r6_whoever_can_make_up_for_a_silent_peer_is_asked() -> None:
    """Node 3 is asked about slot 1 alone at first; node 2 never answers about slot 0."""
    c = Cluster(owners=((1, 2, 3), (1, 3, 4)), ids=(1, 2, 3, 4))
    c.hold(1, 2)
    for _ in range(2):  # whom a round asks depends on its number
        reads = [c.new(Get(b"k"), slot=slot) for slot in (0, 1)]
        for read in reads:
            c.submit(1, read)
        c.nodes[1].end_tick()
        c.deliver_all()
        c.pass_time(50, nodes=(1,))
        c.deliver_all()
        c.pass_time(1_000, nodes=(1,))
        c.deliver_all()
        assert [read.answer for read in reads] == [Absent(), Absent()]


def test_r6_a_confirmation_from_before_a_restart_serves_no_read_after_it() -> None:
    c = Cluster()
    c.get(1, b"k")
    peer = 2 if c.sent(1, 2, Confirm) else 3
    c.deliver(1, peer, Confirm)
    late = c.sent(peer, 1, Confirmed)
    c.drop(peer, 1)
    c.crash(1)
    c.calm_down()
    assert c.serves(1)
    c.depose(1)
    written = c.put(2, b"k", 5)
    c.settle()
    assert isinstance(written.answer, Done)
    read = c.get(1, b"k")
    c.inject(peer, 1, late[0])
    assert read.answer is None


def test_r7_an_expired_key_is_absent_once_its_delete_has_committed() -> None:
    c = Cluster()
    c.put(1, b"k", 5, ttl_ms=100)
    c.settle()
    c.pass_time(99)
    alive = c.get(1, b"k")
    c.settle()
    assert found_value(alive.answer) == 5
    c.pass_time(1)
    read = c.get(1, b"k")
    c.deliver_all()
    assert read.answer is None, "a primary with a slower clock could still find it"
    c.settle()
    assert read.answer == Absent()
    assert all(c.value(node, b"k") is None for node in (1, 2, 3))


def test_r7_an_expired_key_is_absent_to_conditions() -> None:
    c = Cluster()
    c.put(1, b"k", 5, ttl_ms=100)
    c.settle()
    c.pass_time(100)
    written = c.put(1, b"k", 6, expect=ABSENT)
    counted = c.incr(1, b"k")
    c.settle()
    assert isinstance(written.answer, Done)
    assert isinstance(counted.answer, Number)
    assert counted.answer.value == 7


def test_r7_a_condition_that_finds_a_key_expired_deletes_it_too() -> None:
    c = Cluster()
    c.put(1, b"k", 5, ttl_ms=100)
    c.settle()
    c.pass_time(100)
    refused = c.put(1, b"k", 6, expect=PRESENT)
    c.settle()
    assert refused.answer == Conflict(b"")
    assert c.value(3, b"k") is None, "a primary with a slower clock would answer that it is there"


def test_r8_a_delete_leaves_nothing_but_its_entry_in_the_log() -> None:
    c = Cluster()
    c.put(1, b"k", 5)
    gone, nothing = c.delete(1, b"k"), c.delete(1, b"k")
    c.settle()
    assert isinstance(gone.answer, Deleted)
    assert isinstance(nothing.answer, Deleted)
    assert (gone.answer.existed, nothing.answer.existed) == (True, False)
    for node in (1, 2, 3):
        slot = c.slot(node)
        assert c.nodes[node].store.scan(slot.prefix, b"", 10) == []
        assert [entry.keys for entry in c.log(node)] == [[b"k"]] * 3


def test_r8_a_replica_that_was_away_learns_of_the_delete() -> None:
    c = Cluster()
    c.put(1, b"k", 5)
    c.settle()
    c.isolate(3)
    c.delete(1, b"k")
    c.settle()
    assert c.value(3, b"k") == 5
    c.drop(1, 3)
    c.reconnect(3)
    c.settle()
    assert c.value(3, b"k") is None
    assert c.content(3) == c.content(1)


def test_r16_a_slot_is_founded_once() -> None:
    c = Cluster()
    c.put(1, b"k", 5)
    c.settle()
    with pytest.raises(AssertionError, match="founded once"):
        c.nodes[1].table.found(c.owners)
    c.crash(2)
    with pytest.raises(AssertionError, match="founded once"):
        c.nodes[2].table.found(c.owners)
    assert c.value(2, b"k") == 5


def test_r16_founding_gives_a_node_only_what_names_it() -> None:
    c = Cluster(owners=((1, 2),))
    assert c.nodes[3].table.slots == [None]
    c.inject(2, 3, Prepare(SLOT, Ballot(9, 2)))
    assert not c.waits_for_fsync(3, Promise)
    assert c.nodes[3].table.slots == [None]
