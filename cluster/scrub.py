"""The background comparison of content, and what follows from a difference (rule 18).

::

    primary: digest of a stretch at (b, s) ── Compare(b, s) ──> members: digest at (b, s), or void
             judge <── Compared ─────────────────────────────┘
      a member is damaged: Condemn ──> it is brought a whole copy (rule 11)
      this node is damaged: handed over to one that is right, then the same

*One moment, one position, without stopping anything.* A stretch is small enough to be read in one
go. The primary reads it and sends the question in the same moment, behind every Accept up to its
sequence and before the next one; a member reads its stretch when the question arrives. In a healthy
link that is exactly the position that was named. If anything was lost, the member stands elsewhere,
says so, and that answer is void: a busy slot is compared as fast as an idle one, and nothing that
moves is ever taken for damage.

*A damaged replica* (`Slot.damaged`, durable) takes and acknowledges nothing, does not stand for
primary, and cannot be best, until the copy has replaced its content, which stays until then. It
goes on to promise, with the position where it stopped: a promise speaks of ballots
(`docs/decisions/0008-damaged-copies.md`). Nobody is condemned but by a primary that compared and is
right itself, and a primary gives itself up only to a member that is right and has all that it has:
one undamaged copy is left whatever happens.

The pace is bytes read here a second; a stretch costs at least `STRETCH_COST_BYTES_MIN`, so that
thousands of small slots are as cheap as a few large ones. Small ones go in bursts: one frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cluster.ballot import NO_BALLOT
from cluster.digest import STRETCH_BYTES, Examined, examine, judge, measure
from cluster.messages import Compare, Compared, Condemn
from cluster.operations import Code, Failed, Scan, first_key
from cluster.outputs import Moved
from cluster.replica import send_gap
from cluster.slot import Primary
from cluster.store import Damage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.ballot import Ballot, NodeId
    from cluster.digest import Verdict
    from cluster.leadership import Leadership
    from cluster.slot import Call, Context, Slot

BYTES_PER_S_DEFAULT = 1_048_576
"""Three and a half gigabytes an hour of what a node leads, for two hundredths of a core."""

STRETCH_COST_BYTES_MIN = STRETCH_BYTES
"""What a stretch counts at least: in an idle cluster of small slots, 16 stretches a second."""

CHECKS_MAX = 64
"""Stretches under comparison at once."""

CHECK_TIMEOUT_MS = 2_000
"""A comparison is judged by who has answered after this."""

RECHECK_MS = 1_000
"""A finding is looked at again after this, until it is mended."""

BURST_MS = 500
"""What the pace allows in this long is spent together: a frame and a turn of the loop for each
small stretch took more than to read it. A late tick catches up no more."""

FINDINGS_MAX = 1_024
"""Open findings that are remembered; a lost disk has more, and is one finding to a person."""

SLOTS_WALKED_MAX = 256
"""Slots passed over in one tick while looking for one that is led here."""

ROWS_ASKED = 256
"""Rows that the others are asked for where this node cannot read its own."""

NOBODY: NodeId = 0
"""As a finding's node: several differ, and nobody can tell who is right."""


class Finding(NamedTuple):
    """Damage: where, what is known, and what is being done about it."""

    slot: int
    node: NodeId
    begin: bytes
    detail: str


class Check:
    """One stretch under comparison."""

    __slots__ = (
        "answers",
        "begin",
        "end",
        "primary",
        "rows",
        "sequence",
        "since_ms",
        "slot",
        "waiting",
    )

    def __init__(self, slot: Slot, primary: Primary, question: Compare, now_ms: int) -> None:
        self.slot = slot
        self.primary = primary
        self.sequence = slot.sequence
        self.begin, self.end, self.rows = question.begin, question.end, question.rows
        self.waiting: set[NodeId] = set()
        self.since_ms = now_ms
        self.answers: dict[NodeId, Examined] = {}


