"""What the node counts.

Counting must cost almost nothing, so nothing here goes through a metrics library: doors add to
plain integers (`Tally`), the node keeps its own figures (`NodeView.status`), and
`kvstore.exposition` makes of all of them what Prometheus reads. That is loaded when somebody
scrapes, for a node that starts has no use for it and would wait for it.

Names begin with ``kvstore_`` and end with their unit. Label values come from closed sets of ours
(doors, operations, outcomes, reasons), never from a request, so that no caller can grow the memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.exposition import Exposition
    from kvstore.node.view import NodeView

__all__ = ["LATENCY_BOUNDS_SECONDS", "Metrics", "Tally"]

LATENCY_BOUNDS_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0)
"""Upper bounds of the latency buckets: dense where an answer usually falls, few altogether."""


class Tally:
    """Requests of one operation at one door, by outcome, with their latency."""

    __slots__ = ("_buckets", "_seconds", "outcomes")

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self._buckets = [0] * (len(LATENCY_BOUNDS_SECONDS) + 1)
        self._seconds = 0.0

    def add(self, outcome: str, seconds: float) -> None:
        """Count one answered request; under a microsecond."""
        self.outcomes[outcome] += 1
        self._buckets[bisect_left(LATENCY_BOUNDS_SECONDS, seconds)] += 1
        self._seconds += seconds

    def histogram(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative buckets as Prometheus wants them, and the sum in seconds."""
        total, buckets = 0, []
        for bound, count in zip((*LATENCY_BOUNDS_SECONDS, "+Inf"), self._buckets, strict=True):
            total += count
            buckets.append((str(bound), float(total)))
        return buckets, self._seconds


class Metrics:
    """The counters of one process."""

    def __init__(self) -> None:
        self.tallies: dict[tuple[str, str], Tally] = {}
        self.refusals: Counter[str] = Counter()
        self.open: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self.totals: dict[str, tuple[str, Callable[[], float]]] = {}
        self.node: NodeView | None = None
        """Whose own figures are exposed too."""
        self._exposition: Exposition | None = None

    def tally(self, door: str, operation: str) -> Tally:
        """The tally of an operation at a door ("http", "client", "peer"), always the same."""
        tally = self.tallies.get((door, operation))
        if tally is None:
            tally = self.tallies[door, operation] = Tally()
        return tally

    def refused(self, reason: str) -> None:
        """Count an input that was turned away at a door, by a stable reason."""
        self.refusals[reason] += 1

    def refused_total(self, reason: str) -> int:
        """How often that was."""
        return self.refusals[reason]

    def connection_opened(self, door: str) -> None:
        """Count a connection that a door took in."""
        self.open[door] += 1
        self.accepted[door] += 1

    def connection_closed(self, door: str) -> None:
        """Count its end."""
        self.open[door] -= 1

    def connections(self, door: str) -> int:
        """Connections of a door that are open now."""
        return self.open[door]

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Expose ``kvstore_<name>``, read at scrape time; the name ends with its unit."""
        assert name not in self.gauges, name
        self.gauges[name] = (text, read)

    def total(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Expose the counter ``kvstore_<name>_total``, read at scrape time."""
        assert name not in self.totals, name
        self.totals[name] = (text, read)

    def watch_node(self, node: NodeView) -> None:
        """Expose the node's own figures from now on."""
        assert self.node is None, "one process is one node"
        self.node = node

    def expose(self) -> tuple[bytes, str]:
        """The text of a scrape and its content type."""
        if self._exposition is None:
            from kvstore.exposition import Exposition

            self._exposition = Exposition(self)
        return self._exposition.text()
