"""A full node refuses as cheaply as it can, and to the same effect as without that."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.operations import Atomic, Code, Delete, Failed, Get, Incr, Put
from kvstore.node.turning_away import Refusing, RequestHead, TurningAway, head_of
from kvstore.wire.frames import LENGTH_BYTES, encode_frame
from kvstore.wire.protocol import Request, Response, RouteQuery
from tests.kvstore.node_harness import RAW, running
from tests.process.cluster_processes import wait_for_async

FULL = Failed(Code.OVERLOADED, "full", 50)
OPERATIONS = st.sampled_from(
    [Put(b"k", RAW), Delete(b"k"), Incr(b"n", -1), Get(b"k"), Atomic([Put(b"a", RAW)])]
)
NUMBERS = st.integers(0, 2**62)


class Full(Refusing):
    def is_full(self) -> bool:
        return True

    def refusal(self, request: Request | RequestHead) -> Failed:
        del request
        return FULL


@given(NUMBERS, st.integers(1, 600_000), st.lists(OPERATIONS, max_size=20), st.booleans())
def test_a_head_is_that_of_the_request(
    number: int, timeout_ms: int, operations: list[Put], system: bool
) -> None:
    seen = [bytes(20)] * len(operations)
    request = Request(
        number, number, number, True, timeout_ms, 1, list(operations), seen, [], system
    )
    head = head_of(encode_frame(request)[LENGTH_BYTES:])
    assert head is not None
    assert (head.id, head.timeout_ms, head.system) == (number, timeout_ms, system)
    assert len(head.ops) == len(operations)


@pytest.mark.parametrize("body", [b"", b"\x94", b"\x94\x46", encode_frame(RouteQuery(1))[4:]])
def test_what_is_no_request_is_left_alone(body: bytes) -> None:
    assert head_of(body) is None


@given(st.lists(st.tuples(NUMBERS, st.integers(0, 40), st.sampled_from("ab")), max_size=5))
def test_the_answer_is_as_any_other(asked: list[tuple[int, int, str]]) -> None:
    reasons = {name: Failed(Code.OVERLOADED, name, 50) for name in "ab"}
    turning_away = TurningAway(Full())
    for number, count, reason in asked:
        expected = Response(number, [reasons[reason]] * count, {})
        assert turning_away.answer(number, count, reasons[reason]) == encode_frame(expected)


async def test_a_full_node_answers_without_decoding_what_it_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as harness, harness.client() as wire:
        await wire.ask([Put(b"k", RAW)])
        node = harness.node
        node.admission.begin(1, 0)
        node.admission.limit = 1
        decoded: list[int] = []
        monkeypatch.setattr("kvstore.node.server.Server._on_request", lambda *_: decoded.append(1))
        requests = [
            Request(n, 0xC, n, False, 2_000, 0, [Put(b"k", RAW)] * (n + 1), []) for n in range(3)
        ]
        await wire.send(*requests)
        for request in requests:
            response = await wire.receive()
            assert isinstance(response, Response)
            assert response.id == request.id
            assert [type(result) for result in response.results] == [Failed] * len(request.ops)
        assert not decoded
        assert harness.refused == {"overloaded": 3}
        node.admission.end(1, 0, 1, served=True)
        await wire.send(requests[0])
        await wait_for_async(lambda: bool(decoded), "there is room again")


async def test_what_is_no_frame_ends_the_connection_of_a_full_node_too() -> None:
    async with running() as harness, harness.client() as wire:
        harness.node.admission.begin(1, 0)
        harness.node.admission.limit = 1
        bad = msgspec.msgpack.encode([70, "no number"])
        await wire.send_bytes(len(bad).to_bytes(LENGTH_BYTES, "big") + bad)
        assert (await wire.refusal()).reason == "frame"
