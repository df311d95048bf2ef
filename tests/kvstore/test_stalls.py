"""What operators are told of a loop that was held up."""

from __future__ import annotations

from kvstore.node.stalls import STALL_MS, WINDOW_MS, Stalls
from tests.kvstore.node_harness import running
from tests.process.cluster_processes import wait_for_async


class Clock:
    ms = 0

    def now_ms(self) -> int:
        return self.ms


def test_long_turns_are_counted_and_short_ones_are_not() -> None:
    stalls = Stalls(Clock().now_ms)
    for ms in (0.5, STALL_MS - 1, STALL_MS, 10 * STALL_MS):
        stalls.felt(ms)
    assert stalls.total == 2
    assert stalls.longest_ms == 10 * STALL_MS


def test_the_longest_is_told_for_a_whole_window_and_forgotten_after_two() -> None:
    clock = Clock()
    stalls = Stalls(clock.now_ms)
    clock.ms = WINDOW_MS - 1
    stalls.felt(70)
    clock.ms += WINDOW_MS
    stalls.felt(30)
    assert stalls.longest_ms == 70
    clock.ms += WINDOW_MS
    assert stalls.longest_ms == 30
    clock.ms += 5 * WINDOW_MS
    assert stalls.longest_ms == 0


async def test_a_node_feels_its_own_long_turns() -> None:
    async with running() as harness:
        stalls = harness.node.stalls
        before = stalls.total
        harness.node._tick_due -= 1.5  # as if the timer came so late
        await wait_for_async(lambda: stalls.longest_ms >= 1_000, "it was late")
        assert stalls.total > before
