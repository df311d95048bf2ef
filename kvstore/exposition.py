"""The node's counts as Prometheus reads them.

There is one registry a process; multiprocess mode is not used, because one process is one node. The
collectors read everything when somebody scrapes: what the doors counted, what the node says of
itself, and what the client library knows of the process.
"""

from __future__ import annotations

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
    from collections.abc import Iterator

    from prometheus_client import Metric

    from kvstore.metrics import Metrics

MEMBER_STATES: Final = ("alive", "suspect", "dead", "left")
"""Always exposed, also at 0: an alarm on a series that does not exist yet never fires."""


class Exposition:
    """What a scrape is answered with."""

    def __init__(self, metrics: Metrics) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(_Doors(metrics))
        self._registry.register(_Node(metrics))

    def text(self) -> tuple[bytes, str]:
        """The text, and the content type of its format."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


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
        for (door, operation), tally in sorted(metrics.tallies.items()):
            for outcome, count in sorted(tally.outcomes.items()):
                requests.add_metric((door, operation, outcome), count)
            buckets, total = tally.histogram()
            seconds.add_metric((door, operation), buckets, total)
        yield requests
        yield seconds
        yield _counters(
            "kvstore_refused", "Inputs turned away, by reason.", "reason", metrics.refusals
        )
        yield _counters(
            "kvstore_connections_accepted", "Connections taken in.", "door", metrics.accepted
        )
        connections = GaugeMetricFamily(
            "kvstore_connections", "Connections open now.", labels=("door",)
        )
        for door, count in sorted(metrics.open.items()):
            connections.add_metric((door,), count)
        yield connections
        for name, (text, read) in metrics.gauges.items():
            yield GaugeMetricFamily(f"kvstore_{name}", text, read())
        for name, (text, read) in metrics.totals.items():
            yield CounterMetricFamily(f"kvstore_{name}", text, read())


class _Node(Collector):
    """Turns `NodeView` into metric families."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        """Nothing before the first scrape: the node may still be starting."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families, read now."""
        node = self._metrics.node
        if node is None:
            return
        status = node.status()
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
        states = Counter(member.state for member in node.members())
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
