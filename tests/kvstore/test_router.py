"""The router alone: a table and links that do as the test says, and a clock of its own.

What is at stake is rule 5 and the table "what a client is told" of docs/protocol.md: an operation
that was refused everywhere is refused, one that may have been given a sequence never is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from cluster.limits import REQUEST_HOPS_MAX, REQUEST_OPERATIONS_MAX
from cluster.operations import Code, Done, Failed, Get, Incr, Operation, Put, Result
from cluster.outputs import Moved
from kvstore.node.admission import Admission
from kvstore.node.router import Router
from kvstore.wire.frames import decode_frame, encode_frame
from kvstore.wire.protocol import Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cluster.outputs import Ticket
    from cluster.slot import Call

ME, OTHER, THIRD = 1, 2, 3
SLOTS = 16
RAW = msgspec.Raw(msgspec.msgpack.encode("value"))
DONE = Done(bytes(20))
FULL = Failed(Code.OVERLOADED, "full", 50)
REFUSED = Failed(Code.UNAVAILABLE, "no primary")


class Table:
    """A slot table whose leaders are the test's word."""

    def __init__(self) -> None:
        self.leader: int | None = None
        self.calls: list[Call] = []
        """Taken by this node, as the primary or held by it."""
        self.holding = False
        self.wanted = 0
        self.held: list[Call] = []

    def submit(self, number: int, call: Call) -> bool:
        if self.leader == ME:
            (self.held if self.holding else self.calls).append(call)
        return self.leader == ME

    def withdraw(self, numbers: Iterable[int], is_over: Callable[[Ticket], bool]) -> list[Ticket]:
        taken = [call.ticket for call in self.held if is_over(call.ticket)]
        self.held = [call for call in self.held if not is_over(call.ticket)]
        return taken

    def leader_of(self, number: int) -> int | None:
        return self.leader

    def want(self, number: int) -> int | None:
        self.wanted += 1
        return None


class Caller:
    """Where requests come from."""

    def __init__(self) -> None:
        self.is_open = True
        self.responses: list[Response] = []

    @property
    def results(self) -> list[Result]:
        (response,) = self.responses
        return response.results


class Site:
    """A router with everything around it."""

    def __init__(self) -> None:
        self.ms = 1_000
        self.table = Table()
        self.sent: list[tuple[int, Request]] = []
        self.admission = Admission(lambda: self.ms)
        self.router = Router(
            ME,
            self.table,  # type: ignore[arg-type]
            SLOTS,
            self,
            lambda: None,
            lambda: self.ms,
            self.admission,
        )

    def forward(self, node: int, request: Request) -> bool:
        self.sent.append((node, decode(request)))
        return True

    def ask(
        self, *ops: Operation, caller: Caller | None = None, hops: int = 0, timeout_ms: int = 1_000
    ) -> Caller:
        caller = caller or Caller()
        request = Request(7, 5, 100, False, timeout_ms, hops, list(ops), [])
        self.router.submit(request, caller.responses.append, caller)
        self.router.end_tick()
        return caller

    def pass_time(self, ms: int) -> None:
        self.ms += ms
        self.router.tick()
        self.router.end_tick()

    def respond(self, result: Result) -> None:
        """To the newest forwarded request."""
        _, request = self.sent[-1]
        self.router.on_response(Response(request.id, [result] * len(request.ops), {}))

    def lead(self, leader: int | None) -> None:
        self.table.leader = leader
        self.router.leads_changed(list(range(SLOTS)))
        self.router.end_tick()


def decode(request: Request) -> Request:
    """What arrives at the other side; raises if that takes it for no frame."""
    frame = decode_frame(encode_frame(request)[4:])
    assert isinstance(frame, Request)
    return frame


@pytest.fixture
def site() -> Site:
    return Site()


