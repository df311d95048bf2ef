"""Linearizable reads without leases and without an fsync: rule 6.

A read takes the value as it is now, in-flight writes included, and is answered when the newest
sequence that it included is committed and a quorum has confirmed, after the read arrived, that it
promised nothing higher. All reads of a tick, over all slots, share one *round*: one `Confirm` to
each peer that is asked. A round serves only reads that arrived before it was sent. A failed
condition is such a read too (rule 3).

A round asks no more peers than a quorum needs, and the same ones for as many slots as possible:
that is half of the messages for three replicas. Peers take turns by round; one that is slow to
answer is passed over until it does. Where a round is not confirmed soon, everyone else is asked.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from cluster.messages import Confirm, Confirmed, Malformed, Refuse
from cluster.operations import Absent, Found
from cluster.outputs import Moved
from cluster.primary import delete_expired, queue
from cluster.quorum import is_quorum
from cluster.records import is_expired
from cluster.slot import Primary, Waiting
from cluster.store import check_intact

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from cluster.ballot import NodeId
    from cluster.operations import Get, Result
    from cluster.outputs import Ticket
    from cluster.slot import Context, Slot
    from cluster.slot_config import SlotConfig

    Plan = Callable[[SlotConfig, int, Container[NodeId], Context], list[NodeId]]
    """Whom question ``number`` puts to slots of a config; ``chosen`` are asked about others."""

ROUND_TIMEOUT_MS = 10_000
"""A round without a quorum is forgotten after this; its callers have given up long before."""

ASK_REST_AFTER_MS = 20
"""A round that is not confirmed by then asks everyone; a hundred times what an answer takes."""

ASK_AGAIN_AFTER_MS = 1_000
"""... and again after this, because a broken connection may have swallowed the question."""


def read_key(slot: Slot, get: Get, ctx: Context) -> Result:
    """The value as it is now; an expired record is deleted first (R7)."""
    record = ctx.store.read(slot.prefix + get.key)
    if record is None:
        return Absent()
    check_intact(get.key, record)  # R18: never served as truth
    if is_expired(record, ctx.unix_ms):
        assert isinstance(slot.role, Primary)
        delete_expired(slot, slot.role, [get.key], ctx)
        return Absent()
    return Found(record)


class Round:
    """One confirmation for many reads, by one question or, where that is slow, several."""

    __slots__ = ("asked", "asked_ms", "numbers", "partly", "reads", "since_ms", "wholly")

    def __init__(self) -> None:
        self.since_ms = self.asked_ms = 0
        self.reads: dict[Slot, SlotReads] = {}
        """Those that are not confirmed yet."""
        self.numbers: list[int] = []
        """Of its questions."""
        self.asked: dict[tuple[int, NodeId], frozenset[int] | None] = {}
        """Question and node -> the slots that it was about, None for all; until the answer."""
        self.wholly: set[NodeId] = set()
        """Who confirmed all of the round's slots ..."""
        self.partly: list[tuple[NodeId, frozenset[int]]] = []
        """... and who confirmed only these."""


class SlotReads:
    """A round's reads of one slot, by the primary that took them."""

    __slots__ = ("answers", "primary", "queued")

    def __init__(self, primary: Primary) -> None:
        self.primary = primary
        self.answers: list[tuple[Ticket, Result]] = []
        """Those that wait for the confirmation alone."""
        self.queued: list[Waiting] = []
        """Those that included what is not committed yet."""


