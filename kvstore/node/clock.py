"""Where a node's time comes from: the one seam that a simulator replaces.

Timers run on the monotonic clock. The wall clock decides on expiry alone (rule 7); it may be wrong
and may jump.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks, in milliseconds."""

    def now_ms(self) -> int:
        """Monotonic, from any beginning."""

    def unix_ms(self) -> int:
        """Since 1970, as this machine believes."""


class SystemClock:
    """The machine's own."""

    def now_ms(self) -> int:
        """See `Clock`."""
        return time.monotonic_ns() // 1_000_000

    def unix_ms(self) -> int:
        """See `Clock`."""
        return time.time_ns() // 1_000_000
