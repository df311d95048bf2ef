"""One cluster for all tests that hurt nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import kvstore
from tests.process.cluster_processes import running_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstore.cli.local_cluster import LocalCluster
    from kvstore.client import Client


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


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
