"""What a node takes on at once, on a clock of the test's own."""

from __future__ import annotations

import msgspec
import pytest

from cluster.operations import Atomic, Code, Get, Operation, Put
from kvstore.node.admission import (
    BYTES_MAX,
    INTERVAL_MS,
    OPERATIONS_MAX,
    PATIENCE,
    REQUESTS_DEFAULT,
    REQUESTS_MIN,
    RETRY_MS_MAX,
    RETRY_MS_MIN,
    TARGET_MS,
    Admission,
    payload_bytes,
)
from kvstore.wire.protocol import Request

RAW = msgspec.Raw(msgspec.msgpack.encode("value"))


def request(*ops: Operation, timeout_ms: int = 5_000, system: bool = False) -> Request:
    return Request(1, 1, 1, False, timeout_ms, 0, list(ops) or [Get(b"k")], [], [], system)


class Desk:
    """An admission, and a clock."""

    def __init__(self) -> None:
        self.ms = 1_000
        self.admission = Admission(lambda: self.ms)

    def arrive(self, *ops: Operation, timeout_ms: int = 5_000) -> bool:
        asked = request(*ops, timeout_ms=timeout_ms)
        if self.admission.refusal(asked) is not None:
            return False
        self.admission.begin(len(asked.ops), payload_bytes(asked.ops))
        return True

    def leave(self, waited_ms: int, *, served: bool = True) -> None:
        self.admission.end(1, 0, waited_ms, served=served)

    def interval(self, waits_ms: list[int], *, offered: int | None = None) -> int:
        """One interval in which so many arrive and leave after these waits; who was let in."""
        let_in = sum(self.arrive() for _ in range(offered or len(waits_ms)))
        for waited_ms in waits_ms:
            self.leave(waited_ms)
        self.ms += INTERVAL_MS
        return let_in

    def saturate(self, intervals: int, waits_ms: list[int]) -> None:
        """The node is as full as it may be all the time."""
        for _ in range(intervals):
            while self.arrive():
                pass
            for waited_ms in waits_ms:
                self.leave(waited_ms)
            self.ms += INTERVAL_MS


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_requests_are_bounded_and_room_comes_back(desk: Desk) -> None:
    assert sum(desk.arrive() for _ in range(REQUESTS_DEFAULT + 100)) == REQUESTS_DEFAULT
    desk.leave(1)
    assert desk.arrive()
    assert not desk.arrive()
    assert desk.admission.refused_total == 101


def test_operations_and_bytes_are_bounded(desk: Desk) -> None:
    assert desk.arrive(*[Get(b"k")] * (OPERATIONS_MAX - 1))
    assert desk.arrive()
    assert not desk.arrive()
    desk.admission.end(OPERATIONS_MAX - 1, 0, 1, served=True)
    big = Put(b"k", msgspec.Raw(msgspec.msgpack.encode(b"x" * (BYTES_MAX // 4))))
    assert [desk.arrive(big) for _ in range(6)] == [True] * 4 + [False] * 2


def test_a_node_at_rest_takes_any_request(desk: Desk) -> None:
    desk.admission.limit = REQUESTS_MIN
    desk.admission.wait_ms = 3_000
    assert desk.arrive(*[Get(b"k")] * (OPERATIONS_MAX + 1), timeout_ms=1)
    assert not desk.arrive()


def test_a_standing_wait_cuts_the_limit_and_its_end_gives_it_back(desk: Desk) -> None:
    desk.saturate(1 + PATIENCE, [3 * TARGET_MS] * 50)
    assert desk.admission.limit < REQUESTS_DEFAULT
    desk.saturate(30, [3 * TARGET_MS] * 50)
    assert desk.admission.limit == REQUESTS_MIN
    for _ in range(60):
        desk.interval([TARGET_MS // 4])
    assert desk.admission.limit >= REQUESTS_DEFAULT


def test_a_burst_that_drains_is_no_standing_queue(desk: Desk) -> None:
    for _ in range(50):
        desk.interval([1, *[4 * TARGET_MS] * 99])
    assert desk.admission.limit >= REQUESTS_DEFAULT


def test_a_takeover_is_no_overload(desk: Desk) -> None:
    """All that a slot held comes late at once; nobody must be refused for it."""
    desk.interval([2] * 50)
    desk.ms += 900
    desk.interval([900] * 500)
    assert desk.interval([2] * 500) == 500
    assert desk.admission.limit >= REQUESTS_DEFAULT


def test_failures_and_detours_say_nothing_of_the_queue(desk: Desk) -> None:
    for _ in range(20):
        assert desk.arrive()
        desk.leave(5_000, served=False)
        desk.ms += INTERVAL_MS
    assert desk.admission.limit >= REQUESTS_DEFAULT
    assert desk.admission.wait_ms == 0


def test_who_has_less_time_than_the_wait_is_refused_at_once(desk: Desk) -> None:
    desk.saturate(1, [2 * TARGET_MS] * 50)
    for _ in range(60):
        desk.leave(2 * TARGET_MS)
    assert not desk.arrive(timeout_ms=TARGET_MS)
    assert desk.arrive(timeout_ms=3 * TARGET_MS)


def test_the_more_are_refused_the_later_they_are_told_to_come_again(desk: Desk) -> None:
    told = []
    for refused in (10, 1_000, 1_000_000):
        desk = Desk()
        while desk.arrive():
            pass
        desk.admission._refused = refused
        for _ in range(100):
            desk.leave(1)
        desk.ms += INTERVAL_MS
        desk.leave(1)
        while desk.arrive():
            pass
        failed = desk.admission.refusal(request())
        assert failed is not None
        assert failed.code is Code.OVERLOADED
        told.append(failed.retry_after_ms)
    assert RETRY_MS_MIN <= told[0] < told[1] < told[2] == RETRY_MS_MAX


def test_the_topology_is_not_refused(desk: Desk) -> None:
    while desk.arrive():
        pass
    assert desk.admission.refusal(request(system=True)) is None


def test_payloads_are_those_of_puts_wherever_they_are() -> None:
    batch = Atomic([Put(b"a", RAW), Put(b"b", RAW)])
    assert payload_bytes([Put(b"k", RAW), Get(b"k"), batch]) == 3 * len(RAW)
