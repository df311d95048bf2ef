"""One cluster for all tests that hurt nobody, and one for those that only kill and freeze."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest

import kvstore
from tests.process.cluster_processes import READY_S, running_cluster, states_seen_by, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstore.cli.local_cluster import LocalCluster
    from kvstore.client import Client


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture(scope="session")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with running_cluster(tmp_path_factory.mktemp("patient")) as found:
        yield found


@pytest.fixture
def fresh(patient: LocalCluster) -> LocalCluster:
    """A cluster to hurt: three nodes that see each other alive, and no keys.

    A test may leave nodes killed or frozen, and nothing else that a start does not mend.
    """
    for node in patient.nodes:
        node.signal(signal.SIGCONT)
        assert node.process is not None
        if node.state != "running":
            node.process.wait()
            patient.start_node(node)
    patient.wait_ready(READY_S)
    for viewer in range(len(patient.nodes)):
        seen = partial(states_seen_by, patient, viewer)
        wait_for(lambda: list(seen().values()) == ["alive"] * 3, "all see all alive")  # noqa: B023
    with kvstore.connect(patient.url, timeout=20) as db:
        db.delete_many([key for key, _ in db.scan()])
    return patient


@pytest.fixture
def db(cluster: LocalCluster) -> Iterator[Client]:
    with kvstore.connect(cluster.url) as client:
        yield client


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One at a time, whatever runs beside them: each starts a cluster of its own.

    They come first, for they take the longest: one worker has them, the other the rest.
    """

    def has_processes(item: pytest.Item) -> bool:
        return "tests/process" in item.path.as_posix()

    items.sort(key=lambda item: not has_processes(item))
    for item in filter(has_processes, items):
        item.add_marker(pytest.mark.xdist_group("process"))
