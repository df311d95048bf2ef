"""Rules 9 to 12 of the protocol, one by one: each test fails if its rule is taken out."""

from __future__ import annotations

import msgspec
import pytest

from cluster.ballot import Ballot, Position
from cluster.messages import (
    Accept,
    Ack,
    Ask,
    Establish,
    Gap,
    HandOver,
    Install,
    Prepare,
    Promise,
    Pull,
    Pulled,
    Refuse,
    Tail,
    TailQuery,
    Willing,
)
from cluster.operations import Done, Number
from tests.cluster.core_harness import SLOT, Cluster


def prepared() -> Cluster:
    """Node 1 is cut off; node 2 was told that node 3 is willing, and writes its own promise."""
    c = Cluster()
    c.isolate(1)
    c.pass_time(0, nodes=(2,))
    c.deliver(2, 3, Ask)
    c.deliver(3, 2, Willing)
    return c


def write_past(c: Cluster, away: int, count: int) -> None:
    """Writes that a member misses altogether."""
    c.hold(1, away)
    for number in range(count):
        c.put(1, b"%03d" % number, number)
    c.settle()
    c.drop(1, away)


# -- rule 9 ------------------------------------------------------------------------------------


def test_r9_asking_first_has_no_effect() -> None:
    c = Cluster()
    before = [c.slot(node).row() for node in (1, 2, 3)]
    c.isolate(1)
    c.pass_time(0, nodes=(2,))
    assert len(c.sent(2, 3, Ask)) == 1
    c.deliver(2, 3, Ask)
    assert len(c.sent(3, 2, Willing)) == 1
    assert [c.slot(node).row() for node in (1, 2, 3)] == before


def test_r9_who_cannot_win_disturbs_nobody() -> None:
    """Node 2 alone has lost node 1; node 3 sees a primary, and says nothing."""
    c = Cluster()
    c.hold(1, 2)
    c.nodes[2].table.peer_down(1)
    c.pass_time(0, nodes=(2,))
    assert c.sent(2, 3, Ask)
    c.calm_down()
    assert c.serves(1)
    assert [c.slot(node).promised for node in (1, 2, 3)] == [Ballot(1, 1)] * 3


def test_r9_a_candidates_own_promise_is_durable_before_it_asks_for_others() -> None:
    c = prepared()
    assert c.slot(2).promised == Ballot(2, 2)
    assert not c.sent(2, 3, Prepare)
    c.sync(2)
    assert c.sent(2, 3, Prepare) == [Prepare(SLOT, Ballot(2, 2))]


def test_r9_a_promise_is_durable_before_it_is_answered() -> None:
    c = prepared()
    c.sync(2)
    c.deliver(2, 3, Prepare)
    assert c.slot(3).promised == Ballot(2, 2)
    assert not c.sent(3, 2, Promise)
    c.sync(3)
    assert [m.ballot for m in c.sent(3, 2, Promise)] == [Ballot(2, 2)]
    c.crash(3)
    assert c.slot(3).promised == Ballot(2, 2)


def test_r9_a_lower_ballot_is_refused_by_name() -> None:
    c = prepared()
    c.settle()
    c.inject(1, 3, Prepare(SLOT, Ballot(1, 9)))
    assert c.sent(3, 1, Refuse) == [Refuse(SLOT, Ballot(2, 2))]
    assert not c.waits_for_fsync(3, Promise)


def test_r9_a_candidate_goes_above_what_it_was_refused_for() -> None:
    c = Cluster()
    c.inject(1, 3, Prepare(SLOT, Ballot(40, 1)))
    c.settle()
    c.isolate(1)
    for _ in range(5):
        c.pass_time(100, nodes=(2,))
        c.settle()
    assert c.serves(2)
    assert c.slot(2).established > Ballot(40, 1)


def test_r9_nobody_without_state_promises() -> None:
    c = Cluster(owners=((1, 2),))
    c.inject(2, 3, Establish(SLOT, Ballot(9, 2), Position(Ballot(9, 2), 0), 0))
    assert not c.slot(3).holds_state
    assert [m.position for m in c.sent(3, 2, Gap)] == [None]
    c.inject(2, 3, Prepare(SLOT, Ballot(10, 2)))
    c.inject(2, 3, Ask(SLOT, Ballot(10, 2)))
    c.sync(3)
    assert not c.sent(3, 2, Promise)
    assert not c.sent(3, 2, Willing)


def test_r9_one_promise_is_no_quorum() -> None:
    c = prepared()
    c.sync(2)
    assert not c.sent(2, 3, Establish)
    c.settle()
    assert c.serves(2)


