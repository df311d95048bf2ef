"""What leadership costs: its walk over all slots is cut into parts."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from cluster import sweep
from cluster.leadership import RANK_DELAY_MS, Leadership
from cluster.outputs import Outputs
from cluster.slot import Context, Slot
from cluster.slot_config import SlotConfig
from cluster.sweep import QUIET_FACTOR, SWEEP_PART_MS, SWEEP_PARTS
from kvstore.storage.memory import MemoryEngine
from kvstore.storage.tick_store import TickStore

if TYPE_CHECKING:
    import pytest

    from cluster.slot import Call

SLOTS = 1_003


class Watched(list["Slot | None"]):
    """Slots that remember which of them were looked at."""

    def __init__(self) -> None:
        super().__init__([None] * SLOTS)
        self.seen: list[int] = []

    def __getitem__(self, number: int) -> Slot | None:  # type: ignore[override]
        self.seen.append(number)
        return super().__getitem__(number)


def replay(slot: Slot, held: list[Call]) -> None:
    raise AssertionError("nothing is held")


def test_no_tick_walks_over_all_slots_and_ten_of_them_do() -> None:
    slots = Watched()
    ctx = Context(1, TickStore(MemoryEngine()), Outputs())
    leadership = Leadership(slots, ctx, random.Random(0), replay)
    for _ in range(SWEEP_PARTS):
        ctx.now_ms += SWEEP_PART_MS
        before = len(slots.seen)
        leadership.tick()
        assert len(slots.seen) - before <= SLOTS // SWEEP_PARTS + 1
    assert sorted(slots.seen) == list(range(SLOTS))


def test_who_found_nothing_walks_more_slowly_until_there_is_something() -> None:
    slots = Watched()
    ctx = Context(1, TickStore(MemoryEngine()), Outputs())
    leadership = Leadership(slots, ctx, random.Random(0), replay)

    def walked(seconds: int) -> float:
        before = len(slots.seen)
        for _ in range(seconds * 20):
            ctx.now_ms += 50
            leadership.tick()
        return (len(slots.seen) - before) / SLOTS

    assert 0.9 <= walked(1) <= 1
    assert walked(2 * QUIET_FACTOR) <= 2.1
    leadership.orphans[0] = ctx.now_ms + 60_000  # somebody else's turn first
    assert walked(QUIET_FACTOR) >= QUIET_FACTOR - 1


def test_ticks_that_come_late_walk_over_what_is_due_at_most_once() -> None:
    slots = Watched()
    ctx = Context(1, TickStore(MemoryEngine()), Outputs())
    leadership = Leadership(slots, ctx, random.Random(0), replay)
    ctx.now_ms += 100 * SWEEP_PARTS * SWEEP_PART_MS
    leadership.tick()
    assert sorted(slots.seen) == list(range(SLOTS))


def test_a_late_tick_does_not_walk_over_thousands_of_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "TURN_SLOTS_MAX", SLOTS // 4)
    slots = Watched()
    ctx = Context(1, TickStore(MemoryEngine()), Outputs())
    leadership = Leadership(slots, ctx, random.Random(0), replay)
    ctx.now_ms += SWEEP_PARTS * SWEEP_PART_MS
    leadership.tick()
    assert 0 < len(slots.seen) <= SLOTS // 4
    for _ in range(SWEEP_PARTS):
        ctx.now_ms += SWEEP_PART_MS
        leadership.tick()
    assert set(slots.seen) == set(range(SLOTS))


def test_the_second_waits_while_the_first_gets_on() -> None:
    ctx = Context(2, TickStore(MemoryEngine()), Outputs())
    ctx.reachable |= {1, 2, 3}
    slots: list[Slot | None] = []
    for number in range(8):
        slot = Slot(number, b"")
        slot.holds_state, slot.config = True, SlotConfig(((1, 2, 3),))
        slots.append(slot)
    leadership = Leadership(slots, ctx, random.Random(0), replay)
    leadership.orphan(range(8))
    for number in range(4):  # slowly, as on a busy machine
        ctx.now_ms += RANK_DELAY_MS - 1
        leadership.led(number)
        leadership.took_over(1)
        leadership.want(7)
        leadership.start_candidacies()
        assert not leadership.candidates
    ctx.now_ms += RANK_DELAY_MS - 1
    leadership.start_candidacies()
    assert not leadership.candidates
    ctx.now_ms += 1  # it takes no more: something is wrong with it
    leadership.start_candidacies()
    assert leadership.candidates == {4, 5, 6, 7}
