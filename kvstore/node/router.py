"""Any node answers any key: operations find the slot's primary, here or elsewhere.

A `Request` becomes a `Gathering`, which collects one result for each operation and answers when it
has all. Each operation goes into the core if this node leads its slot, to the leader in one
forwarded request per node and tick if it is known, or waits until it is. Where a leader is lost
midway the operation is sent again as a retry with its own id (rules 4 and 5), until the caller's
time is over; then it is answered "unavailable" if it was never given to a primary, and "outcome
unknown" if it was.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import count
from typing import TYPE_CHECKING, Protocol

from cluster.limits import REQUEST_HOPS_MAX, REQUEST_OPERATIONS_MAX
from cluster.operations import Atomic, Code, Failed, Get, Scan
from cluster.slot import Call
from cluster.slots import slot_of
from kvstore.node.admission import payload_bytes
from kvstore.node.gathering import Gathering
from kvstore.node.parking import NO_PRIMARY, Parking
from kvstore.wire.protocol import Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cluster.ballot import NodeId
    from cluster.operations import Operation, Result
    from cluster.outputs import Moved
    from cluster.slot_table import SlotTable
    from kvstore.node.admission import Admission
    from kvstore.node.gathering import Ticket, Waiter

_TOO_LARGE = Failed(Code.TOO_LARGE, "the operation does not fit into one frame to its primary")


class PeerLinks(Protocol):
    """The part of the peers that the router uses."""

    def forward(self, node: NodeId, request: Request) -> bool:
        """Send a request to a node; False if there is no connection to it.

        Raises:
            ValueError: it does not fit into one frame.
        """


class Router:
    """Requests in, responses out.

    Args:
        me: This node.
        table: Its slots.
        slot_count: Slots that keys are hashed to; the system slot comes behind them.
        links: Connections to the other nodes.
        wake: Schedules the end of the tick (`kvstore.node.loop`).
        now_ms: Monotonic time in milliseconds.
        admission: Counts what this carries out.
    """

    def __init__(
        self,
        me: NodeId,
        table: SlotTable,
        slot_count: int,
        links: PeerLinks,
        wake: Callable[[], None],
        now_ms: Callable[[], int],
        admission: Admission,
    ) -> None:
        self._me = me
        self._table = table
        self._slot_count = slot_count
        self._links = links
        self._wake = wake
        self._now_ms = now_ms
        self._admission = admission
        self.detour: Callable[[int], NodeId | None] = lambda _: None
        """Who may reach a leader that lives, but out of this node's reach."""
        self._numbers = count(1)
        self._gatherings: dict[Gathering, None] = {}
        self._parked = Parking()
        self._leaving: defaultdict[tuple[NodeId, bool, int], list[Ticket]] = defaultdict(list)
        self._forwarded: dict[int, tuple[NodeId, list[Ticket]]] = {}
        self.reads_total = 0
        self.writes_total = 0

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""
        return len(self._gatherings)

    def submit(self, request: Request, reply: Callable[[Response], None], waiter: Waiter) -> None:
        """Carry out a validated request that `Admission` lets in, unless its waiter goes away.

        ``reply`` is called once, maybe before this returns.
        """
        slot_count = self._slot_count
        if request.system:
            slots = [slot_count] * len(request.ops)
        else:
            slots = [_slot_for(op, slot_count) for op in request.ops]
        deadline_ms = self._now_ms() + request.timeout_ms
        size_bytes = payload_bytes(request.ops)
        gathering = Gathering(request, slots, deadline_ms, reply, waiter, size_bytes)
        if not slots:
            reply(Response(request.id, [], {}))
            return
        self._gatherings[gathering] = None
        self._admission.begin(len(slots), size_bytes)
        if type(request.ops[0]) is Get or type(request.ops[0]) is Scan:
            self.reads_total += len(slots)
        else:
            self.writes_total += len(slots)
        for index in range(len(slots)):
            self._route((gathering, index))

    def _route(self, ticket: Ticket) -> None:
        gathering, index = ticket
        request, number = gathering.request, gathering.slots[index]
        op = request.ops[index]
        if type(op) is Get and op.eventual and self._read_here(ticket, number, op):
            return
        retry = request.retry or gathering.is_started(index)
        offset = request.offsets[index] if request.offsets else index
        seen = request.seen[index] if request.seen else b""
        call = Call(op, request.client, request.number + offset, seen, retry, ticket)
        if self._table.submit(number, call):
            return
        leader = self._table.leader_of(number) or self._table.want(number)
        if leader in (None, self._me) and gathering.has_waited:
            leader = self.detour(number)  # R10: whom this node cannot reach, others may
        if leader is None or leader == self._me:
            self._park(ticket)
            return
        if request.hops >= REQUEST_HOPS_MAX:
            self.answer(
                ticket, Failed(Code.UNAVAILABLE, f"slot {number} is changing its primary", 50)
            )
            return
        gathering.leads[number] = leader
        self._leaving[leader, retry, gathering.deadline_ms].append(ticket)

    def _read_here(self, ticket: Ticket, number: int, op: Get) -> bool:
        answer = self._table.read_replica(number, op)
        if answer is None:
            return False
        self.answer(ticket, answer)
        return True

    def end_tick(self) -> None:
        """Send what leaves in this tick: one request per node (and kind)."""
        if not self._leaving:
            return
        leaving, self._leaving = self._leaving, defaultdict(list)
        now_ms = self._now_ms()
        batches: defaultdict[tuple[NodeId, bool, int, int, bool], list[Ticket]] = defaultdict(list)
        for (leader, retry, deadline_ms), tickets in leaving.items():
            for ticket in tickets:
                request = ticket[0].request
                kind = (leader, retry, deadline_ms, request.client, request.system)
                batches[kind].append(ticket)
        for (leader, retry, deadline_ms, client, _), tickets in batches.items():
            self._forward(leader, tickets, client, retry=retry, left_ms=deadline_ms - now_ms)

    def _forward(
        self, leader: NodeId, tickets: list[Ticket], client: int, *, retry: bool, left_ms: int
    ) -> None:
        if len(tickets) > REQUEST_OPERATIONS_MAX:  # the other side would take it for no frame
            for at in range(0, len(tickets), REQUEST_OPERATIONS_MAX):
                part = tickets[at : at + REQUEST_OPERATIONS_MAX]
                self._forward(leader, part, client, retry=retry, left_ms=left_ms)
            return
        frame_id = next(self._numbers)
        ops: list[Operation] = []
        seen: list[bytes] = []
        numbers: list[int] = []
        hops = 0
        for gathering, index in tickets:
            request = gathering.request
            ops.append(request.ops[index])
            seen.append(request.seen[index] if request.seen else b"")
            numbers.append(request.number + (request.offsets[index] if request.offsets else index))
            hops = max(hops, request.hops)
        number = min(numbers)
        offsets = [n - number for n in numbers]
        request = Request(
            frame_id,
            client,
            number,
            retry,
            max(left_ms, 1),
            hops + 1,
            ops,
            seen,
            offsets,
            tickets[0][0].request.system,
        )
        try:
            sent = self._links.forward(leader, request)
        except ValueError:
            middle = len(tickets) // 2
            if not middle:
                self.answer(tickets[0], _TOO_LARGE)
                return
            for half in (tickets[:middle], tickets[middle:]):
                self._forward(leader, half, client, retry=retry, left_ms=left_ms)
            return
        if sent:
            self._forwarded[frame_id] = (leader, tickets)
            return
        for ticket in tickets:
            self._park(ticket)

    def on_response(self, response: Response) -> None:
        """A forwarded request came back."""
        known = self._forwarded.pop(response.id, None)
        if known is None:
            return
        _, tickets = known
        for ticket, result in zip(tickets, response.results, strict=True):
            ticket[0].leads.update(response.leads)
            if isinstance(result, Failed) and result.code is Code.UNAVAILABLE:
                if ticket[0].results[ticket[1]] is None:
                    self._park(ticket)  # R4: refused before a sequence was given
            else:
                self.answer(ticket, result)

    def peer_lost(self, node: NodeId) -> None:
        """A node is out of reach: what was forwarded to it is sent again, as a retry (R5).

        At once, and with it all that is parked: its slots are to be taken over now (R10).
        """
        lost = [key for key, (leader, _) in self._forwarded.items() if leader == node]
        for key in lost:
            for ticket in self._forwarded.pop(key)[1]:
                self._started(ticket)
                self._park(ticket)
        self._route_parked()

    def leads_changed(self, slots: list[int]) -> None:
        """Leaders became known: what was parked for their slots goes on."""
        if not self._parked.requests:
            return
        for number in slots:
            for ticket in self._parked.take(number):
                self._route_again(ticket)
        self._wake()

    def on_moved(self, moved: Moved) -> None:
        """This node lost the slot of an operation that it had taken: on to the next one (R4)."""
        gathering, index = moved.ticket
        if gathering.results[index] is not None:
            return
        if moved.started:
            self._started(moved.ticket)
        self._route(moved.ticket)
        self._wake()

    @staticmethod
    def _started(ticket: Ticket) -> None:
        """From now on it is a retry (R5)."""
        gathering, index = ticket
        if gathering.started is None:
            gathering.started = set()
        gathering.started.add(index)

    def _park(self, ticket: Ticket) -> None:
        """Wait for a leader, or for the next tick."""
        if self._parked.is_full_for(ticket, self._admission.limit):
            self.answer(ticket, NO_PRIMARY)
        else:
            self._parked.add(ticket)

    def _route_parked(self) -> None:
        """Slot by slot: where one cannot go on, none of the others can."""
        for number in self._parked.slots():
            tickets = self._parked.take(number)
            for place, ticket in enumerate(tickets):
                self._route_again(ticket)
                if self._parked.waits(number):
                    for other in tickets[place + 1 :]:
                        self._parked.add(other)
                    break
            self._wake()

    def _route_again(self, ticket: Ticket) -> None:
        if ticket[0].results[ticket[1]] is None:
            self._route(ticket)

    def answer(self, ticket: Ticket, result: Result) -> None:
        """It is done, or refused, which settles nothing if it was started before (R5)."""
        gathering, index = ticket
        if (
            gathering.started is not None
            and isinstance(result, Failed)
            and result.code not in (Code.UNKNOWN, Code.WRONG_TYPE)
            and gathering.results[index] is None
            and gathering.is_started(index)
            and not isinstance(gathering.request.ops[index], Get | Scan)
        ):
            if result.code is Code.OVERLOADED:
                self._park(ticket)
                return
            result = Failed(Code.UNKNOWN, f"only a later attempt was refused: {result.detail}")
        if gathering.put(index, result):
            self._finish(gathering)

    def _finish(self, gathering: Gathering) -> None:
        self._gatherings.pop(gathering, None)
        results = [result for result in gathering.results if result is not None]
        assert len(results) == len(gathering.slots)
        request = gathering.request
        waited_ms = self._now_ms() - gathering.deadline_ms + request.timeout_ms
        detour = gathering.has_waited or gathering.started is not None
        served = not detour and not isinstance(results[-1], Failed)
        self._admission.end(len(results), gathering.size_bytes, waited_ms, served=served)
        gathering.let_go()
        gathering.reply(Response(request.id, results, gathering.leads))

    def tick(self) -> None:
        """Answer those whose time is over or whose caller is gone; the parked go on their way."""
        now_ms = self._now_ms()
        over = [g for g in self._gatherings if g.deadline_ms <= now_ms or not g.waiter.is_open]
        if over:
            self._give_up(dict.fromkeys(over))
        self._route_parked()

    def stop(self) -> None:
        """Answer everything as if its time were over: this node serves nothing any more."""
        self._give_up(dict.fromkeys(self._gatherings))

    def _stay(self, over: Collection[Gathering]) -> set[Ticket]:
        """What is over leaves in this tick no more; returns it."""
        found: set[Ticket] = set()
        for key, tickets in list(self._leaving.items()):
            taken = {ticket for ticket in tickets if ticket[0] in over}
            if taken:
                found |= taken
                self._leaving[key] = [ticket for ticket in tickets if ticket not in taken]
        return found

    def _give_up(self, over: Collection[Gathering]) -> None:
        """Answer what is missing: "unavailable" if no primary was given it, else "unknown" (R4).

        What waited for a primary, here or held by one that is being established, or was about to
        leave for one, is carried out no more.
        """
        slots = {
            number
            for gathering in over
            for number, result in zip(gathering.slots, gathering.results, strict=True)
            if result is None
        }
        waiting: set[Ticket] = set(self._table.withdraw(slots, lambda ticket: ticket[0] in over))
        waiting.update(self._parked.withdraw(lambda ticket: ticket[0] in over))
        waiting |= self._stay(over)
        for gathering in over:
            for index, result in enumerate(gathering.results):
                if result is None:
                    op, number = gathering.request.ops[index], gathering.slots[index]
                    never = (gathering, index) in waiting and not gathering.is_started(index)
                    gathering.put(index, _timed_out(op, number, never_started=never))
            self._finish(gathering)


def _slot_for(op: Operation, slot_count: int) -> int:
    if isinstance(op, Scan):
        return op.slot
    if isinstance(op, Atomic):
        return slot_of(op.writes[0].key, slot_count)
    return slot_of(op.key, slot_count)


def _timed_out(op: Operation, number: int, *, never_started: bool) -> Failed:
    if isinstance(op, Get | Scan):
        return Failed(
            Code.UNAVAILABLE, f"slot {number} has no reachable primary with a quorum", 100
        )
    if never_started:
        return Failed(
            Code.UNAVAILABLE,
            f"slot {number} has no reachable primary with a quorum; nothing was written",
            100,
        )
    return Failed(
        Code.UNKNOWN,
        f"slot {number} was losing its primary or quorum; the write may or may not take effect",
    )
