"""Linearizable reads without leases and without an fsync: rule 6.

A read takes the value as it is now, in-flight writes included, and is answered when the newest
sequence that it included is committed and a quorum has confirmed, after the read arrived, that it
promised nothing higher. All reads of a tick, over all slots, share one *round*: one `Confirm` to
each peer. A round serves only reads that arrived before it was sent. A failed condition is such a
read too (rule 3).
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from cluster.ballot import Ballot, NodeId
from cluster.evaluate import live_record
from cluster.messages import Confirm, Confirmed, Refuse
from cluster.operations import Absent, Found
from cluster.outputs import Moved
from cluster.primary import propose, queue
from cluster.quorum import is_quorum
from cluster.records import expires_at_ms
from cluster.slot import Primary, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.operations import Get, Result
    from cluster.outputs import Ticket
    from cluster.slot import Context, Slot

ROUND_TIMEOUT_MS = 10_000
"""A round without a quorum is forgotten after this; its callers have given up long before."""


def read_key(slot: Slot, get: Get, ctx: Context) -> Result:
    """The value as it is now; an expired record is deleted first (R7)."""
    record_key = slot.prefix + get.key
    record = ctx.store.read(record_key)
    if record is None:
        return Absent()
    expires = expires_at_ms(record)
    if expires and expires <= ctx.unix_ms:
        assert isinstance(slot.role, Primary)
        assert live_record(record_key, ctx) is None
        propose(slot, slot.role, (0, 0), [(get.key, None)], None, ctx)  # R7
        return Absent()
    return Found(record)


class Round:
    """One confirmation for many reads."""

    __slots__ = ("confirmed", "number", "reads", "since_ms")

    def __init__(self, number: int, now_ms: int) -> None:
        self.number = number
        self.since_ms = now_ms
        self.reads: dict[Slot, tuple[Primary, list[Waiting]]] = {}
        self.confirmed: dict[NodeId, frozenset[int]] = {}
        """Node -> slots that it denied."""


class Reads:
    """All reads of this node's primaries that wait for a confirmation."""

    def __init__(self, slot_at: Callable[[int], Slot | None]) -> None:
        self._slot_at = slot_at
        self._next = Round(1, 0)
        self._sent: dict[int, Round] = {}

    def join(self, slot: Slot, primary: Primary, ticket: Ticket, result: Result) -> None:
        """A read of ``slot`` that took ``result``; it is answered after this tick's round (R6)."""
        self.add(slot, primary, Waiting(slot.sequence, ticket, result, confirmed=False))

    def add(self, slot: Slot, primary: Primary, waiting: Waiting) -> None:
        """The same for a prepared `Waiting`, such as a failed condition (R3)."""
        if waiting.needs > primary.committed:
            queue(primary, waiting)
        known = self._next.reads.get(slot)
        if known is None or known[0] is not primary:
            self._next.reads[slot] = (primary, [waiting])
        else:
            known[1].append(waiting)

    def send_round(self, ctx: Context) -> None:
        """At the end of a tick: ask the peers of every slot that was read (R6)."""
        round_ = self._next
        if not round_.reads:
            return
        self._next = Round(round_.number + 1, ctx.now_ms)
        round_.since_ms = ctx.now_ms
        per_peer: dict[NodeId, tuple[array[int], array[int]]] = {}
        for slot, (primary, _) in round_.reads.items():
            for peer in primary.peers:
                asked = per_peer.get(peer)
                if asked is None:
                    asked = per_peer[peer] = (array("H"), array("I"))
                asked[0].append(slot.number)
                asked[1].append(primary.ballot.round)
        for peer, (slots, rounds) in per_peer.items():
            ctx.out.send[peer].append(Confirm(round_.number, slots.tobytes(), rounds.tobytes()))
        self._sent[round_.number] = round_
        self._on_confirmed(ctx.me, round_, frozenset(), ctx)

    def on_confirm(self, sender: NodeId, confirm: Confirm, ctx: Context) -> None:
        """A primary asks whether it is still the one."""
        slots, rounds = array("H", confirm.slots), array("I", confirm.rounds)
        denied = array("H")
        for number, round_ in zip(slots, rounds, strict=True):
            slot = self._slot_at(number)
            if slot is None or not slot.holds_state:
                denied.append(number)
            elif slot.promised > Ballot(round_, sender):
                denied.append(number)
                ctx.out.send[sender].append(Refuse(number, slot.promised))
        ctx.out.send[sender].append(Confirmed(confirm.number, denied.tobytes()))

    def on_confirmed(self, sender: NodeId, confirmed: Confirmed, ctx: Context) -> None:
        """A peer's answer; the reads that now have a quorum are released."""
        round_ = self._sent.get(confirmed.number)
        if round_ is not None:
            self._on_confirmed(sender, round_, frozenset(array("H", confirmed.denied)), ctx)

    def _on_confirmed(
        self, sender: NodeId, round_: Round, denied: frozenset[int], ctx: Context
    ) -> None:
        round_.confirmed[sender] = denied
        anyone_denied = any(round_.confirmed.values())
        released: list[Slot] = []
        for slot, (primary, reads) in round_.reads.items():
            who: dict[NodeId, frozenset[int]] | set[NodeId] = round_.confirmed
            if anyone_denied:
                who = {n for n, no in round_.confirmed.items() if slot.number not in no}
            if slot.role is not primary:
                ctx.out.moved += [Moved(w.ticket, started=True) for w in reads if not w.queued]
            elif is_quorum(who, slot.config):
                for waiting in reads:
                    waiting.confirmed = True
                    if not waiting.queued:
                        ctx.out.answers.append((waiting.ticket, waiting.result))
            else:
                continue
            released.append(slot)
        if len(released) == len(round_.reads):
            del self._sent[round_.number]
            return
        for slot in released:
            del round_.reads[slot]

    def expire(self, ctx: Context) -> None:
        """Forget rounds that never found a quorum; their callers are told to try elsewhere."""
        old = [r for r in self._sent.values() if ctx.now_ms - r.since_ms > ROUND_TIMEOUT_MS]
        for round_ in old:
            del self._sent[round_.number]
            for _, reads in round_.reads.values():
                ctx.out.moved += [Moved(w.ticket, started=True) for w in reads if not w.queued]