def test_r9_a_candidate_with_stale_state_copies_best_first() -> None:
    c = Cluster()
    write_past(c, 2, 1)
    c.isolate(1)
    c.pass_time(0, nodes=(2,))
    c.deliver_all()
    c.sync(2)
    c.deliver(2, 3, Prepare)
    c.sync(3)
    c.deliver(3, 2, Promise)
    assert len(c.sent(2, 3, Pull)) == 1
    assert not c.sent(2, 3, Establish), "nothing is established before the copy"
    c.deliver(2, 3, Pull)
    c.deliver(3, 2, Pulled)
    assert c.value(2, b"000") == 0
    c.settle()
    assert c.serves(2)
    assert c.content(2) == c.content(3)


def test_r9_best_goes_by_ballot_before_sequence() -> None:
    """Node 1 wrote much that nobody else has; node 2 leads since, with less. 2 is best."""
    c = Cluster()
    c.isolate(1)
    for number in range(5):
        c.put(1, b"lost", number)
    c.sync(1)
    c.depose(1)
    c.put(2, b"kept", 1)
    c.settle()
    c.isolate(2)
    c.reconnect(1)
    c.hold(1, 2)
    c.wires.clear()
    assert c.slot(1).sequence > c.slot(3).sequence
    c.nodes[1].table.peer_down(2)
    c.calm_down()
    assert c.serves(1)
    assert c.value(1, b"kept") == 1
    assert c.value(1, b"lost") is None


def test_r9_what_one_of_the_quorum_holds_is_committed_by_the_takeover() -> None:
    """The old primary may have answered it: nobody can tell."""
    c = Cluster()
    c.hold(1, 3)
    asked = c.incr(1, b"n")
    c.deliver(1, 2)
    c.sync(2)
    c.drop(1, 3)
    c.depose(1)
    assert c.value(3, b"n") == 1
    c.retry(2, asked)
    c.settle()
    assert isinstance(asked.answer, Number)
    assert asked.answer.value == 1


def test_r9_no_operation_of_the_ballot_exists_before_a_quorum_is_established() -> None:
    c = prepared()
    c.sync(2)
    c.deliver(2, 3)
    c.sync(3)
    c.deliver(3, 2)
    assert c.sent(2, 3, Establish)
    held = c.put(2, b"k", 5)
    assert held.accepted
    c.sync(2)
    assert not c.sent(2, 3, Accept), "its own fsync is no quorum"
    assert c.slot(2).sequence == 0
    c.settle()
    assert isinstance(held.answer, Done)
    assert c.value(3, b"k") == 5


def test_r9_establishing_is_acknowledged_after_the_fsync() -> None:
    c = prepared()
    c.sync(2)
    c.deliver(2, 3)
    c.sync(3)
    c.deliver(3, 2)
    c.sync(2)
    c.deliver(2, 3, Establish)
    assert c.slot(3).established == Ballot(2, 2)
    assert not c.sent(3, 2, Ack)
    assert not c.serves(2)
    c.sync(3)
    c.deliver(3, 2, Ack)
    assert c.serves(2)


def test_r9_only_an_equal_position_is_established() -> None:
    c = Cluster()
    write_past(c, 3, 1)
    ballot, there = Ballot(9, 2), c.position(2)
    c.inject(2, 3, Establish(SLOT, ballot, there, there.sequence))
    assert c.slot(3).established == Ballot(1, 1)
    assert [m.position for m in c.sent(3, 2, Gap)] == [c.position(3)]
    assert not c.waits_for_fsync(3, Ack)


def test_r9_establish_is_repeated_until_nobody_is_behind() -> None:
    c = Cluster()
    c.put(1, b"k", 5)
    c.drop(1, 3)
    c.settle()
    assert c.value(3, b"k") is None
    c.calm_down()
    assert c.content(3) == c.content(1)


# -- rule 10 -----------------------------------------------------------------------------------


def test_r10_the_first_reachable_member_takes_over_at_once() -> None:
    c = Cluster()
    c.isolate(1)
    c.pass_time(1, nodes=(2, 3))
    assert c.sent(2, 3, Ask)
    assert not c.sent(3, 2, Ask), "the third leaves the second time to win"
    assert c.nodes[3].table.want(SLOT) == 2
    c.settle()
    assert c.serves(2)


def test_r10_the_next_member_tries_when_the_first_does_not_win() -> None:
    c = Cluster(owners=((1, 2, 3, 4, 5),), ids=(1, 2, 3, 4, 5))
    c.isolate(1)
    for other in (3, 4, 5):
        c.hold(2, other)  # silent, but nobody suspects it yet
    c.pass_time(1_000)
    assert not c.sent(3, 4, Ask)
    c.pass_time(1_000)
    assert c.sent(3, 4, Ask)
    c.settle()
    assert c.serves(3)


