"""Rules 13 to 15 of the protocol, one by one: each test fails if its rule is taken out.

Five nodes; the slot begins at 1, 2 and 3. Holding a link is how a move is stopped at a stage.
"""

from __future__ import annotations

from cluster.ballot import NO_POSITION, Ballot, Position
from cluster.messages import (
    Accept,
    Ack,
    Ask,
    Chunk,
    Drop,
    Establish,
    Fetch,
    Gap,
    HandOver,
    Head,
    Prepare,
    Promise,
    Refuse,
    Surplus,
    Willing,
)
from cluster.operations import Done
from cluster.slot_config import SlotConfig
from tests.cluster.core_harness import MEMBERS, SLOT, Cluster

IDS = (1, 2, 3, 4, 5)
OLD = SlotConfig((MEMBERS,))


def five() -> Cluster:
    c = Cluster(ids=IDS)
    c.put(1, b"k", 5)
    c.settle()
    return c


def learning(*wanted: int) -> Cluster:
    """The learners are named, and reached by nothing that would bring them the slot."""
    c = five()
    for node in wanted:
        if node not in MEMBERS:
            c.hold(1, node)
    c.want(wanted)
    c.settle()
    for node in wanted:
        c.wire(1, node).clear()
    return c


def joint(*wanted: int) -> Cluster:
    """The joint config is applied by the primary, and on its way to everyone else."""
    c = learning(*wanted)
    missing = [node for node in wanted if node not in MEMBERS]
    for node in missing:
        c.release(1, node)
    c.pass_time(1_000, nodes=(1,))
    while len(c.slot(1).config.sets) == 1:
        for node in missing:
            c.deliver(1, node)
            c.sync(node)
            c.deliver(node, 1)
    return c


def configs(c: Cluster, sender: int, to: int) -> list[SlotConfig]:
    """The config operations on their way."""
    return [m.config for m in c.sent(sender, to, Accept) if m.config is not None]


# -- rule 13 -----------------------------------------------------------------------------------


def test_r13_the_missing_owners_are_named_as_learners_by_an_operation() -> None:
    c = five()
    c.want((1, 2, 4))
    named = SlotConfig((MEMBERS,), (4,))
    assert c.slot(1).config == named
    assert [configs(c, 1, node) for node in (2, 3, 4)] == [[named]] * 3
    c.deliver(1, 2)
    assert c.slot(2).config == named
    assert c.content(2) == c.content(1)


def test_r13_a_learner_is_brought_the_slot_and_sent_every_operation() -> None:
    c = learning(1, 2, 4)
    c.release(1, 4)
    c.pass_time(1_000)
    c.deliver_all()
    assert c.content(4) == c.content(1)
    c.put(1, b"new", 6)
    c.deliver(1, 4, Accept)
    assert c.value(4, b"new") == 6


def test_r13_a_learner_counts_for_nothing() -> None:
    c = learning(1, 4, 5)
    for node in (2, 3):
        c.hold(1, node)
    for node in (4, 5):
        c.release(1, node)
    c.pass_time(1_000, nodes=(1,))
    asked = c.put(1, b"new", 6)
    for _ in range(5):
        c.deliver_all()
        c.sync(1, 4, 5)
    assert c.primary(1).durable[4] == c.primary(1).durable[5] == c.slot(1).sequence
    assert asked.answer is None
    c.release(1, 2)
    c.settle()
    assert isinstance(asked.answer, Done)


def test_r13_a_slot_comes_to_its_owners_and_nothing_else_holds_it() -> None:
    c = five()
    c.want((1, 4, 5))
    c.calm_down()
    assert c.holders() == {1, 4, 5}
    assert {c.slot(node).config for node in (1, 4, 5)} == {SlotConfig(((1, 4, 5),))}
    assert c.content(1) == c.content(4) == c.content(5)
    assert c.value(5, b"k") == 5


def test_r13_from_one_to_five_replicas_and_back() -> None:
    c = Cluster(owners=((1,),), ids=IDS)
    for wanted in ((1, 2, 3), (1, 2, 3, 4, 5), (5, 2, 3), (4,)):
        c.put(wanted[0] if c.serves(wanted[0]) else 1, b"k", 5)
        c.want(wanted)
        c.calm_down()
        assert c.holders() == set(wanted)
        assert c.serves(wanted[0])
        assert c.value(wanted[-1], b"k") == 5


