"""How long everybody had to wait for the loop: what operators look at when latencies have a tail.

One thread does all that a node does, so the longest turn of its loop is what the least lucky
request has on top. Fed some times a second with the longest since the time before; the longest of
all is kept for one window whole and the next one's beginning, so that no scraper misses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

STALL_MS: Final = 25
"""A turn of so long is counted: several times what a group of writes takes."""

WINDOW_MS: Final = 60_000


class Stalls:
    """Counts them, and keeps the longest of the last one to two minutes.

    Args:
        now_ms: Monotonic time in milliseconds.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._begun_ms = now_ms()
        self._longest_ms = self._before_ms = 0.0
        self.total = 0
        """Turns of `STALL_MS` or more; at most one for each time that this is fed."""

    def felt(self, ms: float) -> None:
        """The longest turn since the last call."""
        self._turn_over()
        self.total += ms >= STALL_MS
        self._longest_ms = max(self._longest_ms, ms)

    @property
    def longest_ms(self) -> float:
        """In this window and the one before."""
        self._turn_over()
        return max(self._longest_ms, self._before_ms)

    def _turn_over(self) -> None:
        windows = (self._now_ms() - self._begun_ms) // WINDOW_MS
        if windows:
            self._before_ms = self._longest_ms if windows == 1 else 0.0
            self._longest_ms = 0.0
            self._begun_ms += windows * WINDOW_MS
