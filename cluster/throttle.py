"""A token bucket: how fast copies of slots may leave this node.

Tokens are bytes. They come in at the rate, up to what `BURST_MS` bring, and a message may be sent
while there are any; it may take the bucket into debt, which the next one waits for. So the rate
holds over time whatever the size of a message, and one that is larger than the bucket is not stuck.
"""

from __future__ import annotations

BURST_MS = 100
"""Unused time is kept for no longer than this, so that a pause is not followed by a flood."""


class Throttle:
    """Bytes per second, fed with monotonic milliseconds.

    >>> throttle = Throttle(1_000_000)
    >>> throttle.has_room(0)
    True
    >>> throttle.spend(600_000)
    >>> throttle.has_room(400), throttle.has_room(501)
    (False, True)
    """

    def __init__(self, bytes_per_s: int | None) -> None:
        assert bytes_per_s is None or bytes_per_s > 0
        self.bytes_per_s = bytes_per_s
        self.spent_total = 0
        """Bytes since the beginning, counted without a rate too."""
        self._tokens = self._burst()
        self._at_ms = 0

    def set_rate(self, bytes_per_s: int | None) -> None:
        """From now on; None for no limit. What is owed stays owed."""
        assert bytes_per_s is None or bytes_per_s > 0
        self.bytes_per_s = bytes_per_s
        self._tokens = min(self._tokens, self._burst())

    def has_room(self, now_ms: int) -> bool:
        """Whether something may be sent now."""
        if self.bytes_per_s is None:
            return True
        elapsed_ms, self._at_ms = now_ms - self._at_ms, now_ms
        self._tokens = min(self._burst(), self._tokens + self.bytes_per_s * elapsed_ms / 1_000)
        return self._tokens > 0

    def spend(self, size: int) -> None:
        """So many bytes were sent."""
        self.spent_total += size
        if self.bytes_per_s is not None:
            self._tokens -= size

    def _burst(self) -> float:
        return (self.bytes_per_s or 0) * BURST_MS / 1_000