def test_r13_nothing_happens_where_all_is_as_wanted() -> None:
    c = five()
    before = c.position(1)
    c.want(MEMBERS)
    c.calm_down()
    assert c.position(1) == before


# -- rule 14 -----------------------------------------------------------------------------------


def test_r14_the_joint_config_waits_until_every_learner_is_in_step() -> None:
    c = learning(1, 4, 5)
    c.release(1, 4)
    c.calm_down()
    assert c.content(4) == c.content(1)
    assert c.slot(1).config == SlotConfig((MEMBERS,), (4, 5))
    c.release(1, 5)
    c.pass_time(1_000, nodes=(1,))
    for _ in range(2):
        c.deliver(1, 5)
        c.deliver(5, 1)
    assert c.content(5) == c.content(1)
    assert c.slot(1).config == SlotConfig((MEMBERS,), (4, 5)), "its fsync is still out"
    c.sync(5)
    c.deliver(5, 1, Ack)
    assert c.slot(1).config == SlotConfig((MEMBERS, (1, 4, 5)))


def test_r14_in_step_is_durable_at_what_is_committed() -> None:
    c = learning(1, 2, 4)
    c.release(1, 4)
    c.pass_time(1_000, nodes=(1,))
    c.deliver(1, 4)
    c.deliver(4, 1)
    c.deliver(1, 4, Chunk)
    c.put(1, b"new", 6)
    for node in (2, 3):
        c.deliver(1, node)
        c.sync(node)
        c.deliver(node, 1)
    c.sync(4)
    c.deliver(4, 1, Ack)
    assert len(c.slot(1).config.sets) == 1, "one operation behind what is committed"
    c.deliver(1, 4, Accept)
    c.sync(4)
    c.deliver(4, 1, Ack)
    assert len(c.slot(1).config.sets) == 2


def test_r14_while_joint_both_sets_decide() -> None:
    c = joint(1, 4, 5)
    asked = c.put(1, b"new", 6)
    for node in (4, 5):
        c.deliver(1, node)
    c.sync(1, 4, 5)
    for node in (4, 5):
        c.deliver(node, 1)
    assert asked.answer is None, "no majority of the old members"
    assert len(c.slot(1).config.sets) == 2
    c = joint(1, 4, 5)
    asked = c.put(1, b"new", 6)
    for node in (2, 3):
        c.deliver(1, node)
    c.sync(1, 2, 3)
    for node in (2, 3):
        c.deliver(node, 1)
    assert asked.answer is None, "no majority of the new members"
    assert len(c.slot(1).config.sets) == 2
    c.deliver(1, 4)
    c.sync(4)
    c.deliver(4, 1)
    assert isinstance(asked.answer, Done)


def test_r14_the_new_config_follows_when_the_joint_one_is_committed() -> None:
    c = joint(1, 2, 4)
    assert c.slot(1).config == SlotConfig((MEMBERS, (1, 2, 4)))
    c.sync(1)
    c.pass_time(100, nodes=(1,))
    assert len(c.slot(1).config.sets) == 2
    c.deliver(1, 2)
    c.sync(2)
    c.deliver(2, 1)
    assert c.slot(1).config == SlotConfig(((1, 2, 4),))
    assert configs(c, 1, 3)[-1] == SlotConfig(((1, 2, 4),)), "who is left out is told"
    c.put(1, b"new", 6)
    assert c.sent(1, 3, Accept)[-1].config is not None, "and nothing more"


def test_r14_no_config_is_proposed_while_another_is_uncommitted() -> None:
    c = five()
    c.want((1, 2, 4))
    first = c.slot(1).config
    c.want((1, 2, 5))
    c.pass_time(1_000)
    assert c.slot(1).config == first
    c.settle()
    assert c.slot(1).config != first


def test_r14_a_later_topology_retargets_learners() -> None:
    c = learning(1, 2, 4)
    c.hold(1, 5)
    c.want((1, 2, 5))
    c.pass_time(100)
    c.settle()
    assert c.slot(1).config == SlotConfig((MEMBERS,), (5,)), "4 is wanted no more"
    c.release(1, 5)
    c.calm_down()
    assert c.holders() == {1, 2, 5}


