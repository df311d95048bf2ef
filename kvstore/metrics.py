"""What the node counts, as Prometheus sees it.

Counting must cost almost nothing, so nothing here goes through the client library on the hot path:
doors add to plain integers (`Tally`), the node keeps its own figures (`NodeView.status`), and one
collector turns all of them into metric families when somebody scrapes. There is one registry a
process; multiprocess mode is not used, because one process is one node.

Names begin with ``kvstore_`` and end with their unit. Label values come from closed sets of ours
(doors, operations, outcomes, reasons), never from a request, so that no caller can grow the memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric

    from kvstore.node.view import NodeView

__all__ = ["LATENCY_BOUNDS_SECONDS", "Metrics", "Tally"]

LATENCY_BOUNDS_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0)
"""Upper bounds of the latency buckets: dense where an answer usually falls, few altogether."""

MEMBER_STATES: Final = ("alive", "suspect", "dead", "left")
"""Always exposed, also at 0: an alarm on a series that does not exist yet never fires."""


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
    """The counters of one process and the registry that exposes them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._refused: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._accepted: Counter[str] = Counter()
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._totals: dict[str, tuple[str, Callable[[], float]]] = {}
        self._node: NodeView | None = None
        self.registry.register(_Doors(self))

    def tally(self, door: str, operation: str) -> Tally:
        """The tally of an operation at a door ("http", "client", "peer"), always the same."""
        tally = self._tallies.get((door, operation))
        if tally is None:
            tally = self._tallies[door, operation] = Tally()
        return tally

    def refused(self, reason: str) -> None:
        """Count an input that was turned away at a door, by a stable reason."""
        self._refused[reason] += 1

    def refused_total(self, reason: str) -> int:
        """How often that was."""
        return self._refused[reason]

    def connection_opened(self, door: str) -> None:
        """Count a connection that a door took in."""
        self._open[door] += 1
        self._accepted[door] += 1

    def connection_closed(self, door: str) -> None:
        """Count its end."""
        self._open[door] -= 1

    def connections(self, door: str) -> int:
        """Connections of a door that are open now."""
        return self._open[door]

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Expose ``kvstore_<name>``, read at scrape time; the name ends with its unit."""
        assert name not in self._gauges, name
        self._gauges[name] = (text, read)

    def total(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Expose the counter ``kvstore_<name>_total``, read at scrape time."""
        assert name not in self._totals, name
        self._totals[name] = (text, read)

    def watch_node(self, node: NodeView) -> None:
        """Expose the node's own figures from now on."""
        assert self._node is None, "one process is one node"
        self._node = node
        self.registry.register(_Node(node))

    def expose(self) -> tuple[bytes, str]:
        """The text of a scrape and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _Doors(Collector):
    """Turns the tallies into metric families."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        """Nothing before the first scrape: registering must not read any figure."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families, read now."""
        metrics = self._metrics
        requests = CounterMetricFamily(
            "kvstore_requests",
            "Requests answered, by door, operation and outcome.",
            labels=("door", "operation", "outcome"),
        )
        seconds = HistogramMetricFamily(
            "kvstore_request_seconds",
            "Time from a request's head to its answer.",
            labels=("door", "operation"),
        )
        for (door, operation), tally in sorted(metrics._tallies.items()):
            for outcome, count in sorted(tally.outcomes.items()):
                requests.add_metric((door, operation, outcome), count)
            buckets, total = tally.histogram()
            seconds.add_metric((door, operation), buckets, total)
        yield requests
        yield seconds
        yield _counters(
            "kvstore_refused", "Inputs turned away, by reason.", "reason", metrics._refused
        )
        yield _counters(
            "kvstore_connections_accepted", "Connections taken in.", "door", metrics._accepted
        )
        connections = GaugeMetricFamily(
            "kvstore_connections", "Connections open now.", labels=("door",)
        )
        for door, count in sorted(metrics._open.items()):
            connections.add_metric((door,), count)
        yield connections
        for name, (text, read) in metrics._gauges.items():
            yield GaugeMetricFamily(f"kvstore_{name}", text, read())
        for name, (text, read) in metrics._totals.items():
            yield CounterMetricFamily(f"kvstore_{name}", text, read())


class _Node(Collector):
    """Turns `NodeView` into metric families."""

    def __init__(self, node: NodeView) -> None:
        self._node = node

    def describe(self) -> list[Metric]:
        """Nothing before the first scrape: the node may still be starting."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families, read now."""
        status = self._node.status()
        about = {"name": status.name, "id": str(status.id), "version": status.version}
        yield InfoMetricFamily("kvstore_node", "The node that answers.", value=about)
        for name, text, value in (
            ("ready", "1 while the node serves the slots that it should.", status.ready),
            ("uptime_seconds", "Time since the start.", status.uptime_ms / 1000),
            ("keys", "Keys held, an estimate.", status.keys_estimate),
            ("disk_bytes", "Bytes on disk.", status.disk_bytes),
            ("memory_bytes", "Resident memory.", status.memory_bytes),
            ("slots_led", "Slots whose primary is here.", status.slots_led),
            ("slots_held", "Slots whose content is here.", status.slots_held),
            ("requests_in_flight", "Requests not answered yet.", status.requests_in_flight),
            ("disk_free_bytes", "Free space on the data directory's disk.", status.disk_free_bytes),
            ("slots_moving", "Slots led here that are on their way.", status.slots_moving),
            ("damaged_copies", "Copies that wait for a whole one.", status.damaged_copies),
            ("problems", "Things that are wrong; see /v1/cluster/node.", len(status.problems)),
        ):
            yield GaugeMetricFamily(f"kvstore_{name}", text, float(value))
        sync_seconds = status.syncs_total * status.sync_ms_mean / 1000
        for name, text, total in (
            ("reads", "Keys read.", status.reads_total),
            ("writes", "Keys written.", status.writes_total),
            ("syncs", "Groups of writes made durable.", status.syncs_total),
            ("sync_seconds", "Time spent making them durable.", sync_seconds),
            ("scrub_bytes", "Bytes compared with other copies.", status.scrub_bytes_total),
            ("scrub_passes", "Passes over all slots led here.", status.scrub_passes_total),
            ("damage_found", "Damaged copies found.", status.damage_found_total),
            ("copied_bytes", "Sent to new members of slots.", status.copied_bytes_total),
            ("copies_repaired", "Damaged copies here replaced.", status.repaired_total),
        ):
            yield CounterMetricFamily(f"kvstore_{name}", text, float(total))
        states = Counter(member.state for member in self._node.members())
        members = GaugeMetricFamily(
            "kvstore_members", "Nodes of the cluster as seen from here.", labels=("state",)
        )
        for state in dict.fromkeys((*MEMBER_STATES, *sorted(states))):
            members.add_metric((state,), states[state])
        yield members


def _counters(name: str, text: str, label: str, counts: Counter[str]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=(label,))
    for value, count in sorted(counts.items()):
        family.add_metric((value,), count)
    return family
