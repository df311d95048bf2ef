"""Which slots move when: bounds, order, pause, throttle, and what is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack
import msgspec
import pytest

from cluster import moves, surplus, throttle, transfer
from cluster.messages import Accept, Chunk, Confirm, Establish, Fetch, Gap, Surplus
from cluster.move import Move, Stage
from cluster.operations import Absent, Put
from cluster.slot_config import SlotConfig
from cluster.throttle import Room, Throttle
from tests.cluster.core_harness import MEMBERS, Cluster

if TYPE_CHECKING:
    from cluster.moves import Moves

IDS = (1, 2, 3, 4, 5)
RAW = msgspec.Raw(msgpack.packb(1))
SLOTS = 6


def many(wanted: tuple[int, ...] = (1, 2, 4)) -> tuple[Cluster, Moves]:
    """Six slots that node 1 leads, all wanted elsewhere; nothing reaches the new owner."""
    c = Cluster(owners=(MEMBERS,) * SLOTS, ids=IDS)
    table = c.nodes[1].table.moves
    table.in_flight_max = 2
    feel(table, late_ms=0.0)
    c.hold(1, 4)
    c.want(*(wanted,) * SLOTS)
    c.settle()
    return c, table


def feel(table: Moves, late_ms: float) -> None:
    """For long enough to take as many moves at once as that allows."""
    for _ in range(200):
        table.felt_late(late_ms)


def learning(c: Cluster) -> list[int]:
    """Slots that have set out, by their primary's word."""
    slots = c.nodes[1].table.slots
    return [slot.number for slot in slots if slot is not None and slot.config.learners]


def let_all_arrive(c: Cluster) -> None:
    c.release(1, 4)
    for _ in range(5):
        c.calm_down()


def test_no_more_slots_than_allowed_are_on_their_way() -> None:
    c, table = many()
    assert learning(c) == [0, 1]
    c.calm_down()
    assert learning(c) == [0, 1]
    table.in_flight_max = 3
    c.pass_time(100)
    assert learning(c) == [0, 1], "they set out together, when half of the places are free"
    table.in_flight_max = 4
    c.pass_time(100)
    assert len(learning(c)) == 4
    let_all_arrive(c)
    assert all(c.holders(number) == {1, 2, 4} for number in range(SLOTS))
    assert table.done_total == SLOTS
    assert table.view() == []


def test_each_arrival_makes_room_at_once() -> None:
    c, _ = many()
    c.release(1, 4)
    c.pass_time(1_000)
    c.settle()
    assert all(c.nodes[1].table.slots[n].config.sets == ((1, 2, 4),) for n in range(SLOTS))  # type: ignore[union-attr]


def test_slots_that_lack_a_member_set_out_first() -> None:
    c = Cluster(owners=((1, 2, 3), (1, 2, 3), (1, 5, 3)), ids=IDS)
    c.isolate(5)
    c.hold(1, 4)
    c.nodes[1].table.moves.in_flight_max = 1
    c.want((1, 2, 4), (1, 2, 4), (1, 4, 3))
    assert learning(c) == [2]
    assert [m.urgent for m in c.nodes[1].table.moves.view()] == [False, False, True]


def test_a_slot_waits_for_an_owner_that_cannot_be_reached() -> None:
    c = Cluster(owners=(MEMBERS,) * 2, ids=IDS)
    c.isolate(4)
    c.nodes[1].table.moves.in_flight_max = 1
    c.want((1, 2, 4), (1, 2, 5))
    c.calm_down()
    assert c.holders(1) == {1, 2, 5}, "the other one takes the place"
    assert c.holders(0) == {1, 2, 3}
    assert c.slot(1).config.learners == ()
    c.reconnect(4)
    c.calm_down()
    assert c.holders(0) == {1, 2, 4}