def test_r10_a_primary_that_is_asked_for_its_slot_looks_whether_it_was_deposed() -> None:
    """Without a read or write nobody else would tell it, and the asker would ask for ever."""
    c = Cluster()
    c.inject(3, 2, Prepare(SLOT, Ballot(7, 3)))  # of a candidate that died over it
    c.sync(2)
    c.drop(2, 3)
    c.inject(2, 1, Ask(SLOT, Ballot(8, 2)))
    c.deliver(1, 2, Establish)
    c.deliver(2, 1, Refuse)
    assert not c.serves(1)
    c.settle()
    c.pass_time(2_000)
    c.settle()
    assert c.primary(1).ballot > Ballot(7, 3)


def test_r10_a_primary_that_is_asked_and_not_deposed_goes_on() -> None:
    c = Cluster()
    before = c.primary(1).ballot
    c.inject(2, 1, Ask(SLOT, Ballot(8, 2)))
    c.settle()
    assert c.serves(1)
    assert c.primary(1).ballot == before


def test_r10_a_returning_member_catches_up_and_takes_its_slot_back() -> None:
    c = Cluster()
    c.depose(1)
    c.put(2, b"k", 5)
    c.settle()
    c.reconnect(1)
    c.calm_down()
    assert c.serves(1)
    assert not c.serves(2)
    assert c.content(1) == c.content(2) == c.content(3)
    assert c.value(1, b"k") == 5


def test_r10_a_handover_waits_for_what_is_in_flight_and_holds_what_is_new() -> None:
    c = Cluster()
    c.depose(1)
    c.reconnect(1)
    c.settle()
    in_flight = c.put(2, b"k", 5)
    c.pass_time(100, nodes=(2,))
    assert c.primary(2).handing_to == 1
    assert not c.sent(2, 1, HandOver), "one write is not committed yet"
    held = c.incr(2, b"n")
    assert held.accepted
    assert c.slot(2).sequence == 1
    c.settle()
    assert isinstance(in_flight.answer, Done)
    assert c.serves(1)
    assert held.moved == [False], "it was never started"


# -- rule 11 -----------------------------------------------------------------------------------


def install_for(c: Cluster, peer: int) -> Install:
    """Bring a member back into touch, as far as the Install that is on its way to it."""
    c.release(1, peer)
    c.nodes[1].table.peer_up(peer)
    c.nodes[1].end_tick()
    c.deliver(1, peer, Establish)
    c.deliver(peer, 1, Gap)
    c.sync(peer)
    (install,) = c.sent(1, peer, Install)
    return install


@pytest.mark.parametrize("missed", [3, 400], ids=["from the key log", "a whole copy"])
def test_r11_a_transfer_happens_at_once_or_not_at_all(missed: int) -> None:
    seen = set()
    for keep in range(10):
        c = Cluster()
        c.put(1, b"old", 1)
        c.settle()
        c.isolate(3)
        c.delete(1, b"old")
        write_past(c, 3, missed)
        before, after = (c.position(3), c.content(3)), (c.position(1), c.content(1))
        c.reconnect(3)
        c.deliver_all()
        assert (c.position(3), c.content(3)) == after
        c.crash(3, keep=keep)
        now = (c.position(3), c.content(3))
        assert now in (before, after)
        seen.add(now == after)
    assert seen == {False, True}


def test_r11_content_is_acknowledged_after_the_fsync() -> None:
    c = Cluster()
    write_past(c, 3, 3)
    install_for(c, 3)
    c.drop(3, 1)
    c.deliver(1, 3, Install)
    assert c.content(3) == c.content(1)
    assert not c.sent(3, 1, Ack)
    c.sync(3)
    assert [m.sequence for m in c.sent(3, 1, Ack)] == [3]


def test_r11_the_copy_replaces_what_the_receiver_alone_had() -> None:
    """A deposed primary's write that nobody else saw is taken back, key and log entry."""
    c = Cluster()
    c.put(1, b"both", 1)
    c.settle()
    c.isolate(1)
    c.put(1, b"alone", 1)
    c.put(1, b"both", 2)
    c.sync(1)
    c.depose(1)
    c.put(2, b"new", 1)
    c.settle()
    assert c.value(1, b"alone") == 1
    c.wires.clear()
    c.reconnect(1)
    c.deliver_all()
    assert c.position(1) == c.position(2)
    assert c.content(1) == c.content(2), "by the copy itself, before another takeover"
    c.calm_down()
    assert c.value(1, b"alone") is None
    assert c.value(1, b"both") == 1
    assert c.content(1) == c.content(2)


