"""Many keys at once: requests, pieces, groups, and what is told of each key."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from cluster.operations import (
    Absent,
    Atomic,
    Code,
    Deleted,
    Done,
    Failed,
    Get,
    Put,
    Result,
)
from cluster.slots import slot_of
from kvstore.client import many
from kvstore.client.exchange import (
    Exchange,
    Pause,
    Reply,
    Step,
    TimedOut,
)
from kvstore.errors import (
    PartialFailure,
    ValueTooLarge,
)
from kvstore.wire.protocol import Request, Response
from tests.kvstore.client_bench import NEWER, NODES, REFUSED, Bench, table


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_batch_of_keys_is_one_request_a_node(bench: Bench) -> None:
    keys = list({slot_of(b"key-%d" % i): f"key-{i}" for i in range(300)}.values())
    flow = many.put_many(bench.core, bench.time + 5, dict.fromkeys(keys, 1))
    step = next(flow)
    assert isinstance(step, Exchange)
    assert sorted(send.address for send in step.sends) == NODES
    ids: set[int] = set()
    for send in step.sends:
        assert isinstance(send.frame, Request)
        for offset, op in enumerate(send.frame.ops):
            assert isinstance(op, Put)
            assert NODES[slot_of(op.key) % 3] == send.address
            ids.add(send.frame.number + offset)
    assert len(ids) == len(keys)
    flow.close()


def test_only_the_failed_keys_of_a_batch_are_sent_again(bench: Bench) -> None:
    keys = [key for key in (f"key-{i}" for i in range(60)) if slot_of(key.encode()) % 3 == 0][:5]
    done = Done(NEWER)
    flow = many.put_many(bench.core, bench.time + 5, dict.fromkeys(keys, 1))
    bench.run(flow, [done, REFUSED, REFUSED, done, REFUSED], [done, done], done)
    whole, pair, single = bench.requests()
    assert (pair.number, len(pair.ops)) == (whole.number + 1, 2)
    assert (single.number, len(single.ops)) == (whole.number + 4, 1)
    assert pair.retry
    assert pair.ops == whole.ops[1:3]


def test_one_slot_without_a_quorum_costs_no_other_key_of_the_same_request(bench: Bench) -> None:
    keys = [key for key in map(str, range(60)) if slot_of(key.encode()) % 3 == 0]
    flow = many.get_many(bench.core, bench.time + 20, keys, "linearizable")

    def replies(step: Step) -> list[Reply]:
        """Those of a node that waits for the slot's quorum as long as it may."""
        if isinstance(step, Pause):
            bench.time += step.seconds
            return []
        (send,) = [send for send in step.sends if isinstance(send.frame, Request)]
        assert isinstance(send.frame, Request)
        at = bench.time + send.frame.timeout_ms / 1_000 + 0.1
        bench.time = min(at, step.deadline)
        told: list[Result] = [REFUSED if op == Get(b"2") else Absent() for op in send.frame.ops]
        answer = Response(send.frame.id, told, {})
        reply = answer if at <= step.deadline else TimedOut("silent")
        return [reply if sent is send else table(sent.frame.id) for sent in step.sends]

    def drive() -> None:
        step = next(flow)
        while True:
            step = flow.send(replies(step))

    with pytest.raises(PartialFailure, match="no quorum") as caught:
        drive()
    assert list(caught.value.errors) == ["2"]


def test_a_partial_failure_names_each_key(bench: Bench) -> None:
    keys = [key for key in (f"key-{i}" for i in range(60)) if slot_of(key.encode()) % 3 == 0][:3]
    bad = Failed(Code.TOO_LARGE, "too large")
    flow = many.put_many(bench.core, bench.time + 5, dict.fromkeys(keys, 1))
    with pytest.raises(PartialFailure) as caught:
        bench.run(flow, [Done(NEWER), bad, Done(NEWER)])
    assert list(caught.value.errors) == [keys[1]]
    assert isinstance(caught.value.errors[keys[1]], ValueTooLarge)
    deletion = many.delete_many(bench.core, bench.time + 5, keys)
    with pytest.raises(PartialFailure):
        bench.run(deletion, [Deleted(NEWER, True), bad, Deleted(NEWER, False)])


