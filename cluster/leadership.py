"""Who should lead what, and when to act on it: rule 10 for all slots of a node.

Policy, not safety: everything here may be wrong at any time and rule 9 still keeps one primary per
ballot. The first member in ring order that is reachable should lead. A slot without a leader that
this node can reach is an *orphan*; the first reachable member asks to take it over at once, the
next ones only after a delay for each rank, in case the first cannot win. A slot that is led by
somebody who is not its first reachable member is handed over, some slots at a time, as soon as that
member is in step.

No tick walks all slots: orphans, candidates and slots to hand over are kept as sets, and what was
lost on the way is found by `cluster.sweep`.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Protocol

from cluster.catching_up import CatchingUp, is_in_step, tell
from cluster.messages import HandOver, Prepare, Refuse, Retiring
from cluster.records import unpack_ballot
from cluster.replica import step_down
from cluster.slot import Call, Candidate, Primary
from cluster.sweep import Sweep
from cluster.takeover import ask, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cluster.ballot import NodeId
    from cluster.slot import Context, Slot

RANK_DELAY_MS = 1_500
"""How long the second member lets the first try, the third the second, and so on: since it began,
or since it last took over a slot that nobody led. A whole cluster that starts on a busy machine
takes longer than this; if the others then took slots too, all would depose each other."""

CANDIDATE_TIMEOUT_MS = 1_000
"""A candidacy that got nowhere is begun again after this and up to as much jitter."""

CANDIDATES_MAX = 512
"""Candidacies at once: tens of milliseconds of work, so that none times out behind the others."""

CANDIDATES_BESIDE_WANTED_MAX = 64
"""The same while somebody waits for slots: what is wanted should hardly notice the rest."""

WANTED_MS = 200
"""Slots that were wanted so lately say that more of them will be."""

HANDOVER_SLOTS_MAX = 32
"""Slots handed over at once: their requests are held for three round trips with an fsync each, in
which there is little else to do on either side. The next ones follow as soon as half are done."""

RETURNING_LOOKS_MAX = 256
"""Slots to hand over that are looked at, at once; whichever is not in step has its turn again."""

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
        replay: Callable[[Slot, list[Call]], None],
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
        self.catching_up = CatchingUp(slots, ctx, self._in_step)
        self._sweep = Sweep(slots, ctx, self)
        self._took_ms: dict[NodeId, int] = {}
        """Peer -> when it last took over an orphan."""
        self._wanted_ms = -WANTED_MS

    def orphan(self, numbers: Iterable[int]) -> None:
        """These slots have no leader that this node can reach."""
        ctx, slots, orphans = self._ctx, self._slots, self.orphans
        leader_of, reachable = ctx.leader_of, ctx.reachable
        times: dict[int, int | None] = {}  # by config: thousands of slots share a few
        for number in numbers:
            slot = slots[number]
            if slot is None or slot.damaged or number in orphans or isinstance(slot.role, Primary):
                continue
            if leader_of.get(number) in reachable:
                continue  # the next one was quicker to say so than this tick to end
            key = id(slot.config)
            if key not in times:
                times[key] = self._turn_ms(slot)
            at_ms = times[key]
            if at_ms is not None and slot.holds_state:
                orphans[number] = at_ms

    def _turn_ms(self, slot: Slot) -> int | None:
        """When it is this node's turn to take the slot over; None if it never is (R10)."""
        ctx, members = self._ctx, slot.config.members
        if ctx.me not in members:
            return None
        return ctx.now_ms + RANK_DELAY_MS * len(self._ahead(slot))

    def _ahead(self, slot: Slot) -> list[NodeId]:
        """Who comes before this node, of those that could lead the slot now (R10)."""
        ctx, members = self._ctx, slot.config.members
        before = members[: members.index(ctx.me)]
        return [n for n in before if n in ctx.reachable and n not in ctx.retiring]

    def _is_due(self, number: int) -> bool:
        """Whether this node may try now; if those ahead are at it, its turn is put off (R10)."""
        ctx, slot = self._ctx, self._slots[number]
        if self.orphans[number] > ctx.now_ms:
            return False
        if slot is None or ctx.me not in slot.config.members:
            return True
        ahead = self._ahead(slot)
        took_ms = max((self._took_ms.get(n, -RANK_DELAY_MS) for n in ahead), default=-RANK_DELAY_MS)
        if ctx.now_ms - took_ms >= RANK_DELAY_MS * len(ahead):
            return True
        self.orphans[number] = took_ms + RANK_DELAY_MS * len(ahead)
        return False

    def took_over(self, node: NodeId) -> None:
        """A peer leads slots that were orphans."""
        self._took_ms[node] = self._ctx.now_ms

    def led(self, number: int, ballot: bytes = b"") -> None:
        """A leader is known again, by its word in this ballot (`cluster.records.pack_ballot`).

        Who was frozen or cut off learns so, of all slots at once, that others lead what it led. And
        a leader that was deposed without a word learns it from whoever promised: nobody may ever
        use the slot, and nobody else asks while there is a leader.
        """
        self.orphans.pop(number, None)
        slot = self._slots[number]
        if slot is not None and ballot and unpack_ballot(ballot) < slot.promised:
            leader = self._ctx.leader_of[number]
            self._ctx.out.send[leader].append(Refuse(number, slot.promised))  # R4
        if slot is not None and isinstance(slot.role, Primary) and ballot > slot.role.ballot_bytes:
            slot.round_seen = max(slot.round_seen, unpack_ballot(ballot).round)
            step_down(slot, self._ctx)  # R4: it is a higher promise
        if slot is not None and isinstance(slot.role, Candidate) and slot.role.asking:
            slot.role = None  # nothing was changed anywhere by it
        if (
            slot is None
            or slot.role is None
            or (isinstance(slot.role, Primary) and slot.role.serving)
        ):
            self.candidates.discard(number)

    def tick(self) -> None:
        """Take over orphans, repeat what got nowhere, hand over what others should lead."""
        if self.orphans:
            self.start_candidacies()
        for number in [n for n in self.candidates if self._is_settled(n)]:
            self.candidates.discard(number)
        if self.handing:
            self._call_off_late()
        if self.returning:
            self._hand_over()
        if self.catching_up.under_way:
            self.catching_up.tick()
        self._sweep.tick()

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to do, or to come."""
        waiting = self.orphans or self.candidates or self.returning or self.handing
        return bool(waiting or self.catching_up.under_way)

    def start_candidacies(self) -> None:
        """Ask for orphans whose time has come, as long as there is room; O(orphans)."""
        ctx = self._ctx
        busy = ctx.now_ms - self._wanted_ms < WANTED_MS
        most = CANDIDATES_BESIDE_WANTED_MAX if busy else CANDIDATES_MAX
        room = most - len(self.candidates)
        if room < most // 2 or ctx.me in ctx.retiring:  # a half at a time: one fsync for many
            return
        due: list[int] = []
        for number, at_ms in self.orphans.items():
            if len(due) >= room:
                break
            if at_ms <= ctx.now_ms and self._is_due(number):
                due.append(number)
        for number in due:
            self._begin_candidacy(number)

    def want(self, number: int) -> None:
        """Somebody waits for this slot: if it is this node's turn, it comes before all others."""
        ctx = self._ctx
        if number in self.orphans and ctx.me not in ctx.retiring and self._is_due(number):
            self._wanted_ms = ctx.now_ms
            self._begin_candidacy(number)

    def _begin_candidacy(self, number: int) -> None:
        del self.orphans[number]
        slot = self._slots[number]
        assert slot is not None
        if isinstance(slot.role, Candidate) and slot.role.asking:
            slot.role = None  # asked in vain before; who can answer may be another now
        if slot.role is None and slot.holds_state and not slot.damaged:
            ask(slot, self._ctx)
            self.candidates.add(number)

    def _is_settled(self, number: int) -> bool:
        """Whether the candidacy is over; one that got nowhere becomes an orphan again."""
        ctx, slot = self._ctx, self._slots[number]
        assert slot is not None
        role = slot.role
        if isinstance(role, Primary):
            if not role.serving and ctx.now_ms - role.since_ms > CANDIDATE_TIMEOUT_MS:
                role.since_ms = ctx.now_ms
                for peer in role.peers:
                    tell(slot, role, peer, ctx)
            return role.serving
        if isinstance(role, Candidate):
            if ctx.now_ms - role.since_ms <= CANDIDATE_TIMEOUT_MS:
                return False
            slot.role = None
        if ctx.leader_of.get(number) not in ctx.reachable:
            self.orphans[number] = ctx.now_ms + self._rng.randrange(CANDIDATE_TIMEOUT_MS)
        return True

    def peer_up(self, node: NodeId) -> None:
        """A peer can be reached: bring it to what this node leads, and let it lead its own."""
        for number in self.candidates:
            slot = self._slots[number]
            assert slot is not None
            if (
                isinstance(slot.role, Candidate)
                and slot.role.asking
                and node in slot.config.everyone
            ):
                slot.role.since_ms = 0  # ask again, now that one more can answer
        self.catching_up.begin(node)

    def _in_step(self, slot: Slot) -> None:
        """A peer has caught up with a slot that this node leads."""
        assert isinstance(slot.role, Primary)
        if slot.role.serving:
            self.consider_return(slot)

    def consider_return(self, slot: Slot) -> None:
        """Note the slot if somebody who is preferred over this node could lead it (R10, R14)."""
        if self._has_better(slot):
            self.returning[slot.number] = None

    def _has_better(self, slot: Slot) -> bool:
        """Whether another member should lead a slot that this node leads, by its config.

        Whoever began a change of members takes it to its end, unless it is to stop.
        """
        ctx = self._ctx
        if len(slot.config.sets) > 1 and ctx.me not in ctx.retiring:
            return False
        return self.successor(slot) not in (ctx.me, None)

    def successor(self, slot: Slot) -> NodeId | None:
        """The first member that can be reached and is not about to stop; None if there is none."""
        reachable, retiring = self._ctx.reachable, self._ctx.retiring
        for node in slot.config.members:
            if node in reachable and node not in retiring:
                return node
        return None

    def retire(self) -> None:
        """This node is to stop: hand over what it leads, and tell its peers to hand it nothing."""
        ctx = self._ctx
        ctx.retiring.add(ctx.me)
        for peer in ctx.reachable:
            if peer != ctx.me:
                ctx.out.send[peer].append(Retiring(ctx.me))
        for slot in self._slots:
            if slot is not None and isinstance(slot.role, Primary):
                self.consider_return(slot)

    def on_retiring(self, node: NodeId) -> None:
        """A peer is to stop: what is being handed to it stays here."""
        self._ctx.retiring.add(node)
        for number in list(self.handing):
            slot = self._slots[number]
            if slot and isinstance(slot.role, Primary) and slot.role.handing_to == node:
                del self.handing[number]
                self._call_off(slot, slot.role)
                self.consider_return(slot)

    @property
    def retired(self) -> bool:
        """Whether nothing is left that this node leads and another could."""
        return not (self.returning or self.handing)

    def _call_off_late(self) -> None:
        ctx = self._ctx
        for number, since_ms in list(self.handing.items()):
            slot = self._slots[number]
            assert slot is not None
            if not isinstance(slot.role, Primary) or slot.role.handing_to is None:
                del self.handing[number]
            elif ctx.now_ms - since_ms > HANDOVER_TIMEOUT_MS:
                del self.handing[number]
                self._call_off(slot, slot.role)

    def handed_over(self, number: int) -> None:
        """Another node has taken this slot: the next ones may go."""
        ended = self.handing.pop(number, None) is not None
        if ended and len(self.handing) <= HANDOVER_SLOTS_MAX // 2:
            self._hand_over()

    def _hand_over(self) -> None:
        """Begin with as many slots as there is room for, of those whose successor is in step."""
        ctx = self._ctx
        for number in list(islice(self.returning, RETURNING_LOOKS_MAX)):
            if len(self.handing) >= HANDOVER_SLOTS_MAX:
                return
            slot = self._slots[number]
            assert slot is not None
            primary, successor = slot.role, self.successor(slot)
            del self.returning[number]
            if not isinstance(primary, Primary) or successor in (ctx.me, None):
                continue
            assert successor is not None
            if primary.serving and is_in_step(primary, successor):
                self.begin(slot, primary, successor)
            else:
                self.returning[number] = None  # behind the others

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
        if slot.damaged:  # R18: it must not serve on
            step_down(slot, self._ctx)
            return
        primary.handing_to = None
        held, primary.held = primary.held, []
        self._replay(slot, held)

    def on_hand_over(self, slot: Slot, sender: NodeId, message: HandOver) -> None:
        """The primary asks this node to take over now (R10)."""
        ctx = self._ctx
        if slot.promised > message.ballot:  # R14: who is no member is asked for nothing else
            ctx.out.send[sender].append(Refuse(slot.number, slot.promised))
            return
        if ctx.me in ctx.retiring or slot.damaged:
            return
        asking = isinstance(slot.role, Candidate) and slot.role.asking
        free = slot.role is None or asking
        if free and slot.holds_state and slot.established == message.ballot:
            ballot = prepare(slot, ctx).ballot
            self.candidates.add(slot.number)
            if (
                sender not in slot.config.members
            ):  # R14: its promise counts for nothing, but stops it
                ctx.out.after_fsync[sender].append(Prepare(slot.number, ballot))

    def renew(self, slot: Slot) -> None:
        """Take a new ballot for a slot that this node leads (R5); a damaged one is given away."""
        if slot.damaged:
            return
        step_down(slot, self._ctx)
        prepare(slot, self._ctx)
        self.candidates.add(slot.number)