def test_one_tick_forwards_no_more_than_the_other_side_takes(site: Site) -> None:
    site.table.leader = OTHER
    keys = [b"k%d" % number for number in range(REQUEST_OPERATIONS_MAX * 2 // 3)]
    callers = [Caller(), Caller()]
    for caller in callers:
        request = Request(7, 5, 100, False, 1_000, 0, [Put(key, RAW) for key in keys], [])
        site.router.submit(request, caller.responses.append, caller)
    site.router.end_tick()
    assert sum(len(request.ops) for _, request in site.sent) == 2 * len(keys)
    for _, request in site.sent:
        site.router.on_response(Response(request.id, [DONE] * len(request.ops), {}))
    assert [len(caller.results) for caller in callers] == [len(keys)] * 2


def test_a_refusal_of_a_later_attempt_is_no_refusal(site: Site) -> None:
    site.table.leader = OTHER
    caller = site.ask(Incr(b"n", 1))
    site.table.leader = THIRD
    site.router.peer_lost(OTHER)
    site.pass_time(50)
    node, retry = site.sent[-1]
    assert (node, retry.retry) == (THIRD, True)
    site.respond(FULL)
    assert caller.responses == [], "the first attempt may have been carried out"
    site.pass_time(50)
    assert len(site.sent) == 3, "so it is asked again, within the caller's time"
    site.respond(Failed(Code.TOO_LARGE, "too large"))
    (result,) = caller.results
    assert isinstance(result, Failed)
    assert result.code is Code.UNKNOWN


def test_a_refusal_of_a_first_attempt_is_passed_on(site: Site) -> None:
    site.table.leader = OTHER
    caller = site.ask(Incr(b"n", 1))
    site.respond(FULL)
    assert caller.results == [FULL]


def test_no_way_on_is_unknown_for_what_was_started_here(site: Site) -> None:
    site.table.leader = ME
    caller = site.ask(Incr(b"n", 1), hops=REQUEST_HOPS_MAX)
    (call,) = site.table.calls
    site.table.leader = OTHER
    site.router.on_moved(Moved(call.ticket, started=True))
    site.pass_time(50)
    (result,) = caller.results
    assert isinstance(result, Failed)
    assert result.code is Code.UNKNOWN


def test_no_way_on_is_a_refusal_for_what_never_was(site: Site) -> None:
    site.table.leader = OTHER
    (result,) = site.ask(Incr(b"n", 1), hops=REQUEST_HOPS_MAX).results
    assert isinstance(result, Failed)
    assert result.code is Code.UNAVAILABLE


def test_forwarded_and_refused_until_the_end_is_a_refusal(site: Site) -> None:
    site.table.leader = OTHER
    caller = site.ask(Incr(b"n", 1))
    for _ in range(30):
        if not caller.responses:
            site.respond(REFUSED)
            site.pass_time(50)
    (result,) = caller.results
    assert isinstance(result, Failed)
    assert result.code is Code.UNAVAILABLE


def test_forwarded_and_not_answered_is_unknown(site: Site) -> None:
    site.table.leader = OTHER
    caller = site.ask(Incr(b"n", 1))
    site.pass_time(1_000)
    (result,) = caller.results
    assert isinstance(result, Failed)
    assert result.code is Code.UNKNOWN


def test_what_is_held_when_its_time_is_over_is_refused_and_never_carried_out(site: Site) -> None:
    site.table.leader, site.table.holding = ME, True
    caller = site.ask(Incr(b"n", 1))
    other = site.ask(Incr(b"n", 1), timeout_ms=5_000)
    site.pass_time(1_000)
    (result,) = caller.results
    assert isinstance(result, Failed)
    assert result.code is Code.UNAVAILABLE
    assert "nothing was written" in result.detail
    assert len(site.table.held) == 1
    assert other.responses == []


@pytest.mark.parametrize("leader", [ME, OTHER])
def test_what_waits_for_a_primary_is_dropped_when_its_time_is_over(site: Site, leader: int) -> None:
    caller = site.ask(Incr(b"n", 1))
    site.pass_time(1_000)
    assert len(caller.responses) == 1
    site.lead(leader)
    site.pass_time(50)
    assert (site.sent, site.table.calls) == ([], [])


@pytest.mark.parametrize("leader", [ME, OTHER])
def test_what_waits_for_a_primary_is_dropped_when_its_caller_is_gone(
    site: Site, leader: int
) -> None:
    caller = site.ask(Incr(b"n", 1))
    stays = site.ask(Incr(b"m", 1))
    caller.is_open = False
    site.pass_time(50)
    site.lead(leader)
    site.pass_time(50)
    reached = [op for _, request in site.sent for op in request.ops]
    reached += [call.operation for call in site.table.calls]
    assert reached == [Incr(b"m", 1)]
    assert stays.responses == []


def test_what_is_about_to_leave_when_its_time_is_over_stays_and_is_refused(site: Site) -> None:
    site.table.leader = OTHER
    caller = Caller()
    request = Request(7, 5, 100, False, 1_000, 0, [Incr(b"n", 1)], [])
    site.router.submit(request, caller.responses.append, caller)
    site.ms += 1_000
    site.router.tick()  # before the end of the tick in which it came
    site.router.end_tick()
    (result,) = caller.results
    assert isinstance(result, Failed)
    assert result.code is Code.UNAVAILABLE
    assert site.sent == []


def test_what_nobody_waits_for_counts_no_more(site: Site) -> None:
    callers = [site.ask(Put(b"k", RAW), Get(b"k")) for _ in range(3)]
    assert (site.admission.requests, site.admission.operations) == (3, 6)
    assert site.admission.size_bytes == 3 * len(RAW)
    callers[0].is_open = False
    site.pass_time(50)
    assert site.admission.requests == 2
    site.pass_time(1_000)
    assert site.router.in_flight == site.admission.requests == site.admission.operations == 0
    assert site.admission.size_bytes == 0


def test_an_answer_that_comes_too_late_is_dropped_with_its_values(site: Site) -> None:
    site.table.leader = ME
    caller = site.ask(Put(b"k", RAW))
    (call,) = site.table.calls
    site.pass_time(1_000)
    gathering, _ = call.ticket
    assert gathering.request.ops == [], "the core keeps the ticket, maybe for long"
    site.router.answer(call.ticket, DONE)
    site.router.on_moved(Moved(call.ticket, started=True))
    site.pass_time(50)
    assert len(caller.responses) == 1


def test_what_was_forwarded_to_a_dead_node_goes_on_without_waiting_for_a_tick(site: Site) -> None:
    """A frozen node's connection does not break; gossip says that it is gone (R10)."""
    site.table.leader = OTHER
    site.ask(Incr(b"k", 1))
    site.table.leader = THIRD
    site.router.peer_lost(OTHER)
    site.router.end_tick()
    node, request = site.sent[-1]
    assert (node, request.retry) == (THIRD, True)


def test_a_late_answer_of_the_dead_node_is_not_taken(site: Site) -> None:
    site.table.leader = OTHER
    caller = site.ask(Incr(b"k", 1))
    site.table.leader = None
    site.router.peer_lost(OTHER)
    site.respond(DONE)
    assert caller.responses == []


def test_an_operation_whose_slot_this_node_lost_goes_on_at_once(site: Site) -> None:
    site.table.leader = ME
    site.ask(Incr(b"k", 1))
    (call,) = site.table.calls
    site.table.leader = OTHER
    site.router.on_moved(Moved(call.ticket, started=True))
    site.router.end_tick()
    node, request = site.sent[-1]
    assert (node, request.retry) == (OTHER, True)


def test_who_waits_for_a_primary_leaves_room_for_the_others(site: Site) -> None:
    site.admission.limit = 8
    callers = [site.ask(Incr(b"n", 1)) for _ in range(6)]
    told = [caller.results for caller in callers if caller.responses]
    assert [type(result) for (result,) in told] == [Failed] * 2
    assert site.admission.requests == 4
    site.admission.limit = 2
    site.pass_time(50)
    assert site.admission.requests == 4, "who waits already goes on waiting"
    site.lead(ME)
    assert len(site.table.calls) == 4
    assert site.ask(Incr(b"n", 1)).responses == []
    assert len(site.table.calls) == 5


def test_the_parked_of_a_slot_are_tried_by_one_of_them(site: Site) -> None:
    for _ in range(100):
        site.ask(Incr(b"n", 1))
    site.table.wanted = 0
    site.pass_time(50)
    assert site.table.wanted == 1
    site.table.leader = ME
    site.pass_time(50)
    assert len(site.table.calls) == 100