def test_r14_a_joint_config_is_finished_before_a_later_topology_is_followed() -> None:
    c = joint(1, 2, 4)
    c.want((1, 2, 5))
    c.pass_time(100, nodes=(1,))
    assert c.slot(1).config == SlotConfig((MEMBERS, (1, 2, 4)))
    c.deliver(1, 2)
    c.sync(1, 2)
    c.deliver(2, 1)
    assert c.slot(1).config == SlotConfig(((1, 2, 4),))
    c.calm_down()
    assert c.holders() == {1, 2, 5}


def test_r14_another_order_takes_one_operation_and_another_leader() -> None:
    c = five()
    before = c.position(1).sequence
    c.want((3, 1, 2))
    assert c.slot(1).config == SlotConfig(((3, 1, 2),))
    c.calm_down()
    assert c.serves(3)
    assert c.position(3).sequence == before + 1


def test_r14_a_primary_that_is_not_in_new_hands_over() -> None:
    c = five()
    c.want((2, 3, 4))
    c.settle()
    assert c.slot(1).config == SlotConfig(((2, 3, 4),))
    assert c.serves(1), "it leads, and counts for nothing"
    in_flight = c.put(1, b"new", 6)
    c.pass_time(100, nodes=(1,))
    assert not c.sent(1, 2, HandOver)
    held = c.put(1, b"held", 7)
    c.settle()
    assert isinstance(in_flight.answer, Done)
    assert held.moved == [False]
    assert c.serves(2)
    assert not c.serves(1)
    c.calm_down()
    assert c.holders() == {2, 3, 4}
    assert c.value(4, b"new") == 6


def test_r14_nobody_is_handed_a_slot_that_is_changing_its_members() -> None:
    c = five()
    c.hold(1, 5)
    c.want((4, 1, 5))
    c.calm_down()
    c.release(1, 5)
    c.hold(2, 1)
    c.hold(3, 1)
    c.calm_down()
    assert len(c.slot(1).config.sets) == 2
    assert c.serves(1)
    c.release(2, 1)
    c.release(3, 1)
    c.calm_down()
    assert c.serves(4)


def test_r14_a_change_is_not_begun_that_would_leave_the_slot_without_a_quorum() -> None:
    c = five()
    c.isolate(3)
    c.want((3,))
    c.calm_down()
    assert c.slot(1).config == OLD
    c.put(1, b"new", 6)
    c.settle()
    c.reconnect(3)
    c.pass_time(1_000, nodes=(1,))
    assert c.slot(1).config == OLD, "it is back, and not in step yet"
    c.calm_down()
    assert c.holders() == {3}
    assert c.value(3, b"new") == 6


# -- rules 9 and 14: who takes over midway -----------------------------------------------------


def test_r14_a_takeover_from_a_joint_config_needs_both_sets() -> None:
    """2 and 3 are a majority of the old set, 4 and 5 of the new one; neither pair is enough."""
    c = joint(1, 4, 5)
    c.deliver(1, 4)
    c.deliver(1, 2)
    c.sync(4, 2)
    c.wires.clear()
    c.isolate(1)
    for node in (4, 5):
        c.hold(node, 2)
        c.hold(node, 3)
    assert [len(c.slot(node).config.sets) for node in (2, 3, 4, 5)] == [2, 1, 2, 1]
    c.calm_down()
    assert not any(c.serves(node) for node in (2, 3, 4, 5))
    for node in (4, 5):
        c.release(node, 2)
        c.release(node, 3)
    c.calm_down()
    assert c.serves(4), "it is first in what was to be"
    assert c.slot(4).config == SlotConfig(((1, 4, 5),))


def test_r14_whoever_leads_next_goes_on_from_the_config() -> None:
    for stage in (learning, joint):
        c = stage(1, 2, 4)
        c.deliver(1, 2)
        c.sync(2)
        c.isolate(1)
        for node in (4, 5):
            c.release(1, node)
        c.calm_down()
        assert c.serves(2)
        assert c.slot(2).config == SlotConfig(((1, 2, 4),))
        c.reconnect(1)
        c.calm_down()
        assert c.serves(1)
        assert c.holders() == {1, 2, 4}