def test_large_batches_are_cut(bench: Bench) -> None:
    value = b"x" * 1_000_000
    keys = [f"{{tag}}{i}" for i in range(20)]
    flow = many.put_many(bench.core, bench.time + 5, dict.fromkeys(keys, value))
    done = Done(NEWER)
    bench.run(flow, [done] * 8, [done] * 8, [done] * 4)
    assert [len(request.ops) for request in bench.requests()] == [8, 8, 4]


def test_puts_that_meet_in_a_slot_are_one_operation(bench: Bench) -> None:
    keys = ["{k}a", "{k}b", "{k}c"]
    bench.run(many.put_many(bench.core, bench.time + 5, dict.fromkeys(keys, 1)), Done(NEWER))
    (request,) = bench.requests()
    (op,) = request.ops
    assert isinstance(op, Atomic)
    assert [write.key.decode() for write in op.writes] == keys
    assert bench.core.table.positions[slot_of(b"k")] == NEWER


def test_what_an_operation_of_many_puts_was_answered_holds_for_each(bench: Bench) -> None:
    keys = ["{k}a", "{k}b"]
    flow = many.put_many(bench.core, bench.time + 5, dict.fromkeys(keys, 1))
    with pytest.raises(PartialFailure, match="2 of 2 keys") as caught:
        bench.run(flow, Failed(Code.TOO_LARGE, "too large"))
    assert list(caught.value.errors) == keys


def test_of_one_key_named_as_text_and_as_bytes_the_last_stands(bench: Bench) -> None:
    flow = many.put_many(bench.core, bench.time + 5, {"{k}a": 1, "{k}b": 1, b"{k}a": 2})
    bench.run(flow, [Done(NEWER), Done(NEWER)])
    (request,) = bench.requests()
    first, second = request.ops
    assert isinstance(first, Atomic)
    assert [write.key for write in first.writes] == [b"{k}a", b"{k}b"]
    assert isinstance(second, Put)
    assert (second.key, bytes(second.value)) == (b"{k}a", b"\x02")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40_000)), min_size=1, max_size=60))
def test_groups_are_of_one_slot_and_small_enough_and_lose_nothing(
    found: list[tuple[int, int]],
) -> None:
    slots = [slot for slot, _ in found]
    puts = [Put(b"%d" % n, Raw(bytes(size))) for n, (_, size) in enumerate(found)]
    order = sorted(range(len(puts)), key=slots.__getitem__)
    groups = list(many._groups(puts, slots, order))
    assert [index for group in groups for index in group] == order
    for group in groups:
        assert len({slots[index] for index in group}) == 1
        size = sum(len(puts[index].key) + len(puts[index].value) for index in group)
        assert len(group) == 1 or size <= many.GROUP_BYTES_MAX


def test_very_many_keys_go_in_pieces(bench: Bench) -> None:
    """So that no node is held up for long, and keys of one slot come together."""
    count = 2 * many.PIECE_KEYS_MAX + 1
    flow = many.put_many(bench.core, bench.time + 5, {f"key-{n}": n for n in range(count)})
    step = next(flow)
    pieces: list[set[int]] = []
    with suppress(StopIteration):
        while True:
            assert isinstance(step, Exchange)
            requests = [send.frame for send in step.sends]
            assert all(isinstance(request, Request) for request in requests)
            keys = [
                write.key
                for request in requests
                if isinstance(request, Request)
                for op in request.ops
                for write in (op.writes if isinstance(op, Atomic) else [op])
                if isinstance(write, Put)
            ]
            assert len(keys) <= many.PIECE_KEYS_MAX
            pieces.append({slot_of(key) for key in keys})
            step = flow.send(
                [
                    Response(request.id, [Done(NEWER)] * len(request.ops), {})
                    for request in requests
                    if isinstance(request, Request)
                ]
            )
    assert len(pieces) == 3
    assert len(pieces[0] & pieces[1]) <= 1, "a slot's keys are neighbours"
