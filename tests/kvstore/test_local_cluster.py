"""The ports of nodes that a person adds to a local cluster."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from kvstore.cli.local_cluster import HOST, LocalCluster, LocalNode

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_node_more_has_ports_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalNode, "start", lambda *_: None)
    with socket.create_server((HOST, 0)) as somebody:
        port = somebody.getsockname()[1] - 2  # two nodes, whose HTTP ports follow on somebody's
        cluster = LocalCluster(tmp_path, 2, port, port + 3)
        for _ in range(3):
            cluster.add_node()
    ports = [port for node in cluster.nodes for port in (node.port, node.http_port)]
    assert len(set(ports)) == 2 * 5
    assert port + 2 not in ports
