"""A cluster for the commands that look at one: client ports with routes, HTTP ports with views.

Each node is a `FakeNode` with the real HTTP door; `members`, `status` and `slots` are what it will
say, set by the test before it asks.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Self

import msgspec

from kvstore.http import HttpSettings, make_app, start_http
from kvstore.metrics import Metrics
from kvstore.node.view import MemberStatus, NodeStatus, SlotStatus
from kvstore.wire.protocol import RouteNode, Routes
from tests.kvstore.fake_cluster import FakeCluster
from tests.kvstore.fake_node import FakeNode

if TYPE_CHECKING:
    from kvstore.http.server import HttpRunner

SLOTS = 12


class ViewNode(FakeNode):
    """Says of itself and the others what the test wants."""

    def __init__(self, cluster: FakeAdmin, at: int) -> None:
        super().__init__(SLOTS)
        self.cluster = cluster
        self.at = at
        self.states: dict[str, str] = {}
        self.changes: dict[str, object] = {}
        """Fields of its `NodeStatus` that differ from the ordinary."""

    @property
    def id(self) -> int:
        return 100 + self.at

    @property
    def name(self) -> str:
        return self.cluster.names[self.at]

    def routes(self, id: int = 0) -> Routes:  # noqa: A002
        return self.cluster.routes(id)

    def members(self) -> list[MemberStatus]:
        return [
            MemberStatus(
                node.id,
                node.name,
                node.address,
                node.http_address,
                node.zone,
                self.states.get(node.name, "alive"),
                61_000,
                4 if node.id == self.id else 0,
                SLOTS,
            )
            for node in self.cluster.routes().nodes
        ]

    def slot_status(self, slot: int) -> SlotStatus:
        names = self.cluster.names
        primary = slot % len(names)
        role = "primary" if primary == self.at else "replica"
        number = 9 if role == "primary" else 7
        return SlotStatus(slot, names, [], names[primary], role, f"3.{names[0]}", number, number)

    def status(self) -> NodeStatus:
        usual = msgspec.structs.replace(
            super().status(), slots_led=4, slots_held=SLOTS, name=self.name, id=self.id
        )
        return msgspec.structs.replace(usual, **self.changes)


class FakeAdmin(FakeCluster):
    """Nodes of these names; use ``with FakeAdmin() as cluster`` and `url`."""

    def __init__(self, *names: str) -> None:
        self.names = list(names or ("n1", "n2", "n3"))
        super().__init__(len(self.names))
        self.nodes = [ViewNode(self, at) for at in range(len(self.names))]
        self.http: list[HttpRunner] = []
        self.http_addresses: list[str] = []
        self.unled: set[int] = set()
        self.founded = True

    def __enter__(self) -> Self:
        super().__enter__()
        asyncio.run_coroutine_threadsafe(self._listen_http(), self._loop).result(5)
        return self

    def __exit__(self, *exception: object) -> None:
        for at in range(len(self.http)):
            self.stop_http(at)
        super().__exit__(*exception)

    async def _listen_http(self) -> None:
        for node in self.nodes:
            app = make_app(node, Metrics(), HttpSettings())
            runner = await start_http(app, "127.0.0.1", 0)
            self.http.append(runner)
            self.http_addresses.append(f"127.0.0.1:{runner.port}")

    def stop_http(self, at: int) -> None:
        """The HTTP port of a node refuses from now on."""
        asyncio.run_coroutine_threadsafe(self.http[at].cleanup(), self._loop).result(5)

    def kill(self, at: int) -> None:
        """Both ports of a node refuse, and the others notice."""
        self.stop(at)
        self.stop_http(at)
        for node in self.nodes:
            node.states[self.names[at]] = "dead"

    def routes(self, frame_id: int = 0) -> Routes:
        nodes = [
            RouteNode(100 + at, name, self.addresses[at], self.http_addresses[at], "a", "alive")
            for at, name in enumerate(self.names)
        ]
        leaders = [0xFFFF if n in self.unled else n % len(nodes) for n in range(SLOTS)]
        if not self.founded:
            return Routes(frame_id, "", "fake", 0, 0, [], b"", b"")
        primaries = struct.pack(f">{SLOTS}H", *leaders)
        positions = bytes(20 * SLOTS)
        return Routes(frame_id, self.cluster_id, "fake", 4, SLOTS, nodes, primaries, positions)
