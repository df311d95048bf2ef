"""Who should lead what, and when to act on it: rule 10 for all slots of a node.

Policy, not safety: everything here may be wrong at any time and rule 9 still keeps one primary per
ballot. The first member in ring order that is reachable should lead. A slot without a leader that
this node can reach is an *orphan*; the first reachable member asks to take it over at once, the
next ones only after a delay for each rank, in case the first cannot win. A slot that is led by
somebody who is not its first reachable member is handed over, some slots at a time, as soon as that
member is in step.

No tick walks all slots: orphans, candidates and slots to hand over are kept as sets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cluster.messages import Establish, HandOver
from cluster.replica import step_down
from cluster.slot import Call, Candidate, Primary
from cluster.takeover import ask, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cluster.ballot import NodeId
    from cluster.slot import Context, Slot

RANK_DELAY_MS = 1_500
"""How long the second member lets the first try, the third the second, and so on."""

CANDIDATE_TIMEOUT_MS = 1_000
"""A candidacy that got nowhere is begun again after this and up to as much jitter."""

CANDIDATES_MAX = 256
"""Candidacies at once, apart from wanted slots: milliseconds of work, so that these wait for little
and none times out behind the others."""

LAGGARD_INTERVAL_MS = 1_000
"""A peer that is behind and made no progress for so long is told Establish again (R9)."""

HANDOVER_SLOTS_MAX = 512
"""Slots handed over at once: their requests are held for two round trips and two fsyncs."""

HANDOVER_TIMEOUT_MS = 1_000
"""A handover that the other side did not take up is called off after this."""


class Chance(Protocol):
    """The part of `random.Random` that is used."""

    def randrange(self, start: int, /) -> int:
        """A whole number from 0 to below the argument."""


class Leadership:
    """Decides about takeovers and handovers of one node's slots."""

    def __init__(
        self,
        slots: Sequence[Slot | None],
        ctx: Context,
        rng: Chance,
        replay: Callable[[Slot, Call], None],
    ) -> None:
        self._slots = slots
        self._ctx = ctx
        self._rng = rng
        self._replay = replay
        self.orphans: dict[int, int] = {}
        """Slot without a reachable leader -> when this node may try to take it over, in ms."""
        self.candidates: set[int] = set()
        """Slots with a candidacy or an unfinished establishing of this node."""
        self.returning: dict[int, None] = {}
        """Slots that this node leads and somebody else should."""
        self.handing: dict[int, int] = {}
        """Slots in a handover -> since when."""
        self._laggards: dict[tuple[int, NodeId], int] = {}
        self._laggards_at_ms = 0

    def orphan(self, numbers: Iterable[int]) -> None:
        """These slots have no leader that this node can reach."""
        ctx = self._ctx
        for number in numbers:
            slot = self._slots[number]
            if slot is None or not slot.holds_state or number in self.orphans:
                continue
            members = slot.config.members
            if ctx.me in members and not isinstance(slot.role, Primary):
                ahead = [n for n in members[: members.index(ctx.me)] if n in ctx.reachable]
                self.orphans[number] = ctx.now_ms + RANK_DELAY_MS * len(ahead)

    def led(self, number: int) -> None:
        """A leader is known again."""
        self.orphans.pop(number, None)
        slot = self._slots[number]
        if slot is None or (isinstance(slot.role, Primary) and slot.role.serving):
            self.candidates.discard(number)

    def tick(self) -> None:
        """Take over orphans, repeat what got nowhere, hand over what others should lead."""
        now_ms = self._ctx.now_ms
        self.start_candidacies()
        for number in [n for n in self.candidates if self._is_settled(n)]:
            self.candidates.discard(number)
        if self.returning or self.handing:
            self._hand_over()
        if now_ms - self._laggards_at_ms >= LAGGARD_INTERVAL_MS:
            self._laggards_at_ms = now_ms
            self._sweep()

    def start_candidacies(self) -> None:
        """Ask for orphans whose time has come, as long as there is room; O(orphans)."""
        ctx, room = self._ctx, CANDIDATES_MAX - len(self.candidates)
        due: list[int] = []
        for number, at_ms in self.orphans.items():
            if len(due) >= room:
                break
            if at_ms <= ctx.now_ms:
                due.append(number)
        for number in due:
            self._begin_candidacy(number)

    def want(self, number: int) -> None:
        """Somebody waits for this slot: if it is this node's turn, it comes before all others."""
        at_ms = self.orphans.get(number)
        if at_ms is not None and at_ms <= self._ctx.now_ms:
            self._begin_candidacy(number)

    def _begin_candidacy(self, number: int) -> None:
        del self.orphans[number]
        slot = self._slots[number]
        if slot is not None and slot.role is None and slot.holds_state:
            ask(slot, self._ctx)
            self.candidates.add(number)

    def _sweep(self) -> None:
        """The one walk over all slots, once a second: whatever was lost on the way is found here.

        Slots that nobody is known to lead become orphans, handovers that came to nothing begin
        again, and a primary repeats Establish until nobody is behind (R9).
        """
        before, self._laggards = self._laggards, {}
        for number, slot in enumerate(self._slots):
            if slot is None:
                continue
            primary = slot.role
            if primary is None:
                if self._ctx.leader_of.get(number) not in self._ctx.reachable:
                    self.orphan((number,))
            elif not isinstance(primary, Primary) or not primary.serving:
                self.candidates.add(number)
            else:
                if primary.handing_to is None:
                    self.consider_return(slot)
                self._remind_laggards(slot, primary, before)

    def _remind_laggards(
        self, slot: Slot, primary: Primary, before: dict[tuple[int, NodeId], int]
    ) -> None:
        """Say Establish again to peers that are as far behind as a second ago."""
        for peer in primary.peers:
            durable = primary.durable.get(peer, -1)
            if durable < slot.sequence and peer in self._ctx.reachable:
                self._laggards[slot.number, peer] = durable
                if before.get((slot.number, peer)) == durable:
                    self.repeat_establish(slot, primary, (peer,))

    def _is_settled(self, number: int) -> bool:
        """Whether the candidacy is over; one that got nowhere becomes an orphan again."""
        ctx, slot = self._ctx, self._slots[number]
        assert slot is not None
        role = slot.role
        if isinstance(role, Primary):
            if not role.serving and ctx.now_ms - role.since_ms > CANDIDATE_TIMEOUT_MS:
                role.since_ms = ctx.now_ms
                self.repeat_establish(slot, role, role.peers)
            return role.serving
        if isinstance(role, Candidate):
            if ctx.now_ms - role.since_ms <= CANDIDATE_TIMEOUT_MS:
                return False
            slot.role = None
        if ctx.leader_of.get(number) not in ctx.reachable:
            self.orphans[number] = ctx.now_ms + self._rng.randrange(CANDIDATE_TIMEOUT_MS)
        return True

    def repeat_establish(self, slot: Slot, primary: Primary, peers: Iterable[NodeId]) -> None:
        """Say Establish again to those that are behind (R9)."""
        for peer in peers:
            if primary.durable.get(peer, -1) < slot.sequence:
                again = Establish(slot.number, primary.ballot, primary.base, slot.sequence)
                self._ctx.out.send[peer].append(again)

    def peer_up(self, node: NodeId) -> None:
        """A peer can be reached: bring it to what this node leads, and let it lead its own."""
        for slot in self._slots:
            if slot is None or node not in slot.config.everyone:
                continue
            if isinstance(slot.role, Primary):
                slot.role.bringing.pop(node, None)
                self.repeat_establish(slot, slot.role, (node,))
                if slot.role.serving:
                    self.consider_return(slot)
            elif isinstance(slot.role, Candidate) and slot.role.asking:
                slot.role.since_ms = 0  # ask again, now that one more can answer

    def consider_return(self, slot: Slot) -> None:
        """Note the slot if somebody who is preferred over this node could lead it (R10)."""
        ctx = self._ctx
        for node in slot.config.members:
            if node == ctx.me:
                return
            if node in ctx.reachable:
                self.returning[slot.number] = None
                return

    def _hand_over(self) -> None:
        ctx = self._ctx
        for number, since_ms in list(self.handing.items()):
            slot = self._slots[number]
            assert slot is not None
            if not isinstance(slot.role, Primary) or slot.role.handing_to is None:
                del self.handing[number]
            elif ctx.now_ms - since_ms > HANDOVER_TIMEOUT_MS:
                del self.handing[number]
                self._call_off(slot, slot.role)
        for number in list(self.returning):
            if len(self.handing) >= HANDOVER_SLOTS_MAX:
                return
            slot = self._slots[number]
            assert slot is not None
            primary = slot.role
            if not isinstance(primary, Primary):
                del self.returning[number]
                continue
            successor = next(n for n in slot.config.members if n in ctx.reachable)
            if successor == ctx.me:
                del self.returning[number]
            elif primary.serving and primary.durable.get(successor, -1) >= primary.committed:
                del self.returning[number]
                self.begin(slot, primary, successor)

    def begin(self, slot: Slot, primary: Primary, successor: NodeId) -> None:
        """Hold new requests; the successor is told when what is in flight has committed (R10)."""
        primary.handing_to = successor
        self.handing[slot.number] = self._ctx.now_ms
        self.proceed(slot, primary)

    def proceed(self, slot: Slot, primary: Primary) -> None:
        """Name the successor once everything in flight is committed there too."""
        successor = primary.handing_to
        if (
            successor is not None
            and primary.committed == slot.sequence
            and primary.durable.get(successor, -1) == slot.sequence
        ):
            self._ctx.out.send[successor].append(HandOver(slot.number, primary.ballot))

    def _call_off(self, slot: Slot, primary: Primary) -> None:
        primary.handing_to = None
        held, primary.held = primary.held, []
        for call in held:
            self._replay(slot, call)

    def on_hand_over(self, slot: Slot, message: HandOver) -> None:
        """The primary asks this node to take over now (R10)."""
        if slot.role is None and slot.holds_state and slot.established == message.ballot:
            prepare(slot, self._ctx)
            self.candidates.add(slot.number)

    def renew(self, slot: Slot) -> None:
        """Take a new ballot for a slot that this node leads (R5)."""
        step_down(slot, self._ctx)
        prepare(slot, self._ctx)
        self.candidates.add(slot.number)
