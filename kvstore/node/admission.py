"""How much work a node takes on at once; the rest is refused at the door, before any of it is done.

Work that arrives faster than it is done waits, and a wait that outlasts its caller's patience is
work for nobody: at five times the load that saturates a cluster, everything is done and nothing is
done in time. So what is in flight is bounded: in operations and bytes by constants, and in requests
by a limit that follows the delay. What tells a standing queue from a burst is the *least* wait of
an interval, as in CoDel (Nichols and Jacobson, "Controlling Queue Delay", 2012): a burst drains in
between and takes the least wait down. Where it stays above the target for two intervals the limit
is cut, and while it stays below the limit grows back. One long interval proves nothing: after a
takeover every write of a slot that was held comes late at once.

A request whose time is shorter than what requests have to wait now is refused too. The refused are
told when to come again: later, the more of them there are for each one that is served.

`docs/decisions/0010-overload.md` has the figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.limits import FRAME_BYTES_MAX, REQUEST_OPERATIONS_MAX
from cluster.operations import Atomic, Code, Failed, Put

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cluster.operations import Operation
    from kvstore.node.turning_away import RequestHead
    from kvstore.wire.protocol import Request

OPERATIONS_MAX: Final = 4 * REQUEST_OPERATIONS_MAX
"""Operations in flight; a few of the largest requests, each tens of milliseconds of work."""

BYTES_MAX: Final = 4 * FRAME_BYTES_MAX
"""Bytes of values in flight; each is held a few times over, in frames and in the store."""

REQUESTS_MAX: Final = 8_192
REQUESTS_MIN: Final = 384
"""Requests in flight: the limit moves between these. The least keeps a node busy where a wait is no
queue but a slow disk or a peer that pauses: fewer in flight would be fewer done, and no sooner.
Group commit makes one fsync of all of them; a node that serves 4,000 a second has them for 0.1 s.
"""

REQUESTS_DEFAULT: Final = 2_048
"""The limit of a node that has seen no overload."""

TARGET_MS: Final = 100
"""A standing wait above this is too much. Idle, a write takes two fsyncs: a few milliseconds."""

INTERVAL_MS: Final = 100
PATIENCE: Final = 2
"""Intervals in a row that must be bad before the limit is cut."""

CUT: Final = 0.7
GROWTH: Final = 1.1

RETRY_MS_MIN: Final = 50
RETRY_MS_MAX: Final = 2_000


class Admission:
    """Counts what is in flight, and says no.

    Args:
        now_ms: Monotonic time in milliseconds.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self.limit = REQUESTS_DEFAULT
        self.requests = 0
        self.operations = 0
        self.size_bytes = 0
        self.refused_total = 0
        self.wait_ms = 0
        """The least wait of the last interval: what a request must expect at least."""
        self._begun_ms = now_ms()
        self._least_ms: int | None = None
        self._most_requests = 0
        self._served = 0
        self._refused = 0
        self._bad = 0
        self._full = self._refusal_of(RETRY_MS_MIN)

    def refusal(self, request: Request | RequestHead) -> Failed | None:
        """Why this request is not taken on now, or None. A node at rest takes any request."""
        if not self.requests or (self.requests < self.limit and self._has_room_for(request)):
            return None
        if request.system:  # R17: of nodes, rare, and what helps a cluster out of trouble
            return None
        self.refused_total += 1
        self._refused += 1
        return self._full

    def _has_room_for(self, request: Request | RequestHead) -> bool:
        return (
            self.operations + len(request.ops) <= OPERATIONS_MAX
            and self.size_bytes < BYTES_MAX
            and (self.wait_ms <= TARGET_MS or self.wait_ms <= request.timeout_ms)
        )

    def begin(self, operations: int, size_bytes: int) -> None:
        """A request is taken on."""
        self.requests += 1
        self.operations += operations
        self.size_bytes += size_bytes

    def end(self, operations: int, size_bytes: int, waited_ms: int, *, served: bool) -> None:
        """It is answered; `served` if it was carried out and went its way without a detour."""
        if self.requests > self._most_requests:
            self._most_requests = self.requests
        self.requests -= 1
        self.operations -= operations
        self.size_bytes -= size_bytes
        if served:
            self._served += 1
            if self._least_ms is None or waited_ms < self._least_ms:
                self._least_ms = waited_ms
        self._look()

    def _look(self) -> None:
        """At the end of an interval: judge it, and move the limit."""
        now_ms = self._now_ms()
        if now_ms - self._begun_ms < INTERVAL_MS:
            return
        least_ms, self._least_ms = self._least_ms, None
        self.wait_ms = self.wait_ms // 2 if least_ms is None else least_ms
        if least_ms is not None and least_ms > TARGET_MS:
            self._bad += 1
            if self._bad >= PATIENCE:
                self.limit = max(REQUESTS_MIN, int(min(self.limit, self._most_requests) * CUT))
        elif least_ms is not None or not self.requests:
            self._bad = 0
            if self._refused or self.limit < REQUESTS_DEFAULT:
                self.limit = min(REQUESTS_MAX, int(self.limit * GROWTH) + 1)
        ratio = self._refused / max(self._served, 1)
        if self._refused:
            self._full = self._refusal_of(int(min(RETRY_MS_MIN * (1 + ratio), RETRY_MS_MAX)))
        self._begun_ms = now_ms
        self._most_requests = self.requests
        self._served = self._refused = 0

    def _refusal_of(self, retry_ms: int) -> Failed:
        """Made once an interval, for all who are refused in the next."""
        detail = (
            f"this node is overloaded: {self.requests:,} requests with {self.operations:,} "
            f"operations are in flight and wait {self.wait_ms:,} ms or more; nothing was done"
        )
        return Failed(Code.OVERLOADED, detail, retry_ms)


def payload_bytes(ops: Sequence[Operation]) -> int:
    """What the values of operations take."""
    total = 0
    for op in ops:
        if type(op) is Put:
            total += len(op.value)
        elif type(op) is Atomic:
            total += payload_bytes(op.writes)
    return total