class Reads:
    """All reads of this node's primaries that wait for a confirmation.

    Args:
        slot_at: The slot of a number, None where nothing is held.
        first_round: Far from the numbers of before a restart, so that no answer is mistaken.
    """

    def __init__(self, slot_at: Callable[[int], Slot | None], first_round: int) -> None:
        self._slot_at = slot_at
        self._number = first_round
        self._next = Round()
        self._sent: dict[int, Round] = {}
        """By the number of each question."""
        self._slow: set[NodeId] = set()

    def join(self, slot: Slot, primary: Primary, ticket: Ticket, result: Result) -> None:
        """A read of ``slot`` that took ``result``; it is answered after this tick's round (R6)."""
        if slot.sequence > primary.committed:
            waiting = Waiting(slot.sequence, ticket, result, confirmed=False)
            queue(primary, waiting)
            self._reads_of(slot, primary).queued.append(waiting)
        else:
            self._reads_of(slot, primary).answers.append((ticket, result))

    def _reads_of(self, slot: Slot, primary: Primary) -> SlotReads:
        reads = self._next.reads.get(slot)
        if reads is None:
            reads = self._next.reads[slot] = SlotReads(primary)
        assert reads.primary is primary, "nobody is deposed and established within one tick"
        return reads

    def send_round(self, ctx: Context) -> None:
        """At the end of a tick: ask enough peers of every slot that was read (R6)."""
        round_ = self._next
        if not round_.reads:
            return
        self._next = Round()
        round_.since_ms = ctx.now_ms
        self._ask(round_, ctx, self._plan)
        round_.wholly.add(ctx.me)
        self._release(round_, ctx)

    def _ask(self, round_: Round, ctx: Context, plan: Plan) -> None:
        """Put a question to the peers of the plan; one `Confirm` to each, for all of its slots.

        Each question has a number of its own, so that an answer speaks for the slots that it was
        asked about, whatever else the same peer is asked later.
        """
        number = self._number
        self._number += 1
        self._sent[number] = round_
        round_.numbers.append(number)
        round_.asked_ms = ctx.now_ms
        per_peer: dict[NodeId, tuple[array[int], array[int]]] = {}
        plans: dict[int, list[NodeId]] = {}
        for slot, reads in round_.reads.items():
            peers = plans.get(id(slot.config))
            if peers is None:
                peers = plans[id(slot.config)] = plan(slot.config, number, per_peer, ctx)
            for peer in peers:
                asked = per_peer.get(peer)
                if asked is None:
                    asked = per_peer[peer] = (array("H"), array("I"))
                asked[0].append(slot.number)
                asked[1].append(reads.primary.ballot.round)
        for peer, (slots, rounds) in per_peer.items():
            all_of_them = len(slots) == len(round_.reads)
            round_.asked[number, peer] = None if all_of_them else frozenset(slots)
            ctx.out.send[peer].append(Confirm(number, slots.tobytes(), rounds.tobytes()))

    def _plan(
        self, config: SlotConfig, number: int, chosen: Container[NodeId], ctx: Context
    ) -> list[NodeId]:
        """As many peers as a quorum needs beside this node, those that are asked anyway first."""
        others = _everyone(config, number, chosen, ctx)
        if len(config.sets) != 1 or not others:
            return others
        turn = number % len(others)
        others = others[turn:] + others[:turn]
        others.sort(key=lambda n: (n not in ctx.reachable, n in self._slow, n not in chosen))
        return others[: len(config.members) // 2 + (ctx.me not in config.members)]

    def on_confirm(self, sender: NodeId, confirm: Confirm, ctx: Context) -> None:
        """A primary asks whether it is still the one.

        Raises:
            Malformed: it asks about a slot that there is not, or not in pairs.
        """
        if len(confirm.slots) % 2 or len(confirm.rounds) != 2 * len(confirm.slots):
            raise Malformed("a confirmation has two bytes for each slot, and four for its round")
        slots, rounds = array("H", confirm.slots), array("I", confirm.rounds)
        denied = array("H")
        slot_at = self._slot_at
        for number, round_ in zip(slots, rounds, strict=True):
            try:
                slot = slot_at(number)
            except IndexError:
                raise Malformed(f"there is no slot {number}") from None
            if slot is None or not slot.holds_state:
                denied.append(number)
            elif slot.promised > (round_, sender):  # a ballot compares as the tuple that it is
                denied.append(number)
                ctx.out.send[sender].append(Refuse(number, slot.promised))
        ctx.out.send[sender].append(Confirmed(confirm.number, denied.tobytes()))

    def on_confirmed(self, sender: NodeId, confirmed: Confirmed, ctx: Context) -> None:
        """A peer's answer; the reads that now have a quorum are released.

        Raises:
            Malformed: it is none.
        """
        if len(confirmed.denied) % 2:
            raise Malformed("a list of slots has two bytes for each")
        self._slow.discard(sender)
        round_ = self._sent.get(confirmed.number)
        question = (confirmed.number, sender)
        if round_ is None or question not in round_.asked:
            return  # doubled, or its reads were released long ago
        slots = round_.asked.pop(question)
        if slots is None and not confirmed.denied:
            round_.wholly.add(sender)
        else:
            if slots is None:
                slots = frozenset(slot.number for slot in round_.reads)
            round_.partly.append((sender, slots - frozenset(array("H", confirmed.denied))))
        self._release(round_, ctx)

    def _release(self, round_: Round, ctx: Context) -> None:
        """Let go the reads of every slot that a quorum has confirmed."""
        enough: dict[int, bool] = {}
        left: dict[Slot, SlotReads] = {}
        for slot, reads in round_.reads.items():
            config = slot.config
            if slot.role is not reads.primary:
                self._move(reads, ctx)
                continue
            if round_.partly:  # a peer speaks for the slots that it was asked about, and no others
                who = {node for node, slots in round_.partly if slot.number in slots}
                confirmed = is_quorum(who | round_.wholly, config)
            elif (known := enough.get(id(config))) is not None:
                confirmed = known
            else:
                confirmed = enough[id(config)] = is_quorum(round_.wholly, config)
            if not confirmed:
                left[slot] = reads
                continue
            ctx.out.answers += reads.answers
            for waiting in reads.queued:
                waiting.confirmed = True
                if not waiting.queued:
                    ctx.out.answers.append((waiting.ticket, waiting.result))
        round_.reads = left
        if not left:
            self._forget(round_)

    def _forget(self, round_: Round) -> None:
        for number in round_.numbers:
            del self._sent[number]

    def _move(self, reads: SlotReads, ctx: Context) -> None:
        """The primary that took these leads no more; what it had queued moved when it stopped."""
        ctx.out.moved += [Moved(ticket, started=True) for ticket, _ in reads.answers]
        ctx.out.moved += [Moved(w.ticket, started=True) for w in reads.queued if not w.queued]

    def tick(self, ctx: Context) -> None:
        """Ask everyone where a round waits; forget those that never found a quorum."""
        for round_ in dict.fromkeys(self._sent.values()):
            age_ms = ctx.now_ms - round_.since_ms
            if age_ms > ROUND_TIMEOUT_MS:
                self._forget(round_)
                for reads in round_.reads.values():
                    self._move(reads, ctx)
            elif ctx.now_ms - round_.asked_ms >= (
                ASK_REST_AFTER_MS if round_.asked_ms == round_.since_ms else ASK_AGAIN_AFTER_MS
            ):
                self._slow.update(node for _, node in round_.asked)
                self._ask(round_, ctx, _everyone)


def _everyone(
    config: SlotConfig, number: int, chosen: Container[NodeId], ctx: Context
) -> list[NodeId]:
    return [node for node in config.members if node != ctx.me]