def test_r11_a_primary_asks_what_a_strayed_member_touched() -> None:
    c = Cluster()
    c.isolate(1)
    c.put(1, b"alone", 1)
    c.depose(1)
    c.wires.clear()
    c.reconnect(1)
    c.deliver(2, 1, Establish)
    c.deliver(1, 2, Gap)
    c.deliver(2, 1, TailQuery)
    assert [m.keys for m in c.sent(1, 2, Tail)] == [[b"alone"]]
    c.deliver(1, 2, Tail)
    assert [m.content.changes for m in c.sent(2, 1, Install)] == [[(b"alone", None)]]


def test_r11_content_is_void_at_any_position_but_its_own() -> None:
    c = Cluster()
    write_past(c, 3, 3)
    install = install_for(c, 3)
    elsewhere = msgspec.structs.replace(install, base=Position(Ballot(1, 1), 2))
    before = c.content(3)
    c.inject(1, 3, elsewhere)
    assert c.content(3) == before
    assert not c.waits_for_fsync(3, Ack)


def test_r11_a_late_copy_does_not_take_a_position_back() -> None:
    c = Cluster()
    write_past(c, 3, 3)
    install = install_for(c, 3)
    c.settle()
    c.put(1, b"000", 99)
    c.settle()
    after = c.position(3)
    c.inject(1, 3, install)
    c.inject(1, 3, msgspec.structs.replace(install, base=after))
    assert c.position(3) == after
    assert c.value(3, b"000") == 99


def test_r11_content_of_a_lower_ballot_is_refused() -> None:
    c = Cluster()
    write_past(c, 3, 3)
    install = install_for(c, 3)
    c.inject(2, 3, Prepare(SLOT, Ballot(9, 2)))
    before = c.content(3)
    c.inject(1, 3, install)
    assert c.content(3) == before
    assert c.sent(3, 1, Refuse) == [Refuse(SLOT, Ballot(9, 2))]


def test_r11_the_ballot_is_entered_with_the_content() -> None:
    c = Cluster()
    write_past(c, 3, 3)
    install = install_for(c, 3)
    higher = msgspec.structs.replace(install, ballot=Ballot(9, 1))
    c.inject(1, 3, higher)
    slot = c.slot(3)
    assert slot.promised == slot.established == Ballot(9, 1)
    c.crash(3, keep=1)
    slot = c.slot(3)
    assert slot.promised == slot.established == Ballot(9, 1)


def test_r11_best_gives_its_state_only_while_its_promise_stands() -> None:
    c = Cluster()
    write_past(c, 2, 1)
    c.isolate(1)
    c.pass_time(0, nodes=(2,))
    c.deliver_all()
    c.sync(2)
    c.deliver(2, 3)
    c.sync(3)
    c.deliver(3, 2)
    c.inject(1, 3, Prepare(SLOT, Ballot(9, 1)))
    c.deliver(2, 3, Pull)
    assert not c.sent(3, 2, Pulled)


# -- rule 12 -----------------------------------------------------------------------------------


def test_r12_a_restarted_node_is_primary_of_nothing() -> None:
    c = Cluster()
    c.put(1, b"k", 5)
    c.settle()
    c.crash(1)
    assert c.slot(1).role is None
    assert not c.put(1, b"k", 6).accepted
    assert list(c.nodes[1].table.led()) == []
    assert c.position(1) == c.position(2)
    assert c.value(1, b"k") == 5
    c.calm_down()
    assert c.serves(1)
    assert c.slot(1).established > Ballot(1, 1), "its old ballot is over"


def test_r12_a_crash_keeps_what_was_synced_and_a_prefix_of_the_rest() -> None:
    c = Cluster()
    c.put(1, b"a", 1)
    c.settle()
    c.put(1, b"b", 2)
    c.put(1, b"c", 3)
    c.crash(1, keep=1)
    assert [c.value(1, key) for key in (b"a", b"b", b"c")] == [1, 2, None]
    assert c.slot(1).sequence == 2
    assert len(c.log(1)) == 2


def test_r12_a_write_that_no_quorum_had_may_be_lost_and_was_never_answered() -> None:
    c = Cluster()
    c.hold(1, 2)
    c.hold(1, 3)
    asked = c.put(1, b"k", 5)
    c.wires.clear()
    c.crash(1)
    c.release(1, 2)
    c.release(1, 3)
    c.calm_down()
    assert asked.answer is None
    assert {c.value(node, b"k") for node in (1, 2, 3)} == {None}