class Scrub:
    """Compares what this node leads with its members, for ever, at a pace."""

    def __init__(self, slots: Sequence[Slot | None], ctx: Context, leadership: Leadership) -> None:
        self.bytes_per_s = BYTES_PER_S_DEFAULT
        """The pace; 0 compares only where damage was met."""
        self.bytes_total = self.stretches_total = self.passes_total = self.found_total = 0
        self.findings: dict[tuple[int, NodeId], Finding] = {}
        """Open ones, by slot and damaged node."""
        self.lost: dict[int, Finding] = {}
        """Slots with a stretch of which no member has an undamaged copy."""
        self._slots = slots
        self._ctx = ctx
        self._leadership = leadership
        self._checks: dict[tuple[int, bytes], Check] = {}
        self._at, self._begin = 0, b""
        self._allowance = 0.0
        self._is_burst = False  # the allowance is being saved, not spent
        self._ticked_ms = self._rechecked_ms = 0
        self._number = 0
        self._condemned: dict[int, tuple[Ballot, int]] = {}
        """Slot -> the newest condemnation that was carried out here."""

    def tick(self) -> None:
        """As many stretches as the pace allows; judge what waits too long; look after findings."""
        now_ms = self._ctx.now_ms
        elapsed_ms = min(now_ms - self._ticked_ms, BURST_MS)
        self._ticked_ms = now_ms
        for check in [c for c in self._checks.values() if now_ms - c.since_ms > CHECK_TIMEOUT_MS]:
            self._conclude(check)
        if self.findings and now_ms - self._rechecked_ms >= RECHECK_MS:
            self._rechecked_ms = now_ms
            for finding in list(self.findings.values()):
                self._look_after(finding)
        pace, burst_bytes = self.bytes_per_s / 1_000, self.bytes_per_s * BURST_MS / 1_000
        self._allowance = min(self._allowance + pace * elapsed_ms, 2 * burst_bytes)
        self._is_burst |= self._allowance > burst_bytes - STRETCH_COST_BYTES_MIN / 2
        if self._is_burst:
            self._spend(self.bytes_total + max(pace * elapsed_ms, STRETCH_BYTES))

    def _spend(self, until_bytes_total: float) -> None:
        """The allowance, as far as one tick should go: a full stretch, or several small ones."""
        for _ in range(min(SLOTS_WALKED_MAX, len(self._slots))):
            if self._allowance <= 0:
                self._is_burst = False
            enough = self.bytes_total >= until_bytes_total or len(self._checks) >= CHECKS_MAX
            if enough or not self._is_burst:
                return
            self._next()

    def _next(self) -> None:
        """The next stretch of the slot at hand, or on to the next slot."""
        slot = self._slots[self._at]
        end = b""
        if slot is not None and (primary := _serving(slot)) is not None:
            self._allowance -= STRETCH_COST_BYTES_MIN
            end = self.compare(slot, primary, self._begin)
        self._begin = end
        if not end:
            self._at += 1
            if self._at == len(self._slots):
                self._at = 0
                self.passes_total += 1

    def compare(self, slot: Slot, primary: Primary, begin: bytes) -> bytes:
        """Compare the stretch that begins here; where the next one does (empty: none is left)."""
        ctx = self._ctx
        if (slot.number, begin) in self._checks:
            return b""
        try:
            rows, end, size = measure(slot, begin, ctx)
        except Damage as damage:
            self.met(slot, begin, str(damage))
            return b""
        self.stretches_total += 1
        self.bytes_total += size
        self._allowance -= max(size - STRETCH_COST_BYTES_MIN, 0)
        self._start(slot, primary, begin, end, rows, examine(slot, begin, end, rows, ctx))
        return end

    def _start(
        self, slot: Slot, primary: Primary, begin: bytes, end: bytes, rows: int, own: Examined
    ) -> None:
        ctx, config = self._ctx, slot.config
        peers = {n for n in config.members if n != ctx.me and n in ctx.reachable}
        question = Compare(slot.number, primary.ballot, slot.sequence, begin, end, rows)
        check = self._checks[slot.number, begin] = Check(slot, primary, question, ctx.now_ms)
        check.answers[ctx.me] = own
        check.waiting = set(peers)
        for peer in peers:
            ctx.out.send[peer].append(question)
        if not peers:
            self._conclude(check)

    def met(self, slot: Slot, begin: bytes, detail: str) -> bool:
        """This node came upon damage of its own; whether somebody may have a good copy."""
        ctx = self._ctx
        primary = _serving(slot)
        if slot.number in self.lost:
            return False
        if primary is not None:
            if (slot.number, begin) not in self._checks:
                self._start(slot, primary, begin, b"", ROWS_ASKED, Examined(b"", detail))
        elif slot.role is None and not slot.damaged and slot.established.node in ctx.reachable:
            report = Compared(slot.number, slot.established, slot.sequence, begin, b"", detail)
            ctx.out.send[slot.established.node].append(report)
        return slot.number not in self.lost

    def answer(self, slot: Slot, call: Call, damage: Damage) -> None:
        """A request met damage: it waits for a good copy, or is told that there is none."""
        op, out = call.operation, self._ctx.out
        begin = damage.key or (op.prefix if isinstance(op, Scan) else first_key(op))
        if self.met(slot, begin, str(damage)):
            out.moved.append(Moved(call.ticket, started=call.retry))
        else:
            detail = f"{damage}, and there is no undamaged copy of it: write or delete it anew"
            out.answers.append((call.ticket, Failed(Code.CORRUPT, detail)))

    @property
    def damaged(self) -> int:
        """Copies here that wait for a whole one from the others."""
        return len(self._ctx.damaged)

    @property
    def repaired_total(self) -> int:
        """Copies here that were replaced because they were damaged."""
        return self._ctx.repaired_total

    # -- messages ----------------------------------------------------------------------------

    def receive(self, slot: Slot, sender: NodeId, message: Compare | Compared | Condemn) -> None:
        """From the primary, or to it."""
        match message:
            case Compare():
                self._on_compare(slot, sender, message)
            case Compared():
                self._on_compared(slot, sender, message)
            case Condemn():
                self._on_condemn(slot, sender, message)

    def _on_compare(self, slot: Slot, sender: NodeId, ask: Compare) -> None:
        """Digest the same stretch, if this replica stands where the primary does."""
        mine = Examined(b"", "")
        stands = slot.established == ask.ballot and slot.sequence == ask.sequence
        if slot.damaged and slot.promised <= ask.ballot:
            send_gap(slot, sender, ask, self._ctx)  # the primary has not heard of it, or forgot
        elif slot.holds_state and stands:
            mine = examine(slot, ask.begin, ask.end, ask.rows, self._ctx)
        self._ctx.out.send[sender].append(
            Compared(slot.number, ask.ballot, ask.sequence, ask.begin, mine.digest, mine.damage)
        )

    def _on_compared(self, slot: Slot, sender: NodeId, told: Compared) -> None:
        """Collect; a member that came upon damage by itself is compared at once."""
        check = self._checks.get((slot.number, told.begin))
        primary = _serving(slot)
        if primary is None or primary.ballot != told.ballot:
            return
        if check is None:
            if told.damage:
                self.compare(slot, primary, told.begin)
            return
        if check.primary is not primary or check.sequence != told.sequence:
            return
        check.waiting.discard(sender)
        if told.digest or told.damage:
            check.answers[sender] = Examined(told.digest, told.damage)
        if not check.waiting:
            self._conclude(check)

    def _on_condemn(self, slot: Slot, sender: NodeId, message: Condemn) -> None:
        """The primary says that this copy is damaged: no more acks, and a whole copy, please."""
        ballot = message.ballot
        in_ballot = slot.holds_state and slot.established == ballot == slot.promised
        newest = (ballot, message.number)
        known = self._condemned.get(slot.number, (NO_BALLOT, 0)) >= newest
        if in_ballot and slot.role is None and sender == ballot.node and not known:
            stretch = (message.begin, message.end, message.rows)
            if message.failed and not examine(slot, *stretch, self._ctx).damage:
                return  # written anew since it was compared
            self._condemned[slot.number] = newest
            self._give_up(slot)
            send_gap(slot, sender, message, self._ctx)

    def _give_up(self, slot: Slot) -> None:
        """Durably: this copy does not hold what its position says (R18)."""
        slot.damaged = True
        self._ctx.damaged.add(slot.number)
        slot.save(self._ctx)

    # -- verdicts ----------------------------------------------------------------------------

    def _conclude(self, check: Check) -> None:
        del self._checks[check.slot.number, check.begin]
        slot, me = check.slot, self._ctx.me
        if slot.role is not check.primary or _serving(slot) is None:
            return
        verdict = judge(check.answers)
        complete = len(check.answers) == len(slot.config.members)
        self._close(check, verdict)
        if verdict.unclear and not verdict.right:
            self._report(
                Finding(
                    slot.number,
                    NOBODY,
                    check.begin,
                    "copies differ and none fails its checksum: nobody can tell which is right",
                )
            )
        for node in verdict.damaged:
            detail = check.answers[node].damage or "it differs from the other copies"
            self._report(Finding(slot.number, node, check.begin, detail))
        if not verdict.right:
            if me in verdict.damaged and complete and not verdict.unclear:
                self.lost[slot.number] = Finding(
                    slot.number, me, check.begin, check.answers[me].damage
                )
        elif me in verdict.right:
            for node in verdict.damaged:
                check.primary.durable.pop(node, None)
                self._number += 1
                condemn = Condemn(
                    slot.number,
                    check.primary.ballot,
                    self._number,
                    bool(check.answers[node].damage),
                    check.begin,
                    check.end,
                    check.rows,
                )
                self._ctx.out.after_fsync[node].append(condemn)
        else:
            self._hand_to(slot, check.primary, verdict)

    def _hand_to(self, slot: Slot, primary: Primary, verdict: Verdict) -> None:
        """This primary's copy is the damaged one: somebody who is right takes over (R10, R18)."""
        members = slot.config.members
        heir = next((n for n in members if n in verdict.right & self._ctx.reachable), None)
        if heir is None:
            return
        self._leadership.begin(slot, primary, heir)
        if primary.durable.get(heir, -1) == slot.sequence:  # else some operation is on no good copy
            self._give_up(slot)

    def _report(self, finding: Finding) -> None:
        place = (finding.slot, finding.node)
        if place not in self.findings and len(self.findings) < FINDINGS_MAX:
            self.findings[place] = finding
            self.found_total += 1
            self._ctx.out.alarms.append(finding)

    def _close(self, check: Check, verdict: Verdict) -> None:
        """Those who are right where they were not are mended."""
        number = check.slot.number
        lost = self.lost.get(number)
        if lost is not None and verdict.right and _covers(check, lost):
            del self.lost[number]
        agreed = verdict.right if verdict.damaged else verdict.right | {NOBODY}
        for node in agreed if verdict.right else ():
            finding = self.findings.get((number, node))
            if finding is not None and _covers(check, finding):
                del self.findings[number, node]

    def _look_after(self, finding: Finding) -> None:
        """Compare again where damage was found, once there is something new to see."""
        slot, ctx = self._slots[finding.slot], self._ctx
        primary = None if slot is None else _serving(slot)
        if slot is not None and primary is not None:
            if finding.node in (NOBODY, ctx.me) or finding.node in primary.durable:
                self.compare(slot, primary, finding.begin)
        elif finding.slot not in ctx.damaged:  # mended, or for the new primary to find
            del self.findings[finding.slot, finding.node]
            self.lost.pop(finding.slot, None)


def _serving(slot: Slot) -> Primary | None:
    """The primary here, if it serves and is not about to leave."""
    role = slot.role
    if isinstance(role, Primary) and role.serving and role.handing_to is None:
        return role
    return None


def _covers(check: Check, finding: Finding) -> bool:
    return check.begin <= finding.begin and (not check.end or finding.begin < check.end)
