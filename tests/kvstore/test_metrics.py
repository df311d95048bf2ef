from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvstore.metrics import LATENCY_BOUNDS_SECONDS, Metrics, Tally
from tests.kvstore.fake_node import FakeNode


def scraped(metrics: Metrics) -> dict[str, float]:
    text = metrics.expose()[0].decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def test_a_tally_counts_outcomes_and_buckets() -> None:
    tally = Tally()
    for seconds in (0.0, 0.0005, 0.0006, 9.0):
        tally.add("ok", seconds)
    tally.add("unknown", 0.02)
    buckets, total = tally.histogram()
    assert dict(buckets)["0.0005"] == 2
    assert dict(buckets)["0.001"] == 3
    assert dict(buckets)["5.0"] == 4
    assert dict(buckets)["+Inf"] == 5
    assert total == pytest.approx(9.0211)
    assert tally.outcomes == {"ok": 4, "unknown": 1}


def test_the_doors_are_exposed() -> None:
    metrics = Metrics()
    metrics.tally("client", "put").add("ok", 0.001)
    assert metrics.tally("client", "put") is metrics.tally("client", "put")
    metrics.refused("frame")
    metrics.refused("frame")
    metrics.connection_opened("client")
    metrics.connection_opened("client")
    metrics.connection_closed("client")
    samples = scraped(metrics)
    assert samples["kvstore_requests_total{door=client,operation=put,outcome=ok}"] == 1
    assert samples["kvstore_request_seconds_bucket{door=client,le=0.001,operation=put}"] == 1
    assert samples["kvstore_refused_total{reason=frame}"] == metrics.refused_total("frame") == 2
    assert samples["kvstore_connections{door=client}"] == metrics.connections("client") == 1
    assert samples["kvstore_connections_accepted_total{door=client}"] == 2
    assert samples["process_open_fds"] > 0


def test_figures_are_read_at_scrape_time() -> None:
    metrics = Metrics()
    depth = [0.0]
    metrics.gauge("queue_depth_operations", "Waiting.", lambda: depth[0])
    metrics.total("sent_bytes", "Bytes sent to peers.", lambda: 2 * depth[0])
    depth[0] = 5.0
    assert scraped(metrics)["kvstore_queue_depth_operations"] == 5
    assert scraped(metrics)["kvstore_sent_bytes_total"] == 10


def test_the_node_is_exposed() -> None:
    metrics, node = Metrics(), FakeNode()
    metrics.watch_node(node)
    samples = scraped(metrics)
    assert samples["kvstore_ready"] == 1
    assert samples["kvstore_slots_led"] == 64
    assert samples["kvstore_sync_seconds_total"] == pytest.approx(0.003)
    assert samples["kvstore_members{state=alive}"] == 1
    assert samples["kvstore_members{state=dead}"] == 0
    node.ready = False
    assert scraped(metrics)["kvstore_ready"] == 0


def test_names_are_ours_and_carry_no_odd_units() -> None:
    metrics = Metrics()
    metrics.watch_node(FakeNode())
    names = re.findall(r"^# TYPE (\S+)", metrics.expose()[0].decode(), re.MULTILINE)
    own = [name for name in names if not name.startswith(("python_", "process_"))]
    assert own
    assert all(name.startswith("kvstore_") for name in own)
    assert not [name for name in own if re.search(r"_(ms|millis|kb|mb)(_|$)", name)]


def test_buckets_rise() -> None:
    assert list(LATENCY_BOUNDS_SECONDS) == sorted(set(LATENCY_BOUNDS_SECONDS))