def test_r14_a_config_that_the_next_primary_found_is_committed() -> None:
    """All of an established state is: the next step needs no proof of its own."""
    c = joint(1, 2, 4)
    for node in (2, 4):
        c.deliver(1, node)
        c.sync(node)
    c.isolate(1)
    c.hold(2, 3)
    c.pass_time(0, nodes=(2, 4))
    c.settle()
    assert not c.serves(2), "two of three old ones are needed"
    c.release(2, 3)
    c.calm_down()
    assert c.slot(2).config == SlotConfig(((1, 2, 4),))


def test_r9_a_candidate_that_is_no_member_by_bests_config_stops() -> None:
    c = five()
    c.isolate(3)
    c.want((1, 2, 4))
    c.calm_down()
    assert c.slot(1).config == SlotConfig(((1, 2, 4),))
    c.wires.clear()
    c.isolate(1)
    c.reconnect(3)
    c.hold(3, 4)
    for node in (1, 2):
        c.nodes[3].table.peer_down(node)
    c.nodes[3].table.peer_up(2)
    c.inject(2, 3, Willing(SLOT, Ballot(2, 3)))
    c.pass_time(0, nodes=(3,))
    assert c.slot(3).config != SlotConfig(((1, 2, 4),))
    c.inject(2, 3, Willing(SLOT, Ballot(2, 3)))
    c.sync(3)
    c.deliver(3, 2, Prepare)
    c.sync(2)
    c.deliver(2, 3, Promise)
    c.deliver(3, 4, Prepare)
    c.sync(4)
    c.deliver(4, 3, Promise)
    assert c.slot(3).role is None
    assert not c.sent(3, 2, Establish)
    assert not c.sent(3, 4, Establish)


def test_r9_who_has_left_disturbs_nobody() -> None:
    c = five()
    c.isolate(3)
    c.want((1, 2, 4))
    c.calm_down()
    c.isolate(1)
    c.inject(3, 2, Ask(SLOT, Ballot(9, 3)))
    assert not c.sent(2, 3, Willing)
    c.inject(4, 2, Ask(SLOT, Ballot(9, 4)))
    assert c.sent(2, 4, Willing)


# -- rule 15 -----------------------------------------------------------------------------------


def left_out() -> Cluster:
    """The slot is at 1, 2 and 4; 3 has missed it all."""
    c = five()
    c.isolate(3)
    c.want((1, 2, 4))
    c.calm_down()
    c.wires.clear()
    assert c.slot(1).config == SlotConfig(((1, 2, 4),))
    assert c.holds(3)
    return c


def test_r15_who_holds_what_it_should_not_asks_and_drops_it() -> None:
    c = left_out()
    c.reconnect(3)
    c.pass_time(1_000, nodes=(3,))
    assert c.sent(3, 1, Surplus) == [Surplus(SLOT)]
    prefix, promised = c.slot(3).prefix, c.slot(3).promised
    c.settle()
    assert not c.holds(3)
    assert c.nodes[3].store.scan(prefix, b"", 9) == []
    assert c.nodes[3].store.log_entries(prefix, 0) == []
    assert c.slot(3).promised == promised
    assert c.slot(3).left_at == c.position(1)


def test_r15_the_stub_outlives_a_crash() -> None:
    c = left_out()
    c.reconnect(3)
    c.calm_down()
    stub = c.slot(3).row()
    assert stub.left_at == c.position(1)
    c.sync(3)
    c.crash(3)
    assert c.slot(3).row() == stub


def test_r15_a_slot_is_dropped_at_once_or_not_at_all() -> None:
    c = left_out()
    before = c.content(3)
    c.inject(1, 3, Drop(SLOT, c.position(1), SlotConfig(((1, 2, 4),))))
    assert not c.holds(3)
    c.crash(3)
    assert c.content(3) == before


def test_r15_only_a_committed_config_sends_anyone_away() -> None:
    c = joint(1, 2, 4)
    c.sync(1)
    c.deliver(1, 2)
    c.sync(2)
    c.deliver(2, 1)
    assert c.slot(1).config == SlotConfig(((1, 2, 4),))
    c.inject(3, 1, Surplus(SLOT))
    assert not c.sent(1, 3, Drop), "it is applied, not committed"
    c.settle()
    c.inject(3, 1, Surplus(SLOT))
    assert len(c.sent(1, 3, Drop)) == 1


def test_r15_members_and_learners_are_not_sent_away() -> None:
    c = learning(1, 2, 4)
    for node in (2, 4):
        c.inject(node, 1, Surplus(SLOT))
        assert not c.sent(1, node, Drop)