def test_who_got_lost_midway_keeps_no_place() -> None:
    c = Cluster(owners=(MEMBERS,) * 2, ids=IDS)
    c.nodes[1].table.moves.in_flight_max = 1
    c.hold(1, 4)
    c.want((1, 2, 4), (1, 2, 5))
    c.settle()
    assert learning(c) == [0]
    c.isolate(4)
    c.calm_down()
    assert c.holders(1) == {1, 2, 5}
    assert learning(c) == [0]


def test_a_pause_lets_nothing_set_out_and_nothing_be_copied() -> None:
    c, table = many()
    table.paused = True
    table.in_flight_max = 32
    c.release(1, 4)
    c.calm_down()
    assert learning(c) == [0, 1]
    assert not c.holds(4, 0)
    table.paused = False
    let_all_arrive(c)
    assert all(c.holders(number) == {1, 2, 4} for number in range(SLOTS))


def test_a_pause_holds_for_a_later_topology_too() -> None:
    c, table = many()
    table.paused = True
    c.want(*((1, 2, 5),) * 3, *((1, 2),) * 3)
    c.calm_down()
    slots = c.nodes[1].table.slots
    configs = [slot.config for slot in slots if slot is not None]
    assert [config.learners for config in configs] == [(4,), (4,), (), (), (), ()]
    assert {config.sets for config in configs} == {(MEMBERS,)}


def test_a_pause_does_not_stop_at_a_joint_config() -> None:
    c = Cluster(ids=IDS)
    c.hold(1, 2)
    c.hold(1, 3)
    c.want((1,))
    c.pass_time(1_000)
    assert len(c.slot(1).config.sets) == 2
    c.nodes[1].table.moves.paused = True
    c.release(1, 2)
    c.calm_down()
    assert c.slot(1).config.sets == ((1,),)


def test_a_primary_that_moved_itself_away_asks_enough_others_about_a_read() -> None:
    """R6: it counts for nothing, so a quorum is one peer more."""
    c = Cluster(ids=IDS)
    c.want((2, 3, 4))
    c.settle()
    assert c.serves(1)
    asked = c.get(1, b"k")
    assert sum(len(c.sent(1, node, Confirm)) for node in (2, 3, 4)) == 2
    c.settle()
    assert isinstance(asked.answer, Absent)


# -- the throttle ------------------------------------------------------------------------------


def test_a_copy_takes_the_time_that_its_bytes_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1_000)
    c = Cluster(ids=IDS)
    for number in range(20):
        c.put(1, b"%02d" % number, b"v" * 1_000)
    c.settle()
    table = c.nodes[1].table.moves
    table.throttle.set_rate(2_000)
    c.want((1, 2, 4))
    began = c.now_ms
    while not c.holds(4):
        c.pass_time(100)
        c.settle()
        assert c.now_ms - began < 30_000
    size = table.throttle.spent_total
    assert size > 20 * 1_000
    assert (c.now_ms - began) / 1_000 == pytest.approx(size / 2_000, rel=0.1)
    assert c.value(4, b"19") == b"v" * 1_000


def test_a_rate_is_changed_while_a_copy_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1_000)
    c = Cluster(ids=IDS)
    for number in range(20):
        c.put(1, b"%02d" % number, b"v" * 1_000)
    c.settle()
    c.nodes[1].table.moves.throttle.set_rate(10)
    c.want((1, 2, 4))
    c.calm_down()
    assert not c.holds(4)
    (move,) = c.nodes[1].table.moves.view()
    assert 1 <= move.copied_records < 20
    c.nodes[1].table.moves.throttle.set_rate(None)
    c.calm_down()
    assert c.holds(4)


