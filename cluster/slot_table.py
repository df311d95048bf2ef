"""All slots of a node: one door in, one set of outputs a tick.

The node feeds messages, requests, reachability and time; at the end of a tick it takes the
`Outputs` and carries them out in their order. Slots are independent of each other; what they share
is the tick: one store batch, one frame per peer, one confirmation round (`cluster.reads`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from cluster.dispatch import dispatch
from cluster.evaluate import live_record
from cluster.expiry import Expiry
from cluster.leadership import Chance, Leadership
from cluster.messages import (
    Chunk,
    Confirm,
    Confirmed,
    Establish,
    Malformed,
    Retiring,
    SlotMessage,
    Space,
)
from cluster.moves import Moves
from cluster.operations import Absent, Found, Get, Result, Scan
from cluster.outputs import Moved, Outputs
from cluster.primary import must_renew, write
from cluster.quorum import is_quorum
from cluster.reads import Reads, read_key
from cluster.scan import read_page
from cluster.scrub import Scrub
from cluster.slot import Call, Candidate, Context, Primary, Slot, SlotRow
from cluster.slot_config import SlotConfig, shared
from cluster.space import Room
from cluster.store import Damage
from cluster.takeover import answer_late
from cluster.watches import Watches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cluster.ballot import NodeId
    from cluster.outputs import Ticket
    from cluster.store import Store

FIRST_ROUND_MAX = 1 << 48
"""Rounds of reads are numbered from a random number below this."""

HELD_CALLS_MAX = 1_024
"""Requests held per slot while it changes its primary; more must wait outside."""


class SlotTable:
    """Every slot that this node holds, and the rules run over them.

    Args:
        me: This node's member id.
        slot_count: Slots of the cluster, the system slot included.
        store: See `cluster.store.Store`.
        rng: For jitter; the only chance in here.
    """

    def __init__(self, me: NodeId, slot_count: int, store: Store, rng: Chance) -> None:
        self.slot_count = slot_count
        self.slots: list[Slot | None] = [None] * slot_count
        self._ctx = Context(me, store, Outputs())
        self.reachable = self._ctx.reachable
        self.reachable.add(me)
        self._down: set[NodeId] = set()
        """Peers that cannot be reached; hardly ever any."""
        self._reads = Reads(self.slots.__getitem__, rng.randrange(FIRST_ROUND_MAX))
        self._expiry = Expiry(self.slots)
        self.leadership = Leadership(self.slots, self._ctx, rng, self._replay)
        self.watches = Watches(self.slots, self._ctx)
        self.moves = Moves(self.slots, self._ctx, self.leadership)
        self.scrub = Scrub(self.slots, self._ctx, self.leadership)
        self.room = Room(self._ctx)
        self._told = (self.leadership, self.moves, self.scrub)

    # -- beginning ---------------------------------------------------------------------------

    def found(self, owners: Sequence[tuple[NodeId, ...]]) -> None:
        """Give each slot that this node owns its first config, once (R16).

        Args:
            owners: For every slot, its members in ring order.
        """
        assert len(owners) == self.slot_count
        ctx = self._ctx
        configs = {members: SlotConfig((members,)) for members in set(owners)}
        for number, members in enumerate(owners):
            if ctx.me in members:
                assert self.slots[number] is None, "a slot is founded once"
                slot = self.slots[number] = Slot(number, ctx.store.prefix(number, 0))
                slot.holds_state = True
                slot.config = configs[members]
                slot.save(ctx)
        self.leadership.orphan(range(self.slot_count))

    def restore(self, rows: Iterable[tuple[int, SlotRow, int]]) -> None:
        """Come back with what is durable (R12): (slot, row, newest sequence of its key log)."""
        store = self._ctx.store
        for number, row, sequence in rows:
            prefix = store.prefix(number, row.generation)
            slot = self.slots[number] = Slot(number, prefix)
            slot.restore(row, prefix, sequence)
            slot.config = shared(slot.config)
            if slot.damaged:
                self._ctx.damaged.add(number)
            if not slot.holds_state:  # what was being copied here is of no use any more
                store.drop(store.prefix(number, slot.generation + 1))
        self.leadership.orphan(range(self.slot_count))

    def set_owners(self, owners: Sequence[tuple[NodeId, ...]]) -> None:
        """Where the newest topology wants every slot: those that this node leads go there (R13).

        Call it at the start and whenever the topology changes; progress is in `moves`.

        Args:
            owners: For every slot, who should be its members, in ring order.
        """
        self.moves.set_owners(owners)

    # -- the tick ----------------------------------------------------------------------------

    def set_time(self, now_ms: int, unix_ms: int) -> None:
        """The time until the next call: monotonic for timers, Unix time for expiry."""
        assert now_ms >= self._ctx.now_ms
        self._ctx.now_ms, self._ctx.unix_ms = now_ms, unix_ms

    def receive(self, sender: NodeId, messages: Iterable[SlotMessage]) -> None:
        """Messages of a peer, or of this node to itself after an fsync.

        Raises:
            Malformed: one of them; those before it have been taken.
        """
        slots = self.slots
        for message in messages:
            match message:
                case Confirm():
                    self._reads.on_confirm(sender, message, self._ctx)
                case Confirmed():
                    self._reads.on_confirmed(sender, message, self._ctx)
                case Retiring():
                    self.leadership.on_retiring(sender)
                case Space():
                    self.room.on_space(sender, message)
                case _:
                    try:
                        slot = slots[message.slot]
                    except IndexError:
                        raise Malformed(f"there is no slot {message.slot}") from None
                    if slot is None:
                        slot = self._stateless(message)
                        if slot is None:
                            continue
                    try:
                        dispatch(slot, sender, message, self._ctx, *self._told)
                    except Damage as damage:  # R18: handlers read before they change anything
                        self.scrub.met(slot, damage.key, str(damage))

    def _stateless(self, message: SlotMessage) -> Slot | None:
        """A slot object for a node that holds nothing of it yet and is being brought it (R13)."""
        if not isinstance(message, Chunk | Establish):
            return None
        slot = Slot(message.slot, self._ctx.store.prefix(message.slot, 0))
        self.slots[slot.number] = slot
        return slot

    def submit(self, number: int, call: Call) -> bool:
        """A request for a slot. False: look elsewhere, or later.

        This node does not lead it, or knows that it reaches no quorum: what it gave a sequence now
        could not be answered, and nobody could say what became of it.
        """
        slot = self.slots[number]
        if slot is None or not isinstance(slot.role, Primary):
            return False
        primary = slot.role
        if self._down and not is_quorum(self._ctx.reachable, slot.config):
            return False
        if not primary.serving or primary.handing_to is not None:
            if len(primary.held) >= HELD_CALLS_MAX:
                return False
            primary.held.append(call)
            return True
        self._enter(slot, call)
        return True

    def withdraw(self, numbers: Iterable[int], is_over: Callable[[Ticket], bool]) -> list[Ticket]:
        """Take back what is held for these slots and nobody waits for: it gets no sequence."""
        taken: list[Ticket] = []
        for number in numbers:
            slot = self.slots[number]
            if slot is not None and isinstance(slot.role, Primary) and slot.role.held:
                held = slot.role.held
                taken += [call.ticket for call in held if is_over(call.ticket)]
                slot.role.held = [call for call in held if not is_over(call.ticket)]
        return taken

    def _enter(self, slot: Slot, call: Call) -> None:
        """Into a serving primary; what meets damage waits for a good copy, if there is one."""
        try:
            self._carry_out(slot, call)
        except Damage as damage:  # R18: never served as truth
            self.scrub.answer(slot, call, damage)

    def _replay(self, slot: Slot, held: list[Call]) -> None:
        """What was held, in its order; retries among it may fill their room (R5)."""
        role = slot.role
        for call in held:
            if slot.role is role:
                self._enter(slot, call)
            else:  # a new ballot is being taken: it waits for that outside
                self._ctx.out.moved.append(Moved(call.ticket, started=call.retry))

    def _carry_out(self, slot: Slot, call: Call) -> None:
        primary, ctx = slot.role, self._ctx
        assert isinstance(primary, Primary)
        op = call.operation
        if isinstance(op, Get):
            self._reads.join(slot, primary, call.ticket, read_key(slot, op, ctx))
        elif isinstance(op, Scan):
            self._reads.join(slot, primary, call.ticket, read_page(slot, primary, op, ctx))
        elif ctx.full and (full := self.room.refusal(slot, op)) is not None:
            ctx.out.answers.append((call.ticket, full))
        else:
            refused = write(slot, primary, call, ctx)
            if refused is not None:
                self._reads.join(slot, primary, call.ticket, refused)
            if must_renew(primary):
                self.leadership.renew(slot)

    def read_replica(self, number: int, get: Get) -> Result | None:
        """Whatever this node holds of the key now; None if it holds nothing that can be trusted."""
        slot = self.slots[number]
        if slot is None or not slot.holds_state or slot.damaged:
            return None
        try:
            record = live_record(slot.prefix, get.key, self._ctx)
        except Damage as damage:  # the primary has a good copy, or says that there is none
            self.scrub.met(slot, get.key, str(damage))
            return None
        return Absent() if record is None else Found(record)

    def tick(self) -> None:
        """Timers: call it about ten times a second, and after peers came or went."""
        self.leadership.tick()
        with suppress(Damage):  # R18: who cannot read what it should send is found by the scrub
            self.moves.tick()
        self._reads.tick(self._ctx)
        self._expiry.tick(self._ctx)
        self.scrub.tick()

    def take(self) -> Outputs:
        """End the tick: everything that is to be done, in the order that `Outputs` states."""
        ctx = self._ctx
        if ctx.out.leads_changed:
            for number in list(ctx.out.leads_changed):
                self._lead_changed(number)
        if self.leadership.orphans:
            self.leadership.start_candidacies()
        self._reads.send_round(ctx)
        self.watches.tidy()
        out, ctx.out = ctx.out, Outputs()
        return out

    def _lead_changed(self, number: int) -> None:
        slot = self.slots[number]
        assert slot is not None
        primary = slot.role
        if not isinstance(primary, Primary):
            self.leadership.orphan((number,))
            self.leadership.handed_over(number)
            return
        self._ctx.leader_of.pop(number, None)
        self.leadership.led(number)
        self.leadership.consider_return(slot)
        held, primary.held = primary.held, []
        self._replay(slot, held)
        self.moves.led(slot)

    # -- the neighbourhood -------------------------------------------------------------------

    def peer_hoped(self, node: NodeId) -> None:
        """A peer that is not known yet counts as reachable, so that nobody steals from it."""
        self._ctx.reachable.add(node)

    def peer_up(self, node: NodeId) -> None:
        """There is a connection to this peer."""
        self._ctx.reachable.add(node)
        self._down.discard(node)
        self.room.peer_up(node)
        self.leadership.peer_up(node)

    def peer_down(self, node: NodeId) -> None:
        """Refused, reset, or silent for longer than the suspicion timeout (R10)."""
        ctx = self._ctx
        ctx.reachable.discard(node)
        ctx.retiring.discard(node)
        ctx.told.discard(node)
        self._down.add(node)
        self.watches.doubt()
        self.leadership.catching_up.end(node)
        self.room.peer_down(node)
        lost = [number for number, leader in ctx.leader_of.items() if leader == node]
        self._leaderless(lost)
        orphans = self.leadership.orphans
        waiting = list(orphans)
        orphans.clear()  # ranks have changed
        self.leadership.orphan([*lost, *waiting])

    def peer_leads(
        self,
        node: NodeId,
        slots: Iterable[int],
        *,
        complete: bool = False,
        ballot_of: Callable[[int], bytes] | None = None,
    ) -> None:
        """A peer says that it serves these slots, in these ballots; complete: and no others."""
        if complete:
            self._ctx.told.add(node)
        leader_of, leadership = self._ctx.leader_of, self.leadership
        orphans = len(leadership.orphans)
        for number in slots:
            leader_of[number] = node
            leadership.led(number, b"" if ballot_of is None else ballot_of(number))
        if len(leadership.orphans) < orphans:
            leadership.took_over(node)

    def peer_leads_no_more(self, node: NodeId, slots: Iterable[int]) -> None:
        """A peer says that it stopped serving these slots."""
        leader_of = self._ctx.leader_of
        lost = [number for number in slots if leader_of.get(number) == node]
        self._leaderless(lost)
        self.leadership.orphan(lost)

    def _leaderless(self, numbers: Iterable[int]) -> None:
        ctx = self._ctx
        for number in numbers:
            del ctx.leader_of[number]
            slot = self.slots[number]
            if slot is not None and number in ctx.unanswered:
                answer_late(slot, ctx)

    def leader_of(self, number: int) -> NodeId | None:
        """Who serves the slot, as far as this node knows."""
        slot = self.slots[number]
        if slot is not None and isinstance(slot.role, Primary) and slot.role.serving:
            return self._ctx.me
        return self._ctx.leader_of.get(number)

    def leaders_of(self, numbers: Iterable[int]) -> list[NodeId | None]:
        """`leader_of` for many: whoever waits for a node to be ready asks for all, often."""
        slots, ctx = self.slots, self._ctx
        me, others = ctx.me, ctx.leader_of
        return [
            me
            if (slot := slots[n]) is not None and type(p := slot.role) is Primary and p.serving
            else others.get(n)
            for n in numbers
        ]

    def want(self, number: int) -> NodeId | None:
        """Who should be asked for a slot without a known leader: the first reachable member (R10).

        If that is this node, it takes the slot over before others that nobody waits for. None if it
        holds nothing of the slot and so cannot tell.
        """
        slot = self.slots[number]
        if slot is None:
            return None
        self.leadership.want(number)
        if slot.role is not None and not (isinstance(slot.role, Candidate) and slot.role.asking):
            return self._ctx.me
        return self.leadership.successor(slot)

    def led(self) -> Iterator[tuple[int, bytes]]:
        """Slots that this node serves, each with its newest committed position, packed."""
        return self.led_of(range(self.slot_count))

    def led_of(self, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Those of these slots that this node serves, with `cluster.records.pack_version`'s."""
        slots = self.slots
        for number in numbers:
            slot = slots[number]
            if slot is not None and type(p := slot.role) is Primary and p.serving:
                yield number, p.ballot_bytes + p.committed.to_bytes(8, "big")

    def check(self) -> None:
        """Assert the invariants of every slot; for tests and the simulator."""
        for slot in self.slots:
            if slot is not None:
                slot.check()