def test_r15_what_came_further_than_the_drop_is_kept() -> None:
    c = left_out()
    at = c.position(3)
    below = Position(at.established, at.sequence - 1)
    c.inject(1, 3, Drop(SLOT, below, SlotConfig(((1, 2, 4),))))
    assert c.holds(3)
    c.inject(1, 3, Drop(SLOT, at, SlotConfig(((1, 2, 4),))))
    assert not c.holds(3)


def test_r15_a_late_drop_does_not_hit_who_was_named_again() -> None:
    """Why learners are part of the replicated config: what named it is above the Drop."""
    c = left_out()
    c.inject(3, 1, Surplus(SLOT))
    (late,) = c.sent(1, 3, Drop)
    c.wires.clear()
    c.reconnect(3)
    c.want((1, 2, 3))
    c.calm_down()
    c.inject(1, 3, late)
    assert c.holds(3)
    assert c.content(3) == c.content(1)


def test_r15_a_drop_that_names_the_receiver_is_void() -> None:
    c = five()
    c.inject(1, 3, Drop(SLOT, Position(Ballot(9, 1), 99), SlotConfig((MEMBERS,))))
    c.inject(1, 3, Drop(SLOT, Position(Ballot(9, 1), 99), SlotConfig(((1, 2, 4),), (3,))))
    assert c.holds(3)


def test_r15_a_stub_promises_nothing_and_confirms_nothing() -> None:
    c = left_out()
    c.reconnect(3)
    c.calm_down()
    c.inject(2, 3, Prepare(SLOT, Ballot(50, 2)))
    c.inject(2, 3, Ask(SLOT, Ballot(50, 2)))
    c.sync(3)
    assert not c.sent(3, 2, Promise)
    assert not c.sent(3, 2, Willing)


def test_r15_a_stub_takes_a_copy_only_above_where_it_left() -> None:
    c = left_out()
    c.reconnect(3)
    c.calm_down()
    left = c.slot(3).left_at
    for at, taken in ((left, False), (Position(left.established, left.sequence + 1), True)):
        head = Head(at, SlotConfig(((1, 2, 4),)), ((at.established, 1),), [])
        c.inject(1, 3, Chunk(SLOT, at.established, head, at.sequence, b"", [], False))
        assert c.holds(3) is taken


def test_r15_a_stub_keeps_to_what_it_promised() -> None:
    c = left_out()
    c.inject(9, 3, Prepare(SLOT, Ballot(50, 2)))
    c.inject(1, 3, Drop(SLOT, Position(Ballot(49, 1), 9), SlotConfig(((1, 2, 4),))))
    assert not c.holds(3)
    head = Head(Position(Ballot(49, 1), 10), SlotConfig(((1, 2, 4),)), (), [])
    c.inject(1, 3, Chunk(SLOT, Ballot(49, 1), head, 10, b"", [], False))
    assert not c.holds(3)
    assert c.sent(3, 1, Refuse) == [Refuse(SLOT, Ballot(50, 2))]


def test_r15_who_left_can_come_back() -> None:
    c = left_out()
    c.reconnect(3)
    c.calm_down()
    assert c.holders() == {1, 2, 4}
    c.put(1, b"k", 6)
    c.want((3, 1, 2))
    c.calm_down()
    assert c.holders() == {1, 2, 3}
    assert c.serves(3)
    assert c.value(3, b"k") == 6


def test_r15_who_has_left_is_brought_nothing() -> None:
    c = left_out()
    at = c.position(3)
    for stands in (at, None):
        c.inject(3, 1, Gap(SLOT, c.slot(1).established, stands, (), NO_POSITION))
    c.inject(3, 1, Fetch(SLOT, c.slot(1).established, b""))
    assert c.drop(1, 3) == []


def test_r15_a_deposed_primary_that_was_left_out_stops() -> None:
    """It is asked for no promise, since it is no member: its own handover is refused."""
    c = five()
    c.want((2, 3, 4))
    c.settle()
    assert c.serves(1)
    c.isolate(1)
    c.nodes[2].table.leadership.orphan((SLOT,))
    c.calm_down()
    assert c.serves(2)
    c.reconnect(1)
    c.calm_down()
    assert c.holders() == {2, 3, 4}
