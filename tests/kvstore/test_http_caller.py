from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.operations import Code, Failed, Incr, Operation, Put, Result, Stale
from cluster.records import pack_version
from kvstore.client.operation_id import OperationId
from kvstore.http.caller import operation_id_of
from tests.kvstore.fake_node import BALLOT
from tests.kvstore.http_harness import Harness, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def http() -> AsyncIterator[Harness]:
    async with serving() as harness:
        yield harness


async def test_an_idempotency_key_writes_once(http: Harness) -> None:
    for _ in range(3):
        assert (await http.ask("POST", "/v1/kv/n/incr", Idempotency_Key="abc")).json == 1
    assert all(request.retry for request in http.node.requests), "always looked up"
    assert (await http.ask("POST", "/v1/kv/m/incr", Idempotency_Key="abc")).json == 1
    assert (await http.ask("POST", "/v1/kv/n/incr", Idempotency_Key="abd")).json == 2
    puts = [await http.ask("PUT", "/v1/kv/p", b"1", Idempotency_Key="x") for _ in range(2)]
    assert [put.status for put in puts] == [201, 201]
    assert puts[0].headers["etag"] == puts[1].headers["etag"]


async def test_an_id_of_another_operation_is_no_mistake_of_the_node(http: Harness) -> None:
    """Found by fuzzing: the result of the put was asserted to be that of a delete."""
    key = f"9f-1a-{'0' * 40}"
    assert (await http.ask("PUT", "/v1/kv/k", b"1", Idempotency_Key=key)).status == 201
    answer = await http.ask("DELETE", "/v1/kv/k", Idempotency_Key=key)
    assert (answer.status, answer.problem) == (400, "bad-header")
    assert "another operation" in answer.json["detail"]
    assert (await http.ask("GET", "/v1/kv/k")).status == 200


async def test_an_unknown_outcome_names_the_id_that_settles_it(http: Harness) -> None:
    unknown = Failed(Code.UNKNOWN, "The primary was lost.")
    http.node.fail = lambda op: unknown if isinstance(op, Put | Incr) else None
    for method, target in (("PUT", "/v1/kv/k"), ("POST", "/v1/kv/n/incr")):
        http.node.fail = lambda op: unknown if isinstance(op, Put | Incr) else None
        answer = await http.ask(method, f"{target}?timeout=0.05", b"1")
        assert (answer.status, answer.problem) == (504, "outcome-unknown")
        tried = {(r.client, r.number + (r.offsets or [0])[-1]) for r in http.node.requests}
        assert len(tried) == 1, "all attempts have one id"
        assert [request.retry for request in http.node.requests][:2] == [False, True]
        http.node.fail = lambda op: None
        http.node.requests.clear()
        settled = await http.ask(method, target, b"1", Idempotency_Key=answer.json["operation_id"])
        assert settled.status in (200, 201)
        last = http.node.requests[-1]
        assert (last.client, last.number + last.offsets[-1]) in tried
        http.node.requests.clear()


async def test_a_refusal_after_an_unknown_outcome_settles_nothing(http: Harness) -> None:
    results: list[Result | None] = [
        Failed(Code.UNKNOWN, "lost"),
        Failed(Code.UNAVAILABLE, "no quorum"),
        Failed(Code.OVERLOADED, "full"),
    ]
    http.node.fail = lambda op: results.pop(0) if results else Failed(Code.UNAVAILABLE, "no quorum")
    answer = await http.ask("DELETE", "/v1/kv/k?timeout=0.3")
    assert answer.problem == "outcome-unknown"


async def test_a_judgement_after_an_unknown_outcome_settles(http: Harness) -> None:
    results: list[Result | None] = [Failed(Code.UNKNOWN, "lost"), Failed(Code.WRONG_TYPE, "text")]
    http.node.fail = lambda op: results.pop(0)
    assert (await http.ask("POST", "/v1/kv/n/incr")).problem == "wrong-type"


async def test_a_short_outage_is_only_a_longer_latency(http: Harness) -> None:
    refusals = [Failed(Code.UNAVAILABLE, "no primary")] * 3
    http.node.fail = lambda op: refusals.pop() if refusals and isinstance(op, Put) else None
    assert (await http.ask("PUT", "/v1/kv/k", b"v")).status == 201


async def test_a_stale_first_attempt_starts_anew_with_a_new_id(http: Harness) -> None:
    stale: list[Result] = [Stale(b"\x00" * 19 + b"\x05")]
    http.node.fail = lambda op: stale.pop() if stale else None
    assert (await http.ask("POST", "/v1/kv/n/incr")).json == 1
    first, second = http.node.requests
    assert first.number + first.offsets[0] != second.number + second.offsets[0]
    assert second.seen == [b"\x00" * 19 + b"\x05"]


@pytest.mark.parametrize(
    ("code", "status", "problem"),
    [
        (Code.BAD_REQUEST, 400, "bad-request"),
        (Code.TOO_LARGE, 413, "too-large"),
        (Code.UNAVAILABLE, 503, "unavailable"),
        (Code.OVERLOADED, 429, "overloaded"),
        (Code.DEADLINE, 503, "deadline-exceeded"),
    ],
)
async def test_failures_are_problems(http: Harness, code: Code, status: int, problem: str) -> None:
    def fail(op: Operation) -> Result:
        return Failed(code, "because", retry_after_ms=1_200)

    http.node.fail = fail
    answer = await http.ask("DELETE", "/v1/kv/k?timeout=0.02")
    assert (answer.status, answer.problem) == (status, problem)
    assert answer.json["detail"] == "because"
    assert answer.headers.get("retry-after") == ("2" if status in (429, 503) else None)


async def test_positions_learned_from_answers_are_sent_as_seen(http: Harness) -> None:
    await http.ask("POST", "/v1/kv/n/incr")
    await http.ask("POST", "/v1/kv/n/incr")
    first, second = http.node.requests
    assert first.seen == [bytes(20)], "nothing is known, yet a position is kept from now on"
    assert second.seen == [pack_version(BALLOT, 1)]
    assert not first.retry
    assert not second.retry


@pytest.mark.parametrize("text", ["00000000-ffffffffffffffff-", "x-1-", "1-2-" + "0" * 39])
def test_any_key_text_gives_a_number_that_can_count_up(text: str) -> None:
    id_ = operation_id_of(text, b"PUT k")
    assert id_.number + 10_000 < 2**64
    assert id_ == operation_id_of(text, b"PUT k")


def test_the_text_of_an_id_is_that_id_wherever_it_is_sent() -> None:
    id_ = OperationId(5, 7, bytes(20))
    assert operation_id_of(id_.to_text(), b"PUT a") == id_
    assert operation_id_of(id_.to_text(), b"POST b") == id_


@given(key=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255))
def test_one_key_is_one_operation_for_one_resource_only(key: str) -> None:
    one, other = operation_id_of(key, b"PUT a"), operation_id_of(key, b"PUT b")
    assert one == operation_id_of(key, b"PUT a")
    assert one != other or key.count("-") == 2, "only the text of an id means the same everywhere"
