"""The clients of `make nemesis` and a cluster that nobody hurts: all operations, no violation."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

from tests.nemesis.customers import Errand, run_process
from tests.nemesis.judge import Verdict, judge_chunk
from tests.nemesis.ledger import chunks_in, read_rows
from tests.process.cluster_processes import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from kvstore.cli.local_cluster import LocalCluster

OPERATIONS = 150


def test_clients_of_three_kinds_have_one_history(cluster: LocalCluster, tmp_path: Path) -> None:
    stop = threading.Event()
    mishaps: list[str] = []
    queue = SimpleNamespace(put=mishaps.append)
    addresses = [f"{node.host}:{node.http_port}" for node in cluster.nodes]
    totals = {kind: SimpleNamespace(value=0) for kind in ("async", "sync", "http")}
    threads = []
    for kind, total in totals.items():
        errand = Errand(kind, cluster.url, addresses, 2, int(time.time()), tmp_path, 0.0)
        arguments = (errand, stop, total, queue)
        threads.append(threading.Thread(target=run_process, args=arguments))
        threads[-1].start()
    try:
        enough = lambda: all(total.value >= OPERATIONS for total in totals.values())  # noqa: E731
        wait_for(enough, "all kinds have done enough", 40)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    verdict = Verdict()
    for chunk in chunks_in(tmp_path):
        verdict.merge(judge_chunk(tmp_path, chunk, [], 0.1))
    assert mishaps == verdict.violations == verdict.undecided == []
    assert verdict.calm.answered > 0.99 * verdict.calm.total
    done = {type(row.event.action).__name__ for row in read_rows(tmp_path)}
    assert done == {"Put", "Get", "Delete", "Incr", "Touch", "Batch"}
