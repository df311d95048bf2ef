"""Which slots move when: rules 13 to 15 for all slots of a node, within bounds.

Each slot finds its own way (`cluster.reconfigure`); here it is decided how many set out at once,
which of them first, and how fast their content leaves. Three bounds keep moves from hurting what
the cluster is there for:

* as primary, a node has at most `Moves.in_flight_max` slots on the way, and fewer while it is busy
  (`cluster.throttle.Room`); slots of which a member cannot be reached set out first;
* what it sends to learners goes through a token bucket (`cluster.throttle`): what finds it empty
  waits here, one message a slot and learner, and is looked at only when a timer runs, after
  everything else that had arrived;
* as learner, it takes part in at most `COPIES_IN_FLIGHT_MAX` whole copies; others come again.

A move does not set out before everyone it needs can be reached and has disk to spare, and one whose
learner got lost or full counts for no place. A pause lets nothing set out and nothing be sent; what
only needs its last steps takes them, because a joint config is the worst place to stop at.

As everywhere, what was lost on the way is found by the one walk a second (`_walk`), a part of it
with each tick so that it holds up nobody; all else here makes it faster.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING

from cluster.catching_up import tell
from cluster.limits import (
    COPIES_IN_FLIGHT_MAX,
    COPIES_PER_SECOND_BYTES_DEFAULT,
    MOVES_IN_FLIGHT_DEFAULT,
)
from cluster.messages import Fetch, Gap
from cluster.move import Move, Stage
from cluster.reconfigure import change, is_ready, is_settled, next_config
from cluster.slot import Primary
from cluster.surplus import Surpluses
from cluster.throttle import Room, Throttle
from cluster.transfer import BRING_AGAIN_MS, on_fetch, on_gap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.ballot import NodeId
    from cluster.leadership import Leadership
    from cluster.slot import Context, Slot
    from cluster.slot_config import SlotConfig

FIRST_LOOK = 512
"""Slots that are looked at as soon as the owners change; the others follow within a walk."""

WALK_MS = 1_000
"""In which every slot is looked at once."""

WALK_PART_MAX = 2_048
"""Slots that a late tick makes up for: all of them would make the next one late too."""

QUIET_WALK_MS = 5_000
"""... where the last walk found each where it belongs: it was 0.7 % of a core."""

REMIND_INTERVAL_MS = 250
COPY_TIMEOUT_MS = 10_000
"""A copy whose source is silent for so long is given up; who lives speaks every second."""

ADMITTED_MS = 2_000
"""A place for a copy is kept for so long until its first page comes."""


class Moves:
    """Moves one node's slots to their owners."""

    def __init__(self, slots: Sequence[Slot | None], ctx: Context, leadership: Leadership) -> None:
        self._slots = slots
        self._ctx = ctx
        self._leadership = leadership
        self.wanted: Sequence[tuple[NodeId, ...]] = ()
        self._urgent: dict[int, None] = {}
        self._others: dict[int, None] = {}
        """Slots that this node leads and that have yet to set out, in the order of their turn."""
        self._blocked: dict[int, None] = {}
        """Whose turn it was while a new owner was out of reach, or full: the walk finds them."""
        self.active: set[int] = set()
        """Slots that this node leads and whose config is on its way."""
        self._stalled: set[int] = set()
        """Those of them that wait for a learner which cannot be reached, or has no room."""
        self._deferred: dict[tuple[int, NodeId], Gap | Fetch] = {}
        """What learners asked for when the throttle had no room."""
        self._incoming: dict[int, int] = {}
        """Slots without state that a copy was admitted for -> when."""
        self._surpluses = Surpluses(ctx)
        self._walked_at_ms = self._reminded_at_ms = 0
        self._walk_ms = WALK_MS
        self._walk_at = 0
        """The slot that the walk comes to next."""
        self.in_flight_max = MOVES_IN_FLIGHT_DEFAULT
        self._room = Room(MOVES_IN_FLIGHT_DEFAULT)
        self.is_surveyed = False
        """Whether each slot was looked at since the owners changed."""
        self.copies_pending = self._copies_met = 0
        """Copies that pending slots need: by the last walk, and so far in this one."""
        self.paused = False
        self.done_total = 0
        """Slots that arrived at their owners while this node led them."""
        ctx.throttle = Throttle(COPIES_PER_SECOND_BYTES_DEFAULT)

    # -- what is asked and told from outside -----------------------------------------------------

    @property
    def throttle(self) -> Throttle:
        """The bytes that leave to learners; `Throttle.set_rate` works at once."""
        return self._ctx.throttle

    def set_owners(self, owners: Sequence[tuple[NodeId, ...]]) -> None:
        """See `cluster.slot_table.SlotTable.set_owners`."""
        assert len(owners) == len(self._slots)
        assert all(owners), "a slot has owners"
        self.wanted = owners
        self._walk_at, self._walk_ms, self.is_surveyed = 0, WALK_MS, False
        self._walk(min(FIRST_LOOK, len(self._slots)))

    @property
    def pending(self) -> int:
        """Slots that this node leads and that have yet to arrive, as of the last look; O(1)."""
        return len(self.active) + len(self._urgent) + len(self._others) + len(self._blocked)

    @property
    def unit_ms(self) -> float | None:
        """What a step of a move takes here, as far as known (`Room.unit_ms`)."""
        return self._room.unit_ms

    def first(self, limit: int) -> list[Move]:
        """Some of the pending slots, those on their way first; O(limit)."""
        numbers = islice(chain(self.active, self._urgent, self._others, self._blocked), limit)
        slots = (self._slots[number] for number in numbers)
        return [self._view(slot) for slot in slots if slot is not None and self._leads(slot)]

    def felt_late(self, late_ms: float) -> None:
        """Somebody waited so long for this node (`Room`); who sets no rate gives way to nobody."""
        self._room.felt_late(0.0 if self.throttle.bytes_per_s is None else late_ms)

    def view(self) -> list[Move]:
        """Every slot that this node leads and that is not at its owners; one walk over all."""
        pairs = zip(self._slots, self.wanted, strict=False)
        return [
            self._view(slot)
            for slot, wanted in pairs
            if slot is not None
            and self._leads(slot)
            and next_config(slot.config, wanted) is not None
        ]

    def _view(self, slot: Slot) -> Move:
        primary, config = slot.role, slot.config
        assert isinstance(primary, Primary)
        stage = Stage.COPYING if config.learners else Stage.WAITING
        copied = primary.copied.values()
        return Move(
            slot.number,
            Stage.JOINT if len(config.sets) > 1 else stage,
            config.members,
            config.learners,
            self.wanted[slot.number],
            self._is_urgent(slot),
            sum(size for size, _ in copied),
            sum(records for _, records in copied),
        )

    # -- as primary ------------------------------------------------------------------------------

    @staticmethod
    def _leads(slot: Slot) -> bool:
        return isinstance(slot.role, Primary) and slot.role.serving

    def _is_urgent(self, slot: Slot) -> bool:
        members, wanted = slot.config.members, self.wanted[slot.number]
        return len(members) < len(wanted) or not self._ctx.reachable.issuperset(members)

    def led(self, slot: Slot) -> None:
        """This node begins to serve a slot: it goes on from what the config says."""
        if not self.wanted:
            return
        if _is_plain(slot.config):
            if next_config(slot.config, self.wanted[slot.number]) is not None:
                self._queue(slot)
        else:
            self.active.add(slot.number)
            self.advance(slot)

    def advance(self, slot: Slot) -> None:
        """Take the next step towards the owners if its time has come (R13, R14)."""
        primary = slot.role
        if not isinstance(primary, Primary) or not primary.serving:
            self._rest(slot.number)
            return
        if not is_settled(primary) or primary.handing_to is not None or not self.wanted:
            return
        step = next_config(slot.config, self.wanted[slot.number])
        if step is None:
            if slot.number in self.active:
                self._rest(slot.number)
                self.done_total += 1
                primary.copied.clear()
                self._leadership.consider_return(slot)  # R14: the primary may have left itself out
                self._set_out()
        elif is_ready(slot, primary, step, self._ctx) and not (self.paused and step.learners):
            self.active.add(slot.number)
            change(slot, primary, step, self._ctx)
            for node in step.learners:
                tell(slot, primary, node, self._ctx)

    def _rest(self, number: int) -> None:
        self.active.discard(number)
        self._stalled.discard(number)

    def _set_out(self) -> None:
        """Begin as many moves as there is room for, once half of the room is free.

        Those that set out together take every step together, in one frame and one fsync for all.
        """
        places = min(self.in_flight_max, self._room.places)
        free = places - len(self.active) + len(self._stalled)
        if self.paused or 2 * free < places or not (self._urgent or self._others):
            return
        if not self._room.begin_wave(self._ctx.now_ms):
            return
        while free > 0 and (queue := self._urgent or self._others):
            number = next(iter(queue))
            del queue[number]
            slot = self._slots[number]
            if slot is not None and self._leads(slot):
                if self._can_arrive(slot):
                    self.advance(slot)
                    free -= number in self.active
                    self._room.set_out(len(slot.config.learners))
                else:
                    self._blocked[number] = None

    def _can_arrive(self, slot: Slot) -> bool:
        """Whether all that are still missing can be reached, and have the disk for it."""
        missing = set(self.wanted[slot.number]).difference(slot.config.members)
        return missing <= self._ctx.reachable - self._ctx.full

    def on_wish(self, slot: Slot, sender: NodeId, message: Gap | Fetch) -> None:
        """Bring a peer what it lacks; a learner is brought it when the throttle has room (R13)."""
        if sender in slot.config.learners:
            waiting = self._deferred.get((slot.number, sender))
            if waiting is not None or not self._has_room():
                if not isinstance(waiting, Fetch):  # a Gap must not begin anew what goes on
                    self._deferred[slot.number, sender] = message
                return
        if isinstance(message, Gap):
            on_gap(slot, sender, message, self._ctx)
        else:
            on_fetch(slot, sender, message, self._ctx)

    def _has_room(self) -> bool:
        return not self.paused and self.throttle.has_room(self._ctx.now_ms)

    def _send_deferred(self) -> None:
        while self._deferred and self._has_room():
            number, peer = key = next(iter(self._deferred))
            message = self._deferred.pop(key)
            slot = self._slots[number]
            assert slot is not None
            self.on_wish(slot, peer, message)

    # -- as learner, and as one that has left ------------------------------------------------------

    def admits(self, slot: Slot) -> bool:
        """Whether a replica without state may be brought this slot now (R13)."""
        if slot.holds_state or slot.number in self._incoming:
            return True
        if self._ctx.me in self._ctx.full:  # what has begun fits into the reserve
            return False
        if len(self._incoming) >= min(COPIES_IN_FLIGHT_MAX, 4 * self._room.places):
            return False
        self._incoming[slot.number] = self._ctx.now_ms
        return True

    def _look_after_copies(self) -> None:
        """Free the places of copies that are complete, and of those that nobody goes on with."""
        ctx = self._ctx
        for number, since_ms in list(self._incoming.items()):
            slot = self._slots[number]
            assert slot is not None
            copy = slot.copy
            until_ms = since_ms + ADMITTED_MS if copy is None else copy.heard_ms + COPY_TIMEOUT_MS
            if slot.holds_state:
                del self._incoming[number]
            elif ctx.now_ms > until_ms:
                del self._incoming[number]
                slot.copy = None
                ctx.store.drop(ctx.store.prefix(number, slot.generation + 1))

    # -- time --------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Send what the throttle let wait, take due steps, and look at some more slots."""
        if not self.wanted:
            return
        self._send_deferred()
        throttled, moving = bool(self._deferred), bool(self.active)
        self._room.pass_time(self._ctx.now_ms, throttled=throttled, moving=moving)
        if self._incoming:
            self._look_after_copies()
        self._go_on_walking()
        remind = self._ctx.now_ms - self._reminded_at_ms >= REMIND_INTERVAL_MS
        if remind:
            self._reminded_at_ms = self._ctx.now_ms
        for number in list(self.active):
            slot = self._slots[number]
            assert slot is not None
            self.advance(slot)
            if remind and isinstance(slot.role, Primary):
                self._remind_learners(slot, slot.role)
        self._set_out()

    def _remind_learners(self, slot: Slot, primary: Primary) -> None:
        """Those that are not being brought the slot: they had no room, or a message was lost."""
        ctx = self._ctx
        for node in slot.config.learners:
            brought_ms = primary.bringing.get(node, (None, -BRING_AGAIN_MS))[1]
            if (
                ctx.now_ms - brought_ms >= BRING_AGAIN_MS
                and node in ctx.reachable
                and (slot.number, node) not in self._deferred
            ):
                tell(slot, primary, node, ctx)

    def _go_on_walking(self) -> None:
        """As far as the time since the last tick takes the walk."""
        count = len(self._slots)
        part = count * (self._ctx.now_ms - self._walked_at_ms) // self._walk_ms
        if part >= count <= WALK_PART_MAX:
            self._walk_at = 0
            self._walk(count)
        elif part:
            self._walk(min(self._walk_at + min(part, WALK_PART_MAX), count))

    def _walk(self, end: int) -> None:
        """Look at the slots up to ``end``, and see to it that each is where it belongs here."""
        self._walked_at_ms = self._ctx.now_ms
        if self._walk_at == 0:
            self._surpluses.begin_walk(self._room.places)
            self._copies_met = 0
        slots, wanted, me = self._slots, self.wanted, self._ctx.me
        active, urgent, others, blocked = self.active, self._urgent, self._others, self._blocked
        for n in range(self._walk_at, end):
            slot = slots[n]
            if slot is None:
                continue
            met = n in active or n in urgent or n in others or n in blocked
            if met or not _is_home(slot, wanted[n], me):
                self._look_at(slot)
        self._walk_at = end
        if end == len(self._slots):
            self._walk_at, self.copies_pending, self.is_surveyed = 0, self._copies_met, True
            busy = self.pending or self.copies_pending or self._surpluses.met
            self._walk_ms = WALK_MS if busy else QUIET_WALK_MS
        self._set_out()

    def _look_at(self, slot: Slot) -> None:
        ctx, number, wanted, role = self._ctx, slot.number, self.wanted[slot.number], slot.role
        self._rest(number)
        for queue in (self._urgent, self._others, self._blocked):
            queue.pop(number, None)
        if not slot.holds_state:
            return
        if role is None:
            if ctx.me not in wanted and ctx.leader_of.get(number) in ctx.reachable:
                self._surpluses.meet(slot)
        elif isinstance(role, Primary) and role.serving:
            config = slot.config
            if not _is_plain(config) or not is_settled(role):
                self.active.add(number)
                self._copies_met += len(config.learners)
                if not set(config.learners) <= ctx.reachable - ctx.full:
                    self._stalled.add(number)
            elif config.sets[0] != wanted:
                self._copies_met += len(set(wanted).difference(config.sets[0]))
                self._queue(slot)

    def _queue(self, slot: Slot) -> None:
        """To set out when its turn comes; slots that lack copies come first."""
        (self._urgent if self._is_urgent(slot) else self._others)[slot.number] = None


def _is_home(slot: Slot, wanted: tuple[NodeId, ...], me: NodeId) -> bool:
    """Whether a slot is where it belongs, as nearly all are: there is nothing to do."""
    role = slot.role
    if role is None:
        return me in wanted or not slot.holds_state
    if not isinstance(role, Primary):
        return True
    return role.serving and slot.config.sets == (wanted,) and not slot.config.learners


def _is_plain(config: SlotConfig) -> bool:
    """Whether no change of members is under way, by this config."""
    return len(config.sets) == 1 and not config.learners