def test_a_slow_copy_is_not_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reminders come every second; a page may wait longer for the throttle."""
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1)
    c = Cluster(ids=IDS)
    for number in range(3):
        c.put(1, b"%02d" % number, b"v" * 1_000)
    c.settle()
    c.nodes[1].table.moves.throttle.set_rate(60)
    c.want((1, 2, 4))
    for _ in range(600):
        c.pass_time(100)
        c.settle()
    assert c.holds(4)
    assert c.nodes[1].table.moves.throttle.spent_total < 1.5 * 3 * 1_100


def test_members_that_fell_behind_are_not_throttled() -> None:
    c = Cluster(ids=IDS)
    c.want(MEMBERS)
    c.isolate(3)
    for number in range(400):
        c.put(1, b"%d" % number, 1)
    c.settle()
    c.nodes[1].table.moves.throttle.set_rate(1)
    c.reconnect(3)
    c.calm_down()
    assert c.content(3) == c.content(1)


def test_a_throttle_owes_what_it_let_pass() -> None:
    bucket = Throttle(1_000)
    assert bucket.has_room(0)
    bucket.spend(5_000)
    assert not bucket.has_room(4_800)
    assert bucket.has_room(4_901)
    bucket.set_rate(None)
    bucket.spend(10**9)
    assert bucket.has_room(4_902)
    assert bucket.spent_total == 5_000 + 10**9


# -- the one that is brought slots ---------------------------------------------------------------


def test_a_node_lets_itself_be_brought_a_few_slots_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moves, "COPIES_IN_FLIGHT_MAX", 2)
    c, table = many()
    table.in_flight_max = 32
    c.pass_time(100, nodes=(1,))
    c.wire(1, 4).clear()
    c.pass_time(2_000, nodes=(1,))
    c.deliver(1, 4, Accept, Establish)
    assert len({gap.slot for gap in c.sent(4, 1, Gap)}) == 2
    let_all_arrive(c)
    assert all(c.holders(number) == {1, 2, 4} for number in range(SLOTS))


def test_a_copy_that_nobody_goes_on_with_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1)
    c = Cluster(ids=IDS)
    for number in range(8):
        c.put(1, b"%02d" % number, 1)
    c.settle()
    c.want((1, 2, 4))
    c.deliver(1, 4)
    c.deliver(4, 1, Gap)
    c.deliver(1, 4, Chunk)
    assert c.sent(4, 1, Fetch)
    copy = c.slot(4).copy
    assert copy is not None
    assert c.nodes[4].store.scan(copy.content.prefix, b"", 9)
    c.isolate(4)
    for _ in range(3):
        c.calm_down()
    assert c.slot(4).copy is None
    assert not c.nodes[4].store.scan(copy.content.prefix, b"", 9)


def test_a_half_copy_does_not_outlive_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1)
    c = Cluster(ids=IDS)
    for number in range(8):
        c.put(1, b"%02d" % number, 1)
    c.settle()
    c.want((1, 2, 4))
    c.deliver(1, 4)
    c.deliver(4, 1, Gap)
    c.deliver(1, 4, Chunk)
    copy = c.slot(4).copy
    assert copy is not None
    c.sync(4)
    c.isolate(4)
    c.crash(4)
    c.nodes[4].end_tick()
    assert not c.nodes[4].store.scan(copy.content.prefix, b"", 9)


def test_who_has_much_to_ask_about_asks_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surplus, "ASKED_MAX", 2)
    c = Cluster(owners=(MEMBERS,) * SLOTS, ids=IDS)
    c.hold(3, 1)
    c.wanted = ((1, 2, 4),) * SLOTS
    c.nodes[3].table.set_owners(c.wanted)
    c.nodes[3].end_tick()
    c.pass_time(1_000, nodes=(3,))
    c.pass_time(1_000, nodes=(3,))
    assert sorted(m.slot for m in c.sent(3, 1, Surplus)) == list(range(SLOTS))


# -- what is shown -------------------------------------------------------------------------------


def test_the_view_tells_how_far_each_slot_is() -> None:
    c, table = many()
    stages = [move.stage for move in table.view()]
    assert stages == [Stage.COPYING] * 2 + [Stage.WAITING] * 4
    assert table.view()[0] == Move(0, Stage.COPYING, MEMBERS, (4,), (1, 2, 4), False, 0, 0)
    assert table.view()[5] == Move(5, Stage.WAITING, MEMBERS, (), (1, 2, 4), False, 0, 0)
    assert c.nodes[2].table.moves.view() == [], "the primary's view is the one"


def test_the_view_counts_what_was_copied() -> None:
    c = Cluster(ids=IDS)
    for number in range(7):
        c.put(1, b"%d" % number, number)
    c.settle()
    c.want((1, 2, 4))
    c.deliver(1, 4)
    c.deliver(4, 1, Gap)
    (move,) = c.nodes[1].table.moves.view()
    assert move.copied_records == 7
    assert move.copied_bytes == c.nodes[1].table.moves.throttle.spent_total > 7 * 26


def test_some_of_what_is_on_its_way_is_shown_without_a_walk() -> None:
    c, table = many()
    assert table.pending == SLOTS
    assert [move.stage for move in table.first(3)] == [Stage.COPYING] * 2 + [Stage.WAITING]
    assert table.copies_pending == SLOTS
    let_all_arrive(c)
    assert (table.pending, table.first(3)) == (0, [])


# -- giving way ------------------------------------------------------------------------------------


def test_a_busy_node_moves_less_at_once_and_more_when_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throttle, "PLACES_MIN", 2)
    c, table = many()
    table.in_flight_max = 32
    feel(table, late_ms=50.0)
    c.pass_time(1_000, nodes=(1,))
    assert sum(move.stage is Stage.COPYING for move in table.view()) == 2, "no new ones set out"
    let_all_arrive(c)
    assert table.done_total == SLOTS, "a few at a time is still something"
    feel(table, late_ms=0.0)
    c.hold(1, 3)
    c.want(*(MEMBERS,) * SLOTS)
    assert sum(move.stage is Stage.COPYING for move in table.view()) == SLOTS


@pytest.mark.parametrize(("late_ms", "rests"), [(50.0, True), (0.0, False)])
def test_a_busy_node_rests_between_its_waves(late_ms: float, rests: bool) -> None:
    c, table = many()
    feel(table, late_ms)
    c.pass_time(400, nodes=(1,))
    c.release(1, 4)
    for _ in range(40):
        if table.done_total < 2:  # the first wave
            c.pass_time(50)
            c.settle()
    assert (table.done_total == 2) is rests, "the next wave follows at once, or later"
    let_all_arrive(c)
    assert table.done_total == SLOTS


def test_to_wait_for_the_rate_is_a_rest_and_no_part_of_a_steps_time() -> None:
    room = Room(128)
    room.felt_late(50.0)
    assert room.begin_wave(1_000)
    for _ in range(10):
        room.set_out(copies=1)
    for now_ms in range(1_000, 1_500, 50):
        room.pass_time(now_ms, throttled=1_000 < now_ms < 1_450, moving=True)
    assert room.begin_wave(1_500), "it worked for 100 ms and waited for 400"
    assert room.unit_ms == (100 + 300) / 20
    assert not room.begin_wave(1_600), "it worked for 100 ms"
    assert not room.begin_wave(1_850)
    assert room.begin_wave(1_900)


def test_one_who_is_out_of_reach_does_not_make_all_steps_long() -> None:
    room = Room(128)
    assert room.begin_wave(1_000)
    room.set_out(copies=1)
    for _ in range(64):
        room.felt_late(0.0)
    assert room.begin_wave(61_000)
    assert room.unit_ms == throttle.UNIT_MS_MAX
    for now_ms in range(62_000, 72_000, 500):
        assert room.begin_wave(now_ms)
        for _ in range(10):
            room.set_out(copies=1)
    assert room.unit_ms < throttle.UNIT_MS_MAX


def test_what_lies_between_two_moves_is_no_step() -> None:
    room = Room(128)
    assert room.begin_wave(1_000)
    room.set_out(copies=1)
    room.pass_time(1_100, throttled=False, moving=False)
    assert room.begin_wave(90_000)
    assert room.unit_ms is None


def test_a_late_tick_looks_at_the_slots_by_and_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "WALK_PART_MAX", 2)
    monkeypatch.setattr(moves, "FIRST_LOOK", 0)
    c, table = many()
    looks = 0
    while not table.is_surveyed:
        looks += 1
        assert table.pending <= 2 * looks
        c.pass_time(10_000, nodes=(1,))
    assert 2 * looks == SLOTS
    let_all_arrive(c)


def test_who_sets_no_rate_gives_way_to_nobody() -> None:
    c, table = many()
    table.in_flight_max = 32
    feel(table, late_ms=50.0)
    table.throttle.set_rate(None)
    feel(table, late_ms=50.0)
    c.pass_time(1_000, nodes=(1,))
    assert sum(move.stage is Stage.COPYING for move in table.view()) == SLOTS


# -- no room ---------------------------------------------------------------------------------------


def fill(c: Cluster, node: int, *, full: bool) -> None:
    """Its disk, as it tells the others."""
    c.nodes[node].table.room.set_full(full=full)
    c.nodes[node].end_tick()
    c.settle()


def test_nothing_sets_out_to_a_node_whose_disk_is_full() -> None:
    c = Cluster(owners=(MEMBERS,) * SLOTS, ids=IDS)
    fill(c, 4, full=True)
    c.want(*((1, 2, 4),) * SLOTS)
    c.calm_down()
    assert learning(c) == []
    assert c.nodes[1].table.moves.pending == SLOTS
    fill(c, 4, full=False)
    let_all_arrive(c)
    assert c.nodes[1].table.moves.done_total == SLOTS


def test_a_target_whose_disk_fills_midway_takes_no_more_copies_and_holds_up_no_others() -> None:
    c, table = many()
    (first, second) = learning(c)
    fill(c, 4, full=True)
    c.release(1, 4)
    fill(c, 4, full=True)
    c.pass_time(3_000)
    c.settle()
    copied = [s.number for s in c.nodes[4].table.slots if s is not None and s.holds_state]
    assert copied == [], "what had not begun does not begin"
    assert learning(c) == [first, second]
    elsewhere = ((1, 2, 4),) * (SLOTS - 1) + ((1, 2, 5),)
    c.want(*elsewhere)
    for _ in range(5):
        c.calm_down()
    assert table.done_total == 1, "the way to another node is free"
    asked = c.put(1, b"meanwhile", 1)
    c.settle()
    assert asked.answer is not None
    fill(c, 4, full=False)
    let_all_arrive(c)
    assert table.done_total == SLOTS
    assert not learning(c)


# -- a cut in the middle ---------------------------------------------------------------------------


def test_a_primary_that_is_cut_off_while_joint_is_replaced_and_the_change_is_ended() -> None:
    c, table = many()
    c.release(1, 4)
    while not any(s is not None and len(s.config.sets) == 2 for s in c.nodes[2].table.slots):
        c.pass_time(100)
        c.deliver_all()
        c.sync(2, 3, 4)
        c.sync(1)
    c.isolate(1)
    stale = c.ask(1, Put(b"k", RAW))
    for _ in range(8):
        c.pass_time(2_000, nodes=(2, 3, 4, 5))
        c.settle()
    led = [number for number, _ in c.nodes[2].table.led()]
    assert led == list(range(SLOTS)), "the others go on without it"
    assert stale.answer is None, "cut off, it acknowledges nothing"
    c.reconnect(1)
    for _ in range(8):
        c.calm_down()
    for node in (1, 2, 4):
        slots = [s for s in c.nodes[node].table.slots if s is not None]
        assert {s.config for s in slots} == {SlotConfig(((1, 2, 4),))}
    assert not any(s is not None and s.holds_state for s in c.nodes[3].table.slots)
    assert table.pending == 0
