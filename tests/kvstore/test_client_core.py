"""The sans-I/O core: flows are driven by hand, with a clock and replies of the test's choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cluster.limits import SLOT_COUNT_DEFAULT
from cluster.operations import (
    Code,
    Conflict,
    Deleted,
    Done,
    Failed,
    Get,
    Number,
    Stale,
)
from cluster.slots import slot_of
from kvstore.client import flows, many
from kvstore.client.address import parse_url, split_address
from kvstore.client.core import ClientCore
from kvstore.client.exchange import (
    Broken,
    Exchange,
    Flow,
    NotSent,
    Pause,
    Reply,
    Step,
    TimedOut,
)
from kvstore.client.operation_id import OperationId, operation_id_from_text
from kvstore.client.retry import CREDITS_MAX, RetryBudget, attempt_seconds, backoff_seconds
from kvstore.client.routing import RoutingTable
from kvstore.errors import (
    BadRequest,
    DeadlineExceeded,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    ValueTooLarge,
    VersionConflict,
    WrongType,
)
from kvstore.wire.protocol import Request, Response, RouteQuery
from tests.kvstore.client_bench import COMMITTED, NEWER, NODES, REFUSED, UNKNOWN, Bench, Half, table

if TYPE_CHECKING:
    from collections.abc import Callable

PRIMARY = NODES[slot_of(b"k") % 3]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_call_goes_straight_to_the_primary_with_the_committed_position(bench: Bench) -> None:
    assert bench.put(Done(NEWER)) == "1.7.6"
    (send,) = bench.sent
    (request,) = bench.requests()
    assert send.address == PRIMARY
    assert (request.retry, request.seen, request.hops) == (False, [COMMITTED], 0)
    assert request.client == bench.core.client_id
    assert 0 < request.timeout_ms <= 5_000


def test_positions_follow_answers_and_never_go_back(bench: Bench) -> None:
    bench.put(Done(NEWER))
    bench.put(Done(COMMITTED))
    bench.put(Done(NEWER))
    assert [request.seen for request in bench.requests()] == [[COMMITTED], [NEWER], [NEWER]]
    bench.core.table.load(table(), bench.time)
    assert bench.core.table.positions[slot_of(b"k")] == NEWER


def test_numbers_are_never_reused(bench: Bench) -> None:
    bench.put(Done(NEWER))
    bench.put(Done(NEWER))
    first, second = bench.requests()
    assert second.number > first.number


@pytest.mark.parametrize("failure", [Broken("b"), TimedOut("t")])
def test_what_may_have_arrived_is_sent_again_as_a_retry_elsewhere(
    bench: Bench, failure: Reply
) -> None:
    bench.put(failure, Done(NEWER))
    first, second = bench.requests()
    assert (first.retry, second.retry) == (False, True)
    assert (second.client, second.number, second.seen) == (first.client, first.number, first.seen)
    assert bench.sent[1].address != bench.sent[0].address
    assert bench.pauses == []  # the first retry is at once: this is the failover


def test_what_never_left_is_sent_as_if_for_the_first_time(bench: Bench) -> None:
    bench.put(NotSent("refused"), Done(NEWER))
    first, second = bench.requests()
    assert (first.retry, second.retry) == (False, False)
    assert second.number == first.number


def test_seen_stays_that_of_the_first_attempt(bench: Bench) -> None:
    flow = flows.put(bench.core, bench.time + 5, "k", 1)
    step = next(flow)
    assert isinstance(step, Exchange)
    bench.core.table.positions[slot_of(b"k")] = NEWER  # another flow was answered meanwhile
    step = flow.send([Broken("b")])
    assert isinstance(step, Exchange)
    frame = step.sends[0].frame
    assert isinstance(frame, Request)
    assert frame.seen == [COMMITTED]
    flow.close()


def test_a_refusal_after_an_unanswered_attempt_settles_nothing(bench: Bench) -> None:
    too_large = Failed(Code.TOO_LARGE, "too large")
    with pytest.raises(OutcomeUnknown) as caught:
        bench.put(Broken("b"), too_large)
    (first, _) = bench.requests()
    identity = operation_id_from_text(caught.value.operation_id)
    assert identity == OperationId(first.client, first.number, COMMITTED)


def test_a_refusal_of_every_attempt_is_that_error(bench: Bench) -> None:
    with pytest.raises(Unavailable, match="no quorum") as caught:
        bench.put(*[REFUSED] * 30)
    assert not isinstance(caught.value, DeadlineExceeded)


def refused_until_the_deadline(bench: Bench, deadline: float, *script: Any) -> None:
    flow = flows.put(bench.core, deadline, "k", 1)
    replies = list(script)
    step: Step = next(flow)
    while True:
        if isinstance(step, Pause):
            bench.time += max(step.seconds, 1e-6)
            step = flow.send([])
            continue
        given = replies.pop(0) if replies else REFUSED
        answers: list[Reply] = []
        for send in step.sends:
            if isinstance(send.frame, RouteQuery):
                answers.append(table(send.frame.id))
            elif isinstance(given, Failed):
                answers.append(Response(send.frame.id, [given], {}))
            else:
                answers.append(given)
        step = flow.send(answers)


def test_refusals_are_retried_until_the_deadline(bench: Bench) -> None:
    with pytest.raises(Unavailable, match="no quorum"):
        refused_until_the_deadline(bench, bench.time + 2)
    assert bench.time == pytest.approx(102, abs=0.1)
    with pytest.raises(OutcomeUnknown):
        refused_until_the_deadline(bench, bench.time + 2, Broken("b"))


def test_unknown_answers_are_asked_again_with_the_same_id(bench: Bench) -> None:
    assert bench.put(UNKNOWN, UNKNOWN, Done(NEWER))
    requests = bench.requests()
    assert [request.retry for request in requests] == [False, True, True]
    assert len({request.number for request in requests}) == 1


def test_a_write_that_stays_unknown_says_so_soon(bench: Bench) -> None:
    with pytest.raises(OutcomeUnknown) as caught:
        bench.put(*[UNKNOWN] * 5)
    assert caught.value.operation_id in str(caught.value)
    assert bench.time < 102


def test_an_unknown_outcome_is_settled_with_its_id(bench: Bench) -> None:
    with pytest.raises(OutcomeUnknown) as caught:
        bench.put(*[UNKNOWN] * 5)
    bench.put(Done(NEWER), operation_id=caught.value.operation_id)
    first, last = bench.requests()[0], bench.requests()[-1]
    assert (last.client, last.number, last.seen) == (first.client, first.number, first.seen)
    assert last.retry


def test_a_conflict_answered_to_a_retry_settles(bench: Bench) -> None:
    with pytest.raises(VersionConflict) as caught:
        bench.put(Broken("b"), Conflict(NEWER), if_version="1.7.5")
    assert caught.value.current == "1.7.6"
    with pytest.raises(VersionConflict) as caught:
        bench.put(Conflict(b""), if_version="1.7.5")
    assert caught.value.current is None


def test_a_stale_first_attempt_starts_anew_with_a_new_id(bench: Bench) -> None:
    assert bench.put(Stale(NEWER), Done(NEWER))
    first, second = bench.requests()
    assert second.number > first.number
    assert (second.retry, second.seen) == (False, [NEWER])


def test_only_the_stale_ones_of_a_batch_start_anew(bench: Bench) -> None:
    keys = {f"{{k}}{n}": n for n in range(4)}
    flow = many.delete_many(bench.core, bench.time + 5, list(keys))
    done = Deleted(NEWER, True)
    bench.run(flow, [done, Stale(NEWER), done, Stale(NEWER)], Broken("b"), [done, done])
    first, second, third = bench.requests()
    assert [len(request.ops) for request in (first, second, third)] == [4, 2, 2]
    assert second.number >= first.number + 4, "no number is given to two operations"
    assert second.seen == [NEWER, NEWER]
    assert (third.number, third.retry, third.seen) == (second.number, True, [NEWER, NEWER])


def test_a_slot_without_a_position_is_told_as_such(bench: Bench) -> None:
    """Nothing at all would mean "I cannot keep a position", and that is once-only no more."""
    zeros = bytes(20)
    routes = table()
    bench.core = ClientCore(NODES[:1], now=lambda: bench.time, chance=Half())
    bench.core.table.load(
        msgspec.structs.replace(routes, positions=zeros * SLOT_COUNT_DEFAULT), bench.time
    )
    bench.put(Done(NEWER))
    (request,) = bench.requests()
    assert request.seen == [zeros]


def test_an_unanswered_read_is_no_unknown_outcome(bench: Bench) -> None:
    flow = flows.get(bench.core, bench.time + 0.6, "k", None, "linearizable")
    with pytest.raises(DeadlineExceeded):
        bench.run(flow, TimedOut("silent"), TimedOut("silent"))


def test_overload_is_retried_on_credit_only(bench: Bench) -> None:
    full = Failed(Code.OVERLOADED, "full", 50)
    bench.put(full, Done(NEWER))
    assert bench.pauses == [pytest.approx(0.05)]
    assert not bench.requests()[1].retry, "refused at the door: no attempt of it was ever made"
    bench.core._budget.credits = -10.0
    with pytest.raises(Overloaded) as caught:
        bench.put(full)
    assert caught.value.retry_after == 0.05


def test_without_credit_nobody_is_hurried(bench: Bench) -> None:
    bench.core._budget.credits = 0.0
    flow = flows.get(bench.core, bench.time + 5, "k", None, "linearizable")
    step = next(flow)
    assert isinstance(step, Exchange)
    assert step.deadline == bench.time + 5
    flow.close()


def test_other_codes_have_their_errors(bench: Bench) -> None:
    for code, error in [
        (Code.BAD_REQUEST, BadRequest),
        (Code.TOO_LARGE, ValueTooLarge),
        (Code.WRONG_TYPE, WrongType),
    ]:
        with pytest.raises(error, match="'k'"):
            bench.put(Failed(code, "detail"))


def test_arguments_are_checked_before_anything_is_sent(bench: Bench) -> None:
    end = bench.time + 5
    wrong: list[Flow[Any]] = [
        flows.put(bench.core, end, "", 1),
        flows.put(bench.core, end, "k", {1}),
        flows.put(bench.core, end, "k", 1, ttl=0),
        flows.put(bench.core, end, "k", 1, ttl=float("nan")),
        flows.put(bench.core, end, "k", 1, ttl=1e12),
        flows.put(bench.core, end, "k", 1, if_version="x"),
        flows.put(bench.core, end, "k", 1, if_version="1.7.5", if_absent=True),
        flows.put(bench.core, end, "k", 1, content_type="text/plain"),
        flows.put(bench.core, end, "k", b"", content_type="ü"),
        flows.put(bench.core, end, "k", 1, operation_id="zz"),
        flows.get(bench.core, end, "k", None, "sometimes"),
        flows.incr(bench.core, end, "k", 2**63),
        flows.incr(bench.core, end, "k", True),
        flows.batch(bench.core, end, {}),
        flows.batch(bench.core, end, {"a": 1, "b": 2}),
        flows.batch(bench.core, end, {"a": 1, b"a": 2}),
        many.put_many(bench.core, end, {"a": 1, "b": {2}}),
    ]
    for flow in wrong:
        with pytest.raises(BadRequest):
            bench.run(flow)
    assert bench.sent == []


def test_answers_name_better_primaries(bench: Bench) -> None:
    slot = slot_of(b"k")
    other = NODES[(slot + 1) % 3]
    bench.core.table.lead({slot: 10 + (slot + 1) % 3})
    bench.put(Done(NEWER))
    assert bench.sent[0].address == other


def test_an_answer_of_the_wrong_length_is_no_answer(bench: Bench) -> None:
    bench.put([Done(NEWER), Done(NEWER)], Done(NEWER))
    assert bench.requests()[1].retry


def test_the_first_call_learns_the_cluster_from_any_seed() -> None:
    core = ClientCore(["a:1", "b:1"], now=lambda: 0.0, chance=Half())
    flow = flows.incr(core, 5.0, "k", 1)
    step = next(flow)
    assert isinstance(step, Exchange)
    assert isinstance(step.sends[0].frame, RouteQuery)
    step = flow.send([NotSent("a:1: connection refused")])
    assert isinstance(step, Exchange)
    assert step.sends[0].address == "b:1"
    step = flow.send([table(step.sends[0].frame.id)])
    assert isinstance(step, Exchange)
    with pytest.raises(StopIteration) as stop:
        flow.send([Response(step.sends[0].frame.id, [Number(NEWER, 3)], {})])
    assert stop.value.value == 3


def test_without_any_node_each_is_named_with_its_reason() -> None:
    time = [0.0]
    core = ClientCore(["a:1", "b:1"], now=lambda: time[0], chance=Half())

    def refuse_everything(step: Step) -> list[Reply]:
        if isinstance(step, Pause):
            time[0] += step.seconds + 1e-6
            return []
        return [NotSent(f"{send.address}: connection refused") for send in step.sends]

    with pytest.raises(Unavailable, match=r"a:1: connection refused; b:1: connection refused"):
        drive(flows.get(core, 1.0, "k", None, "linearizable"), refuse_everything)
    assert time[0] == pytest.approx(1.0, abs=0.01)


def drive(flow: Flow[Any], answer: Callable[[Step], list[Reply]]) -> None:
    step = next(flow)
    while True:
        step = flow.send(answer(step))


def test_a_cluster_that_refuses_us_is_not_asked_until_the_deadline() -> None:
    core = ClientCore(["a:1"], now=lambda: 0.0, chance=Half())
    flow = flows.get(core, 5.0, "k", None, "linearizable")
    next(flow)
    with pytest.raises(Unavailable, match="version"):
        flow.send([NotSent("a:1: refused (version): speak 2", permanent=True)])


def test_silent_nodes_are_left_alone_while_gossip_doubts_them() -> None:
    routing = RoutingTable(NODES)
    routing.load(table(), 0.0)
    routing.failed("a:1", 0.0, silent=True)
    assert routing.resolve("a:1", 0.5) != "a:1"
    assert routing.resolve("a:1", 2.5) == "a:1"
    routing.load(table(states=("suspect", "alive", "alive")), 2.5)
    assert routing.resolve("a:1", 3.0) != "a:1"
    routing.answered("a:1")
    assert routing.resolve("a:1", 3.0) == "a:1"
    for node in NODES:
        routing.failed(node, 3.0, silent=True)
    assert routing.resolve("a:1", 3.0) in NODES


def test_backoff_and_budget() -> None:
    assert [backoff_seconds(n, Half()) for n in (1, 2, 50)] == [0.004, 0.008, 0.2]
    assert attempt_seconds(1, 0, 0) == 2 * attempt_seconds(0, 0, 0)
    assert attempt_seconds(0, 10_000, 8_000_000) > 2
    budget = RetryBudget(0.0)
    spent = 0
    while budget.spend(0.0):
        spent += 1
    assert spent == CREDITS_MAX
    budget.earn(10)
    assert budget.spend(0.0)
    assert not budget.spend(0.0)
    assert budget.spend(1.0)


def test_a_port_of_thousands_of_digits_is_refused_like_any_other() -> None:
    with pytest.raises(BadRequest):
        parse_url(f"kv://n1:{'7' * 5_000}")


def test_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    target = parse_url("kv://h1:1,h2,[::1]:3,h1:1/?timeout=2.5&connect_timeout=0.5")
    assert target == (["h1:1", "h2:7401", "[::1]:3"], 2.5, 0.5)
    assert parse_url("kv://h", timeout=9).timeout == 9
    monkeypatch.setenv("KVSTORE_URL", "kv://from-env:9")
    assert parse_url(None).seeds == ["from-env:9"]
    monkeypatch.delenv("KVSTORE_URL")
    assert parse_url(None).seeds == ["127.0.0.1:7401"]
    assert split_address("[::1]:3") == ("::1", 3)
    for url in (
        "http://h",
        "kv://",
        "kv://h:0",
        "kv://h:x",
        "kv://h:70000",
        "kv://a,,b",
        "kv://h/path",
        "kv://::1",
        "kv://[::1",
        "kv://[h]:1",
        "kv://user@h",
        "kv://a..b",
        "kv://a\0b",
        "kv://" + "a" * 64,
        "kv://h/?timeout=soon",
        "kv://h/?timeout=0",
        "kv://h/?timeout=inf",
        "kv://h/?colour=1",
    ):
        with pytest.raises(BadRequest):
            parse_url(url)


def test_operation_ids_keep_everything() -> None:
    for identity in (OperationId(2**64 - 1, 1, b""), OperationId(1, 2**40, COMMITTED)):
        assert operation_id_from_text(identity.to_text()) == identity
    for text in ("", "1-2", "1-2-zz", "g-1-", "1-2-00"):
        with pytest.raises(BadRequest):
            operation_id_from_text(text)


def test_a_renewed_identity_shares_no_id(bench: Bench) -> None:
    bench.put(Done(NEWER))
    bench.core.renew_identity()
    bench.put(Done(NEWER))
    first, second = bench.requests()
    assert first.client != second.client


def test_reads_ask_for_what_they_say(bench: Bench) -> None:
    flow = flows.get(bench.core, bench.time + 5, "k", None, "eventual")
    step = next(flow)
    assert isinstance(step, Exchange)
    frame = step.sends[0].frame
    assert isinstance(frame, Request)
    assert frame.ops == [Get(b"k", True)]
    assert frame.seen == []
    flow.close()
