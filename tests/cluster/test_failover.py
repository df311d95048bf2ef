"""Takeovers, handovers and returns of many slots: who may, in which numbers, and who must not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster import catching_up, leadership
from cluster.ballot import Ballot
from cluster.catching_up import UNDER_WAY_MAX
from cluster.leadership import CANDIDATES_BESIDE_WANTED_MAX, HANDOVER_SLOTS_MAX
from cluster.messages import Ask, Establish, HandOver, Prepare, Retiring, Willing
from cluster.operations import Done
from cluster.records import pack_ballot
from cluster.slot import Candidate, Primary
from cluster.takeover import next_ballot
from tests.cluster.core_harness import MEMBERS, SLOT, Cluster

if TYPE_CHECKING:
    import pytest

MANY = 160
"""More slots than are taken over, brought or handed over at once."""


def many() -> Cluster:
    """All led by node 1."""
    return Cluster(owners=[MEMBERS] * MANY)


def led(c: Cluster, at: int) -> int:
    return sum(1 for _ in c.nodes[at].table.led())


# -- taking over -------------------------------------------------------------------------------


def test_who_notices_last_answers_late() -> None:
    """Node 2 asks before node 3 knows that node 1 died; that must not cost a timeout."""
    c = Cluster()
    c.hold(1, 2)
    c.hold(1, 3)
    c.nodes[2].table.peer_down(1)
    c.pass_time(0, nodes=(2,))
    c.deliver(2, 3, Ask)
    assert not c.sent(3, 2, Willing)
    c.nodes[3].table.peer_down(1)
    c.nodes[3].end_tick()
    assert c.sent(3, 2, Willing)
    c.settle()
    assert c.serves(2)


def test_a_question_that_was_not_answered_is_forgotten_once_it_is() -> None:
    c = Cluster()
    c.hold(1, 2)
    c.nodes[2].table.peer_down(1)
    c.pass_time(0, nodes=(2,))
    c.deliver(2, 3, Ask)
    for _ in range(2):
        c.nodes[3].table.peer_down(1)
        c.nodes[3].end_tick()
    assert len(c.sent(3, 2, Willing)) == 1


def test_a_candidacy_that_only_asked_ends_when_a_leader_is_known() -> None:
    """... and does not keep the next one from beginning at once."""
    c = Cluster()
    c.hold(1, 2)
    c.nodes[2].table.peer_down(1)
    c.pass_time(0, nodes=(2,))
    assert isinstance(c.slot(2).role, Candidate)
    c.nodes[2].table.peer_up(1)
    c.nodes[2].table.peer_leads(1, [SLOT])
    assert c.slot(2).role is None
    c.isolate(1)
    c.pass_time(0, nodes=(2,))
    c.settle()
    assert c.serves(2)


def test_a_vain_question_is_asked_again_when_the_next_leader_dies() -> None:
    c = Cluster()
    c.hold(1, 2)
    c.nodes[2].table.peer_down(1)
    c.pass_time(0, nodes=(2,))
    c.drop(2, 3)
    c.isolate(1)
    c.nodes[2].table.leadership.orphan([SLOT])
    c.nodes[2].end_tick()
    c.settle()
    assert c.serves(2)


def test_the_next_leaders_word_in_the_tick_of_stepping_down_leaves_no_orphan() -> None:
    c = Cluster()
    c.isolate(1)
    c.pass_time(0, nodes=(2, 3))
    c.settle()
    assert c.serves(2)
    c.release(1, 2)
    one = c.nodes[1].table
    one.receive(2, [Establish(SLOT, c.primary(2).ballot, c.primary(2).base, 0)])
    one.peer_leads(2, [SLOT])
    c.nodes[1].end_tick()
    assert not one.leadership.orphans


def test_takeovers_are_prepared_many_in_one_frame_and_one_fsync(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leadership, "CANDIDATES_MAX", MANY // 2)
    c = many()
    c.isolate(1)
    c.pass_time(0, nodes=(2,))
    assert len(c.sent(2, 3, Ask)) == MANY // 2
    c.deliver_all()
    assert len(c.waits_for_fsync(2, Prepare)) == 2 * (MANY // 2)  # to nodes 1 and 3
    c.settle()
    assert led(c, 2) == MANY


def test_a_wanted_slot_goes_before_thousands_that_nobody_waits_for() -> None:
    c = many()
    c.isolate(1)
    c.nodes[2].table.want(MANY - 1)
    c.nodes[2].end_tick()
    asked = [ask.slot for ask in c.sent(2, 3, Ask)]
    assert asked[0] == MANY - 1
    assert len(asked) <= CANDIDATES_BESIDE_WANTED_MAX


# -- catching up -------------------------------------------------------------------------------


def back_after_missing_a_write_to_each_slot() -> Cluster:
    """Node 3 can be reached again; nothing has arrived there yet."""
    c = many()
    c.isolate(3)
    for number in range(MANY):
        asked = c.new(c.put(1, b"k", 1).operation, slot=number)
        c.submit(1, asked)
    c.nodes[1].end_tick()
    c.settle()
    c.drop(1, 3)
    c.nodes[1].table.peer_up(3)
    c.nodes[1].end_tick()
    return c


def test_a_slow_peer_is_not_reminded_of_slots_that_have_yet_to_take_their_turn() -> None:
    c = back_after_missing_a_write_to_each_slot()
    for _ in range(19):
        c.pass_time(100, nodes=(1,))
    assert len(c.sent(1, 3, Establish)) <= MANY


def test_a_peer_that_returns_is_brought_a_few_slots_at_a_time() -> None:
    c = back_after_missing_a_write_to_each_slot()
    c.release(1, 3)
    most = 0
    while c.sent(1, 3, Establish):
        most = max(most, len(c.sent(1, 3, Establish)))
        c.deliver(1, 3)
        c.deliver(3, 1)
        c.sync(3)
        c.deliver(3, 1)
        c.deliver(1, 3)
        c.sync(3)
        c.deliver(3, 1)
    assert most <= UNDER_WAY_MAX
    rows = [(node.table.slots[n].position) for node in (c.nodes[1], c.nodes[3]) for n in (0, 9)]  # type: ignore[union-attr]
    assert rows[:2] == rows[2:]
    assert not c.nodes[1].table.leadership.catching_up.under_way


def test_a_peer_that_is_being_brought_on_does_not_hurry_it_by_asking() -> None:
    """It was answered with hundreds of Establish beside those whose turn it was."""
    c = back_after_missing_a_write_to_each_slot()
    before = len(c.sent(1, 3, Establish))
    for number in range(MANY):
        c.inject(3, 1, Ask(number, Ballot(9, 3)))
    assert len(c.sent(1, 3, Establish)) == before == UNDER_WAY_MAX


def test_a_peer_that_missed_nothing_is_gone_over_in_bounded_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catching_up, "LOOKS_MAX", MANY // 4)
    c = many()
    c.depose(1)
    c.pass_time(100, nodes=(2, 3))
    c.settle()
    for number in range(MANY):  # all of it got there: only the link was away
        primary = c.nodes[2].table.slots[number].role  # type: ignore[union-attr]
        assert isinstance(primary, Primary)
        primary.durable[3] = primary.committed
    steps = 0
    c.nodes[2].table.peer_down(3)
    c.nodes[2].table.peer_up(3)
    while 3 in c.nodes[2].table.leadership.catching_up.under_way:
        assert not c.sent(2, 3, Establish)
        c.pass_time(50, nodes=(2,))
        steps += 1
    assert steps >= 3


# -- handing over ------------------------------------------------------------------------------


def test_slots_are_handed_back_in_bounded_numbers() -> None:
    c = many()
    c.depose(1)
    c.pass_time(100, nodes=(2, 3))
    c.settle()
    assert led(c, 2) == MANY
    c.reconnect(1)
    most = 0
    for _ in range(20):
        c.pass_time(50)
        most = max(most, len(c.nodes[2].table.leadership.handing))
        c.settle()
    assert led(c, 1) == MANY
    assert 0 < most <= HANDOVER_SLOTS_MAX


def test_the_next_slots_are_handed_over_as_soon_as_half_are_done_and_not_by_the_clock() -> None:
    c = many()
    c.depose(1)
    c.pass_time(100, nodes=(2, 3))
    c.settle()
    c.reconnect(1)
    c.settle()
    c.pass_time(50)
    c.settle()
    assert led(c, 1) == MANY


def test_a_node_that_was_cut_off_learns_of_all_slots_at_once_that_others_lead_them() -> None:
    """... instead of from a refusal of each: it told its peers of thousands of old ballots."""
    c = many()
    c.depose(1)
    c.pass_time(100, nodes=(2, 3))
    c.settle()
    assert led(c, 1) == led(c, 2) == MANY
    asked = c.put(1, b"k", 1)
    ballot = pack_ballot(c.primary(2).ballot)
    c.nodes[1].table.peer_leads(2, range(MANY), ballot_of=lambda _: pack_ballot(Ballot(1, 1)))
    assert led(c, 1) == MANY, "an older word"
    c.nodes[1].table.peer_leads(2, range(MANY), ballot_of=lambda _: ballot)
    c.nodes[1].end_tick()
    assert led(c, 1) == 0
    assert asked.moved == [True]
    assert not c.nodes[1].table.leadership.orphans
    assert next_ballot(c.slot(1), c.nodes[1].table._ctx).round > c.primary(2).ballot.round
    c.reconnect(1)
    c.calm_down()
    assert led(c, 1) == MANY


def test_a_leader_that_was_deposed_without_a_word_learns_it_by_what_it_tells() -> None:
    """A slow rival was promised a higher ballot by the others, and then gave up; nobody writes."""
    c = many()
    ballot = c.primary(1).ballot
    for node in (2, 3):
        slot = c.slot(node)
        slot.promised = Ballot(ballot.round + 1, 2)
        c.nodes[node].table.peer_leads(1, [slot.number], ballot_of=lambda _: pack_ballot(ballot))
        c.nodes[node].end_tick()
    c.calm_down()
    assert c.primary(1).ballot.round > ballot.round + 1


def test_a_handover_is_taken_by_one_who_was_only_asking() -> None:
    c = Cluster()
    c.depose(1)
    c.reconnect(1)
    c.settle()
    one = c.nodes[1].table
    one.leadership.orphans[SLOT] = 0
    c.slot(1).role = Candidate(c.slot(1).promised, c.now_ms, asking=True)
    c.pass_time(50, nodes=(2,))
    assert c.sent(2, 1, HandOver)
    c.settle()
    assert c.serves(1)


def test_a_node_that_is_to_stop_hands_everything_over_and_gets_nothing_back() -> None:
    c = many()
    before = c.put(1, b"k", 1)
    c.settle()
    c.nodes[1].table.leadership.retire()
    c.nodes[1].end_tick()
    assert c.sent(1, 2, Retiring)
    for _ in range(40):
        c.pass_time(50)
        c.settle()
        if c.nodes[1].table.leadership.retired:
            break
    assert c.nodes[1].table.leadership.retired
    assert led(c, 1) == 0
    assert led(c, 2) == MANY
    c.calm_down()
    assert led(c, 2) == MANY
    assert isinstance(before.answer, Done)
    assert c.value(2, b"k") == 1


def test_nothing_is_handed_to_a_node_that_stops_too() -> None:
    c = Cluster()
    c.nodes[2].table.leadership.retire()
    c.nodes[2].end_tick()
    c.settle()
    c.nodes[1].table.leadership.retire()
    c.pass_time(50)
    c.settle()
    c.pass_time(50)
    c.settle()
    assert c.serves(3)


def test_a_handover_to_a_node_that_is_to_stop_is_called_off() -> None:
    """What was held meanwhile is carried out at once."""
    c = Cluster()
    c.depose(1)
    c.reconnect(1)
    c.settle()
    c.nodes[1].table.leadership.retire()
    c.nodes[1].end_tick()
    c.pass_time(50, nodes=(2,))
    held = c.put(2, b"k", 1)
    assert c.sent(2, 1, HandOver)
    c.settle()
    assert c.serves(2)
    assert isinstance(held.answer, Done)


def test_all_nodes_may_stop_at_once() -> None:
    c = Cluster()
    for node in c.nodes.values():
        node.table.leadership.retire()
        node.end_tick()
    c.settle()
    c.pass_time(50)
    assert all(node.table.leadership.retired for node in c.nodes.values())


def test_a_node_that_stopped_and_came_back_is_preferred_again() -> None:
    c = Cluster()
    c.nodes[1].table.leadership.retire()
    c.pass_time(50)
    c.settle()
    assert c.serves(2)
    c.crash(1)
    c.calm_down()
    assert c.serves(1)
